"""Each row of a counts file against the plans and the counts taken in before: taken in, known already, or rejected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from jobs.counting.count_rows import CountRow, Reject, parse_row
from jobs.counting.counted import read_counted
from jobs.counting.counts_file import CountsRow
from jobs.counting.plans import list_marked_runs, read_plan
from jobs.counting.records import NightRecord, began_at, find_records, lines_of
from jobs.counting.resolution import Count, Finding, Recorded, group_counts, person, resolve_counts
from jobs.platform.layout import run_in_force
from jobs.platform.texts import csv_text
from schemas.recount import COUNTED_SCHEMA, RejectReason

PLAUSIBLE_TIMES, PLAUSIBLE_MORE = 10, 1000
"""A count of more than so many times the record and so many pieces more must be confirmed."""

NO_TIME = "counted_at: expected a time of day, found the date alone of a day on which the record was read"
"""Of a count that may have been made before that or after it."""

BEGAN_AT = "began_at"

_NUMBER = re.compile(r"0*(?P<whole>0|[1-9][0-9]*)(?:(?P<decimals>\.[0-9]*[1-9])0*|\.0+)?", re.ASCII)

Rejected = tuple[CountsRow, RejectReason, str]

Pair = tuple[CountRow, CountRow]
"""A row as it stands in the file, and as it is where its bin_id lost its zeros in a spreadsheet."""

Plan = Mapping[str, dict[str, Any]]
"""bin_id -> row of PLANNED_SCHEMA, with the run_id and BEGAN_AT, when that run began."""


@dataclass
class CheckedCounts:
    """A counts file, sorted out."""

    accepted: pa.Table
    """COUNTED_SCHEMA."""
    num_known: int
    """Rows that an earlier call took in."""
    num_blank: int
    """Rows of the recount list that are not filled in yet: pending, like bins that the file leaves out."""
    rejects: list[Rejected]


def check_counts(
    output_uri: str, nights: Sequence[str], rows: Sequence[CountsRow], *, zone: ZoneInfo, now: datetime
) -> CheckedCounts:
    """Checks every row against the plans ever committed for its night, and against what was taken in before; `nights`
    are the committed ones."""
    rejects: list[Rejected] = []
    counts: list[CountRow] = []
    filled_in = [row for row in rows if not row.is_blank]
    committed = set(nights)
    for row in filled_in:
        try:
            counts.append(parse_row(row, committed, zone, now))
        except Reject as reject:
            rejects.append((row, reject.reason, reject.detail))
    plans = _read_plans(output_uri, {count.audit_date for count in counts} & committed)
    names = _list_names(plans)
    counts = [replace(count, bin_id=names.get((count.audit_date, count.bin_id), count.bin_id)) for count in counts]
    numbers, alike = _list_numbers(plans)
    if _has_kept_zeros({row.cells.get("bin_id", "") for row in rows}):
        alike = set()
    as_numbers = [replace(count, bin_id=numbers.get(_as_number(count), count.bin_id)) for count in counts]
    ledger = _Ledger(output_uri, set(plans))
    # what an earlier call took in needs no record, and the results of its nights may have been deleted since
    pairs = [pair for pair in zip(counts, as_numbers, strict=True) if not any(map(ledger.knows, pair))]
    records, pairs, unjudged = _read_records(output_uri, pairs, plans, nights)
    rejects += unjudged
    # a bin of the night that no plan asked for has its own name, and not that of a planned one
    counts = [count if (count.audit_date, count.bin_id) in records else as_number for count, as_number in pairs]
    accepted = []
    # in the order of counting: of two counts that contradict each other the later one is one too many
    for count in sorted(counts, key=lambda count: (count.count.counted_at, count.source.number)):
        try:
            _check_distinct(count, alike)
            planned = _find_planned(count, plans, records)
            _check_unchanged(count, planned, nights, records)
            _check_plausible(count, planned)
            ledger.enter(count, planned["expected_qty"])
            accepted.append(_counted_row(count, planned))
        except Reject as reject:
            rejects.append((count.source, reject.reason, reject.detail))
    table = pa.Table.from_pylist(accepted, schema=COUNTED_SCHEMA)
    return CheckedCounts(table, ledger.num_known, len(rows) - len(filled_in), rejects)


class _Ledger:
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


def _read_plans(output_uri: str, nights: set[str]) -> dict[str, list[Plan]]:
    """Night -> its plans, the one in force first, then those that it replaced, the newest first."""
    plans: dict[str, list[Plan]] = {}
    marked = list_marked_runs(output_uri, min(nights)) if nights else {}
    for night in nights:
        in_force = run_in_force(output_uri, night)
        replaced = [run_id for run_id in marked.get(night, []) if run_id != in_force]
        began = {run_id: began_at(output_uri, run_id) for run_id in (in_force, *replaced)}
        replaced.sort(key=lambda run_id: began[run_id] or datetime.min.replace(tzinfo=UTC), reverse=True)
        plans[night] = [
            {
                row["bin_id"]: {**row, "run_id": run_id, BEGAN_AT: began[run_id]}
                for row in read_plan(output_uri, run_id).to_pylist()
            }
            for run_id in (in_force, *replaced)
        ]
    return plans


def _list_names(plans: Mapping[str, list[Plan]]) -> dict[tuple[str, str], str]:
    """(night, text) -> bin_id, for texts by which the recount list shows a bin lest its bin_id become a formula."""
    names: dict[tuple[str, str], str] = {}
    for night, of_night in plans.items():
        bin_ids = sorted({bin_id for plan in of_night for bin_id in plan})
        for bin_id, text in zip(bin_ids, csv_text(pa.array(bin_ids, pa.string())).to_pylist(), strict=True):
            names.setdefault((night, text.strip()), bin_id)
        names.update({(night, bin_id): bin_id for bin_id in bin_ids})
    return names


def _list_numbers(plans: Mapping[str, list[Plan]]) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
    """(night, text) -> bin_id, for bins such as 00004 or 1.10, which a spreadsheet takes for the numbers 4 and 1.1, where one
    planned bin can be meant; and the (night, text) by which several can."""
    numbers: dict[tuple[str, str], str] = {}
    alike: set[tuple[str, str]] = set()
    for night, of_night in plans.items():
        bin_ids = {bin_id for plan in of_night for bin_id in plan if _NUMBER.fullmatch(bin_id)}
        meant = Counter(map(_number, bin_ids))
        numbers.update({(night, _number(bin_id)): bin_id for bin_id in bin_ids if meant[_number(bin_id)] == 1})
        alike |= {(night, number) for number, times in meant.items() if times > 1}
    return numbers, alike


def _has_kept_zeros(bin_ids: Set[str]) -> bool:
    """Whether a file has one that a spreadsheet would have taken away. `2.0` alone is how a data frame writes each 2."""
    numbers = {bin_id: _number(bin_id) for bin_id in bin_ids}
    return any(
        bin_id != number and (bin_id != f"{number}.0" or number in bin_ids) for bin_id, number in numbers.items()
    )


def _as_number(count: CountRow) -> tuple[str, str]:
    """Night and bin as `_list_numbers` has them."""
    whole = count.bin_id.removesuffix(".0")
    return count.audit_date, whole if whole.isdecimal() else count.bin_id


def _number(bin_id: str) -> str:
    """What a spreadsheet makes of it: a number loses the zeros in front and those at the end of its decimals."""
    number = _NUMBER.fullmatch(bin_id)
    return number["whole"] + (number["decimals"] or "") if number else bin_id


def _check_distinct(count: CountRow, alike: Set[tuple[str, str]]) -> None:
    """Raises Reject for a number that may be one of several planned bins, in a file that may have lost its zeros."""
    if _as_number(count) in alike:
        detail = (
            f"bin_id: planned bins differ from {count.bin_id} in zeros only, in front or after the decimals, and no bin_id in "
            "the file has one, as after a spreadsheet; hand it in with bin_id as text (an empty row of one with zeros shows "
            "that none are lost)"
        )
        raise Reject(RejectReason.UNKNOWN_BIN, detail)


def _read_records(
    output_uri: str, pairs: Sequence[Pair], plans: Mapping[str, list[Plan]], nights: Sequence[str]
) -> tuple[dict[tuple[str, str], NightRecord], list[Pair], list[Rejected]]:
    """(night, bin_id) -> what was recorded then, as far as the rows need it; the rows that can be judged by it; and the
    rejects of those that need a night whose results were deleted."""
    needed = [
        [(night, count.bin_id) for count in pair for night in _needed_nights(count, plans, nights)] for pair in pairs
    ]
    wanted: dict[str, set[str]] = {}
    for night, bin_id in chain.from_iterable(needed):
        wanted.setdefault(night, set()).add(bin_id)
    records, gone = find_records(output_uri, wanted)
    kept, rejects = [], []
    for pair, of_pair in zip(pairs, needed, strict=True):
        if missing := gone & {night for night, _ in of_pair}:
            night = min(missing)
            detail = f"audit_date: the results of the night {night}, which say what was recorded then, are deleted"
            rejects.append((pair[0].source, RejectReason.UNKNOWN_NIGHT, detail))
        else:
            kept.append(pair)
    return records, kept, rejects


def _needed_nights(count: CountRow, plans: Mapping[str, list[Plan]], nights: Sequence[str]) -> list[str]:
    """The nights whose results a count needs: its own where no plan of it knows the bin, else the later ones that were
    over before it was counted."""
    if any(count.bin_id in plan for plan in plans.get(count.audit_date, [])):
        return _later_nights(count, nights)
    return [count.audit_date] if count.audit_date in plans else []


def _later_nights(count: CountRow, nights: Sequence[str]) -> list[str]:
    """Nights between the count's own and the day it was made, in any time zone."""
    last = (count.latest + timedelta(days=1)).date().isoformat()
    return [night for night in nights if count.audit_date < night <= last]


def _find_planned(
    count: CountRow, plans: Mapping[str, list[Plan]], records: Mapping[tuple[str, str], NightRecord]
) -> dict[str, Any]:
    """The row of the newest plan that may have asked for this count: one whose record was read before it, or, where
    nobody says when that was, whose run had begun by then. Raises Reject, also where only the day of the count is known
    and the record may have been read after it."""
    if count.audit_date not in plans:
        raise Reject(RejectReason.UNKNOWN_NIGHT, f"audit_date: no night {count.audit_date} is committed here")
    planned = [plan[count.bin_id] for plan in plans[count.audit_date] if count.bin_id in plan]
    if not planned and (count.audit_date, count.bin_id) in records:
        detail = f"bin_id: no plan of {count.audit_date} asked for {count.bin_id!a}"
        raise Reject(RejectReason.NOT_PLANNED, detail)
    if not planned:
        detail = f"bin_id: the night {count.audit_date} knows no bin {count.bin_id!a}"
        raise Reject(RejectReason.UNKNOWN_BIN, detail)
    counted_at = count.count.counted_at
    dated = [(row, row["expected_as_of"] or row[BEGAN_AT]) for row in planned]
    before = [row for row, since in dated if since is None or since <= counted_at]
    # a clock is off, or the day is all that is known
    possible = before or [row for row in planned if row["expected_as_of"] is None]
    that_day = {row["expected_qty"] for row, since in dated if since and counted_at < since <= count.latest}
    if that_day and that_day != {row["expected_qty"] for row in possible[:1]}:
        raise Reject(RejectReason.BAD_DATE, NO_TIME)
    if possible:
        return possible[0]
    read_at = planned[0]["expected_as_of"].isoformat(timespec="minutes")
    raise Reject(RejectReason.BEFORE_NIGHT, f"counted_at: expected a time after the record was read ({read_at})")


def _check_unchanged(
    count: CountRow,
    planned: dict[str, Any],
    nights: Sequence[str],
    records: Mapping[tuple[str, str], NightRecord],
) -> None:
    """Raises Reject where a later audit saw another record before the bin was counted."""
    for night in _later_nights(count, nights):
        record = records.get((night, count.bin_id))
        if record is None or not record.says_other_than(planned["expected_qty"], lines_of(planned["skus"])):
            continue
        if count.count.counted_at < record.read_at <= count.latest:
            raise Reject(RejectReason.BAD_DATE, NO_TIME)
        if record.read_at <= count.count.counted_at:
            was, became = planned["expected_qty"], record.expected_qty
            change = f"from {was} to {became} pieces" if was != became else "to pieces of other SKUs"
            detail = f"the record changed {change} before the count (audit of {night})"
            raise Reject(RejectReason.RECORD_CHANGED, detail)


def _check_plausible(count: CountRow, planned: dict[str, Any]) -> None:
    """Raises Reject for a quantity so far from the record that it is rather a barcode scanned into the wrong cell: one of
    them would make millions of the stock's estimated pieces. A confirmed one is taken in."""
    most = PLAUSIBLE_TIMES * planned["expected_qty"] + PLAUSIBLE_MORE
    if count.count.counted_qty > most and not count.confirmed:
        raise Reject(
            RejectReason.IMPLAUSIBLE_QUANTITY,
            f"counted_qty: expected at most {most:,} where the record says {planned['expected_qty']:,}, found "
            f"{count.count.counted_qty:,}; if that is right, say so with confirmed",
        )


def _counted_row(count: CountRow, planned: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: planned[name] for name in COUNTED_SCHEMA.names if name in planned},
        "bin_id": count.bin_id,
        "audit_date": count.audit_date,
        "counted_qty": count.count.counted_qty,
        "counted_at": count.count.counted_at,
        "counter_id": count.count.counter_id,
        "confirmed": count.confirmed,
        "reason_code": count.reason_code,
    }
