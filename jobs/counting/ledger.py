"""The counts taken in so far, against which each further one is held: none is taken in twice, none contradicts in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from jobs.counting.count_rows import CountRow, Reject
from jobs.counting.counted import read_counted
from jobs.counting.resolution import Count, Finding, Recorded, group_counts, person, resolve_counts
from schemas.recount import RejectReason


class Ledger:
    """Counts taken in before and in this file, so that none is taken in twice."""

    def __init__(self, output_uri: str, nights: set[str]) -> None:
        counted = read_counted(output_uri)
        before = counted.filter(pc.is_in(counted["audit_date"], pa.array(sorted(nights), pa.string()))).to_pylist()
        self._counts = group_counts(before)
        self._before: dict[tuple[object, ...], bool] = {}
        for about, counts in self._counts.items():
            for count in counts:
                self._before[_identity(about.audit_date, about.bin_id, count)] = count.confirmed
        self._unconfirmed = {
            _identity(
                row["audit_date"],
                row["bin_id"],
                Count(row["counted_at"], row["counted_qty"], person(row["counter_id"])),
            )
            for row in before
            if not row["confirmed"]
        }
        self._named = {key[:-1]: confirmed for key, confirmed in self._before.items() if key[-1] is not None}
        self.num_known = 0

    def knows(self, row: CountRow) -> bool:
        """Whether an earlier call took the row in; one that it took in unconfirmed may come again once confirmed, and one
        that is said to be unconfirmed after all is told so."""
        identity = _identity(row.audit_date, row.bin_id, row.count)
        known = self._before.get(identity)
        if row.count.counter_id is None:  # the same sheet without its column of names
            known = self._named.get(identity[:-1], known)
        is_withdrawn = row.confirmed is False and identity not in self._unconfirmed
        if known is None or (row.count.confirmed and not known) or (known and is_withdrawn):
            return False
        self.num_known += 1
        return True

    def enter(self, row: CountRow, expected_qty: int) -> None:
        """Raises Reject for what is counted once too often: a bin that is resolved, or again what the same person
        counted there, at whatever time (the same sheet with other times), unless it is confirmed now."""
        counts = self._counts.setdefault(Recorded(row.audit_date, row.bin_id, expected_qty), [])
        # of a count that came without a name it may be said now whose it was
        nameless = [count for count in counts if count.counter_id is None and _is_same_sight(count, row.count)]
        kept = [count for count in counts if row.count.counter_id is None or count not in nameless]
        # taken in before, and confirmed since; by the same sheet without its column of names too
        unconfirmed = [
            count
            for count in kept
            if row.count.confirmed
            and not count.confirmed
            and _is_same_sight(count, row.count)
            and row.count.counter_id in (None, count.counter_id)
        ]
        finding = resolve_counts(kept, expected_qty)
        if finding is not None and finding.resolved and not unconfirmed:
            # what was refuted may still be found by a third person, and what was settled may have been a typo
            contradicts = row.count.counted_qty != finding.qty
            settled = Finding(row.count.counted_qty, resolved=True)
            settles = resolve_counts([*kept, row.count], expected_qty) == settled
            # what one person found right, others may doubt: it stays right until two of them agree
            people = [count.counter_id for count in (*kept, row.count)]
            is_doubt = (
                finding.qty == expected_qty
                and None not in people
                and len(set(people)) == len(people)
                and not any(count.confirmed for count in kept)
            )
            if not (contradicts and (settles or is_doubt)):
                detail = f"the bin is resolved for the night {row.audit_date}: {finding.qty} pieces"
                if row.confirmed is False and any(
                    count.confirmed and _is_same_sight(count, row.count) for count in kept
                ):
                    detail += "; this count was confirmed before, and what was confirmed stays so"
                confirmed = replace(row.count, confirmed=True)
                if contradicts and resolve_counts([*kept, confirmed], expected_qty) == settled:
                    detail += "; with confirmed it is overruled"
                elif contradicts:
                    detail += "; only what is confirmed and has a later counted_at overrules it"
                raise Reject(RejectReason.COUNTED_TWICE, detail)
        if not row.count.confirmed and (problem := _find_twin(row.count, kept)):
            raise Reject(RejectReason.COUNTED_TWICE, problem)
        is_confirmed = row.count.confirmed or any(count.confirmed for count in nameless)
        others = [count for count in kept if count not in unconfirmed]
        counts[:] = [*others, replace(unconfirmed[0] if unconfirmed else row.count, confirmed=is_confirmed)]


def _find_twin(new: Count, kept: Sequence[Count]) -> str | None:
    """Why an unconfirmed count says nothing new: rather the sheet of one that was taken in, handed in again with another
    time, another name or none."""
    same = [count for count in kept if count.counted_qty == new.counted_qty]
    if new.counter_id is None and same:
        return f"{new.counted_qty} pieces were found already: a second count needs a counter_id, or confirmed"
    if any(count.counter_id == new.counter_id for count in same):
        return (
            f"counter_id {new.counter_id!a} has found {new.counted_qty} pieces already: a second count needs another "
            "counter_id, or confirmed"
        )
    at = new.counted_at
    if (at.second or at.microsecond) and any(count.counted_at == at for count in same):
        return (
            f"{new.counted_qty} pieces were found at the same second by another counter_id: the same sheet under another "
            "name? If two people counted, say so with confirmed"
        )
    if new.counter_id and any(count.counter_id == new.counter_id and count.counted_at == at for count in kept):
        return (
            f"counter_id {new.counter_id!a} has found another quantity at the same time: a correction needs a later one"
        )
    return None


def _is_same_sight(one: Count, other: Count) -> bool:
    return (one.counted_at, one.counted_qty) == (other.counted_at, other.counted_qty)


def _identity(audit_date: str, bin_id: str, count: Count) -> tuple[object, ...]:
    return audit_date, bin_id, count.counted_at, count.counted_qty, count.counter_id
