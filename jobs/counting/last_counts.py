"""What is known of each bin from its last counts, as the reconciliation asks for it; frozen when a run begins."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa

from jobs.counting.records import lines_of
from jobs.counting.resolution import Count, Finding, Recorded, resolve_counts, sort_counts
from jobs.platform import storage
from jobs.platform.layout import FROZEN
from jobs.platform.parquet import DamagedParquet, parquet_bytes, read_table, write_table
from jobs.platform.uris import join
from schemas.arrow import TIMESTAMP, conform

RIGHT, WRONG, WAITING = "right", "wrong", "waiting"
"""What is known of a bin's record from its last counts."""

LAST_COUNTS_SCHEMA = pa.schema(
    [
        ("bin_id", pa.string()),
        ("last_counted_at", TIMESTAMP),
        ("last_counted_qty", pa.int32()),
        ("num_counted", pa.int32()),
        ("night", pa.string()),
        ("expected_qty", pa.int32()),
        ("lines", pa.string()),
        ("finding", pa.string()),
        ("found_qty", pa.int32()),
        ("num_wrong", pa.int32()),
    ]
)


def find_last_counts(
    groups: dict[Recorded, list[Count]], rows: Sequence[dict], skus: pa.ChunkedArray, waiting: set[tuple[str, str]]
) -> pd.DataFrame:
    """A row (LAST_COUNTS_SCHEMA) for each bin that was ever counted, by `bin_id`, of what its last count is about. `rows` of
    `counted` and `skus`, the lines that were recorded then, (n,) each; `groups`: the same by `group_counts`; `waiting`:
    (night, bin_id) of the mismatches that wait for a second count."""
    # of two plans of a night the one that the last count is about
    in_order = sorted(range(len(rows)), key=lambda place: rows[place]["counted_at"])
    place_of = {
        Recorded(rows[place]["audit_date"], rows[place]["bin_id"], rows[place]["expected_qty"]): place
        for place in in_order
    }
    by_bin: dict[str, list[tuple[Count, Recorded]]] = {}
    for about, counts in groups.items():
        by_bin.setdefault(about.bin_id, []).append((sort_counts(counts)[-1], about))
    facts = []
    for bin_id in sorted(by_bin):
        latest = sorted(by_bin[bin_id], key=lambda item: (item[0].counted_at, item[1]))
        last, about = latest[-1]
        findings = {entry: resolve_counts(groups[entry], entry.expected_qty) for _, entry in latest}
        wrong = {
            (entry.expected_qty, finding.qty)
            for entry, finding in findings.items()
            if finding is not None and finding.resolved and finding.qty != entry.expected_qty
        }
        finding = findings[about]
        facts.append(
            {
                "bin_id": bin_id,
                "last_counted_at": last.counted_at,
                "last_counted_qty": last.counted_qty,
                "num_counted": sum(len(groups[entry]) for _, entry in latest),
                "night": about.audit_date,
                "expected_qty": about.expected_qty,
                "lines": lines_of(skus[place_of[about]].as_py()),
                "finding": _find_out(finding, about, waiting),
                "found_qty": None if finding is None else finding.qty,
                "num_wrong": len(wrong),
            }
        )
    return pa.Table.from_pylist(facts, schema=LAST_COUNTS_SCHEMA).to_pandas().set_index("bin_id")


def _find_out(finding: Finding | None, about: Recorded, waiting: set[tuple[str, str]]) -> str | None:
    if finding is not None and finding.resolved:
        return RIGHT if finding.qty == about.expected_qty else WRONG
    return WAITING if (about.audit_date, about.bin_id) in waiting else None


def freeze_last_counts(run_uri: str, last_counts: pd.DataFrame) -> pd.DataFrame:
    """Keeps what was known of counted bins when a run began, and returns what stands there: this try's or an earlier
    one's. A count that comes in between a crash and its restart belongs to the next night."""
    uri = join(run_uri, FROZEN, "last_counts.parquet")
    frame = last_counts.reset_index()
    table = pa.table({field.name: _as_arrow(frame[field.name], field.type) for field in LAST_COUNTS_SCHEMA})
    if not storage.create_bytes(uri, parquet_bytes(table)):
        try:
            read_table(uri)
        except DamagedParquet:  # a power cut may leave a file that is empty
            write_table(uri, table)
    # another release may have begun the run: what it kept otherwise is not known
    return conform(read_table(uri), LAST_COUNTS_SCHEMA).to_pandas().set_index("bin_id")


def _as_arrow(column: pd.Series, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        column = column.dt.tz_convert(None)  # of one with a time zone pandas warns when Arrow takes it
    return pa.array(column, from_pandas=True).cast(kind)


def nothing_counted() -> pd.DataFrame:
    """As `find_last_counts` where no bin was ever counted."""
    return LAST_COUNTS_SCHEMA.empty_table().to_pandas().set_index("bin_id")
