"""From the counts of one bin and night to one finding: right, wrong, or pending.

People miscount too, and one in a hundred miscounts among right records looks like as many wrong ones. So a count that
agrees with the record stands, and one that doesn't waits for a second blind count, by another person, that agrees with
it, or one that agrees with the record: then it was the first person who erred. What two people are is told by `counter_id` alone, never by the time: a sheet that is handed in again may have lost
its seconds or be read in another time zone, and must not confirm itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple


class Recorded(NamedTuple):
    """What counts are about: that the record of this bin said so many pieces that night."""

    audit_date: str
    bin_id: str
    expected_qty: int


@dataclass(frozen=True)
class Count:
    """One person's count. `confirmed`: the warehouse's own system says that a second blind count agreed."""

    counted_at: datetime
    counted_qty: int
    counter_id: str | None = None
    confirmed: bool = False


@dataclass(frozen=True)
class Finding:
    """What the counts of a bin come to. Unresolved: `qty` is the first mismatch that its counter has not taken back, or
    the first where all have."""

    qty: int
    resolved: bool


def person(counter_id: str | None) -> str | None:
    """Who counted, so that a person who is written `Anna` and `anna `, `007` by a scanner, `7` by a spreadsheet and `7.0` by
    pandas, `Jörg` with one sign or two for the ö, or `'007` and `'@ann` lest a spreadsheet reads a number or a formula, can't
    confirm their own count."""
    text = unicodedata.normalize("NFKC", counter_id or "").casefold()
    text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")  # signs that nobody sees
    text = " ".join(text.lstrip("' ").split())
    number = re.fullmatch(r"0*([0-9]+?)(\.0*)?", text, re.ASCII)
    return (number[1] if number else text) or None


def resolve_counts(counts: Iterable[Count], expected_qty: int) -> Finding | None:
    """The finding of one bin's counts against the quantity its record expected; None where nobody counted.

    Right where every count equals the record. A mismatch is settled by a `confirmed` count, or by counts of the same
    quantity by two people (counts without a `counter_id` are nobody's); of several settled quantities the one that was
    counted last wins. Of one person's mismatches the last is meant, the others were corrected by it; and it settles nothing
    any more once that person has found the recorded quantity. Where none is settled, and the mismatches have a `counter_id`
    each, a count by another person that equals the record refutes them: right. `repeat_offenders` in queries.sql follows
    the same rule.
    """
    ordered = sort_counts(counts)
    if not ordered:
        return None
    mismatch_at = {count.counter_id: count.counted_at for count in ordered if count.counted_qty != expected_qty}
    ordered = _without_older(ordered, expected_qty, mismatch_at)
    confirmed = {count.counted_qty for count in ordered if count.confirmed}
    right_at = {count.counter_id: count.counted_at for count in ordered if count.counted_qty == expected_qty}
    votes = _without_older(ordered, expected_qty, right_at)
    people: dict[int, set[str]] = {}
    for count in votes:
        if count.counter_id is not None:
            people.setdefault(count.counted_qty, set()).add(count.counter_id)
    settled = confirmed | {qty for qty, counters in people.items() if len(counters) > 1}
    if settled:
        return Finding(next(count.counted_qty for count in reversed(votes) if count.counted_qty in settled), True)
    mismatches = [count for count in ordered if count.counted_qty != expected_qty]
    standing = [count for count in votes if count.counted_qty != expected_qty]
    erring = {count.counter_id for count in mismatches}
    if not mismatches or (None not in erring and people.get(expected_qty, set()) - erring):
        return Finding(expected_qty, resolved=True)
    return Finding((standing or mismatches)[0].counted_qty, resolved=False)


def _without_older(ordered: list[Count], expected_qty: int, since: dict[str | None, datetime]) -> list[Count]:
    """Without the unconfirmed mismatches from before the time that is named for their counter."""
    return [
        count
        for count in ordered
        if count.confirmed
        or count.counter_id is None
        or count.counted_qty == expected_qty
        or count.counted_at >= since.get(count.counter_id, count.counted_at)
    ]


def sort_counts(counts: Iterable[Count]) -> list[Count]:
    """In the order of counting; ties in an order that doesn't depend on how they came in, by quantity as in SQL."""
    return sorted(counts, key=lambda count: (count.counted_at, count.counted_qty, count.counter_id or ""))


def group_counts(rows: Iterable[dict[str, Any]]) -> dict[Recorded, list[Count]]:
    """The counts of every recorded quantity, from rows of `counted` (or dicts like them).

    One count that was taken in twice (two processes at once, or again once confirmed, or once it was known whose it is) is
    one count.
    """
    merged: dict[tuple[Recorded, datetime, int, str | None], bool] = {}
    for row in rows:
        about = Recorded(row["audit_date"], row["bin_id"], row["expected_qty"])
        key = (about, row["counted_at"], row["counted_qty"], person(row["counter_id"]))
        merged[key] = merged.get(key, False) or bool(row["confirmed"])
    groups: dict[Recorded, list[Count]] = {}
    named = {key[:3] for key in merged if key[3] is not None}
    for (about, counted_at, counted_qty, counter_id), confirmed in merged.items():
        if counter_id is None and (about, counted_at, counted_qty) in named:
            continue
        confirmed |= merged.get((about, counted_at, counted_qty, None), False)
        groups.setdefault(about, []).append(Count(counted_at, counted_qty, counter_id, confirmed))
    return groups
