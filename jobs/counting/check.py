"""Each row of a counts file against the plans and the counts taken in before: taken in, known already, or rejected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from jobs.counting.bin_names import Plan, as_number, check_distinct, has_kept_zeros, list_names, list_numbers
from jobs.counting.count_rows import CountRow, Reject, parse_row
from jobs.counting.counts_file import CountsRow
from jobs.counting.ledger import Ledger
from jobs.counting.plans import list_marked_runs, read_plan
from jobs.counting.records import NightRecord, find_records, lines_of
from jobs.platform.layout import run_in_force, run_uri
from jobs.platform.run_record import began_at, read_run
from schemas.recount import COUNTED_SCHEMA, RejectReason

PLAUSIBLE_TIMES, PLAUSIBLE_MORE = 10, 1000
"""A count of more than so many times the record and so many pieces more must be confirmed."""

MOST_WAITING = 20
"""Refused counts of a bin that are tried again: each is held against all that came in."""

NO_TIME = "counted_at: expected a time of day, found the date alone of a day on which the record was read"
"""Of a count that may have been made before that or after it."""

BEGAN_AT = "began_at"

Rejected = tuple[CountsRow, RejectReason, str]

Pair = tuple[CountRow, CountRow]
"""A row as it stands in the file, and as it is where its bin_id lost its zeros in a spreadsheet."""


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
    names = list_names(plans)
    counts = [replace(count, bin_id=names.get((count.audit_date, count.bin_id), count.bin_id)) for count in counts]
    numbers, alike = list_numbers(plans)
    if has_kept_zeros({row.cells.get("bin_id", "") for row in rows}):
        alike = set()
    as_numbers = [replace(count, bin_id=numbers.get(as_number(count), count.bin_id)) for count in counts]
    ledger = Ledger(output_uri, set(plans))
    # what an earlier call took in needs no record, and the results of its nights may have been deleted since
    pairs = [pair for pair in zip(counts, as_numbers, strict=True) if not any(map(ledger.knows, pair))]
    records, pairs, unjudged = _find_needed(output_uri, pairs, plans, nights)
    rejects += unjudged
    # a bin of the night that no plan asked for has its own name, and not that of a planned one
    counts = [count if (count.audit_date, count.bin_id) in records else as_number for count, as_number in pairs]
    judged = []
    # in the order of counting: of two counts that contradict each other the later one is one too many
    for count in sorted(counts, key=lambda count: (count.count.counted_at, count.source.number)):
        try:
            check_distinct(count, alike)
            planned = _find_planned(count, plans, records)
            _check_unchanged(count, planned, nights, records)
            _check_plausible(count, planned)
            judged.append((count, planned))
        except Reject as reject:
            rejects.append((count.source, reject.reason, reject.detail))
    accepted, twice = _enter_all(judged, ledger)
    rejects += twice
    table = pa.Table.from_pylist(accepted, schema=COUNTED_SCHEMA)
    return CheckedCounts(table, ledger.num_known, len(rows) - len(filled_in), rejects)


def _read_plans(output_uri: str, nights: set[str]) -> dict[str, list[Plan]]:
    """Night -> its plans, the one in force first, then those that it replaced, the newest first."""
    plans: dict[str, list[Plan]] = {}
    marked = list_marked_runs(output_uri, min(nights)) if nights else {}
    for night in nights:
        in_force = run_in_force(output_uri, night)
        replaced = [run_id for run_id in marked.get(night, []) if run_id != in_force]
        began = {run_id: began_at(read_run(run_uri(output_uri, run_id))) for run_id in (in_force, *replaced)}
        replaced.sort(key=lambda run_id: began[run_id] or datetime.min.replace(tzinfo=UTC), reverse=True)
        plans[night] = [
            {
                row["bin_id"]: {**row, "run_id": run_id, BEGAN_AT: began[run_id]}
                for row in read_plan(output_uri, run_id).to_pylist()
            }
            for run_id in (in_force, *replaced)
        ]
    return plans


def _find_needed(
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


def _enter_all(
    counts: Sequence[tuple[CountRow, dict[str, Any]]], ledger: Ledger
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Rows of COUNTED_SCHEMA, and what is counted once too often. What is refused is tried again whenever another count of
    its bin has come in: one that contradicts what is resolved may be agreed with later. So the same file twice says what it
    says once, and one that grows in the order of counting what it says as a whole. Beyond MOST_WAITING of a bin, as in a file
    whose rows all name one, it is not tried again."""
    accepted: list[dict[str, Any]] = []
    waiting: dict[tuple[str, str], list[tuple[CountRow, dict[str, Any]]]] = defaultdict(list)
    refusals: dict[int, Reject] = {}

    def enters(count: CountRow, planned: dict[str, Any]) -> bool:
        try:
            ledger.enter(count, planned["expected_qty"])
        except Reject as reject:
            refusals[count.source.number] = reject
            return False
        refusals.pop(count.source.number, None)
        return True

    for new in counts:
        of_bin = waiting[new[0].audit_date, new[0].bin_id]
        of_bin.append(new)
        tries = [new]
        while (entered := next((each for each in tries if enters(*each)), None)) is not None:
            accepted.append(_counted_row(*entered))
            of_bin.remove(entered)
            tries = of_bin if len(of_bin) <= MOST_WAITING else []
    refused = ((count.source, refusals.get(count.source.number)) for count, _ in counts)
    return accepted, [(source, reject.reason, reject.detail) for source, reject in refused if reject is not None]


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
