"""What the records of a few bins said in committed nights, read from the results without holding them."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.counting.plans import list_marked_runs
from jobs.platform.layout import part_uris, run_in_force, run_uri, unless_replaced
from jobs.platform.parquet import damage_named, open_parquet
from jobs.platform.run_record import began_at, manifest_of, read_run
from schemas.errors import InputError


@dataclass(frozen=True)
class NightRecord:
    """The record of one bin as one night's audit saw it."""

    expected_qty: int
    read_at: datetime
    """When it was read, at the latest where it doesn't say: by the end of its night's day in whatever zone, and by when
    the first committed audit of that manifest began."""
    lines: str | None
    """See `lines_of`."""

    def says_other_than(self, expected_qty: int, lines: str | None) -> bool:
        """Whether another night's record was another one."""
        return self.expected_qty != expected_qty or name_other_pieces(lines, self.lines)


def name_other_pieces(lines: str | None, others: str | None) -> bool:
    """Whether the lines of two records, see `lines_of`, differ; where one has none, that tells nothing."""
    return None not in (lines, others) and lines != others


def name_other_skus(lines: str | None, others: str | None) -> bool:
    """Whether `others` name a SKU that `lines`, see `lines_of`, do not; where one has none, that tells nothing."""
    return None not in (lines, others) and not _skus_of(others) <= _skus_of(lines)


def _skus_of(lines: str | None) -> set[str]:
    return {sku for sku, _ in json.loads(lines or "[]")}


def lines_of(skus: Iterable[Mapping[str, Any]] | None) -> str | None:
    """A record's lines as a text that is the same where they name the same pieces: 2 of A and 2 of B are two records. None
    where they name none, or for a plan of before they were kept."""
    pieces: Counter[str] = Counter()
    for line in skus or []:
        pieces[line["sku"]] += line["quantity"]
    return json.dumps(sorted((+pieces).items())) if +pieces else None


def find_records(
    output_uri: str, wanted: Mapping[str, Set[str]]
) -> tuple[dict[tuple[str, str], NightRecord], set[str]]:
    """(night, bin_id) -> record, for the bins asked of each committed night (bins a night doesn't know are absent), and
    the nights whose results were deleted, as old ones may be.

    Reads four columns of a night's results, one row group at a time, without those that can't hold the bins.
    """
    records: dict[tuple[str, str], NightRecord] = {}
    gone: set[str] = set()
    marked = list_marked_runs(output_uri, min(wanted)) if wanted else {}
    for night, bin_ids in wanted.items():
        try:
            of_night = _find_in_night(output_uri, night, sorted(bin_ids), marked.get(night, []))
            records |= {(night, bin_id): found for bin_id, found in of_night}
        except FileNotFoundError:
            gone.add(night)
    return records, gone


def _find_in_night(
    output_uri: str, night: str, bin_ids: list[str], marked: Iterable[str]
) -> Iterator[tuple[str, NightRecord]]:
    values = pa.array(bin_ids, pa.string())
    run_id = run_in_force(output_uri, night)
    with unless_replaced(output_uri, night, run_id):
        parts = part_uris(output_uri, "results", night, run_id)
        if not parts:
            raise FileNotFoundError(f"{output_uri}: night {night}: run {run_id} has no parts")
        read_by = _read_by(output_uri, night, run_id, marked)
        for part in parts:
            with open_parquet(part) as parquet, damage_named(part):
                for group in range(parquet.metadata.num_row_groups):
                    if not _may_hold(parquet.metadata.row_group(group), bin_ids):
                        continue
                    rows = parquet.read_row_group(group, columns=["bin_id", "expected_qty", "expected_as_of", "skus"])
                    for row in rows.filter(pc.is_in(rows["bin_id"], values)).to_pylist():
                        yield (
                            row["bin_id"],
                            NightRecord(row["expected_qty"], row["expected_as_of"] or read_by, lines_of(row["skus"])),
                        )


def _read_by(output_uri: str, night: str, run_id: str, marked: Iterable[str]) -> datetime:
    """By when the records that a night's run audited were read. `marked`: the night's committed runs, of which those that
    it replaced may have audited the same records before."""

    def read(name: str) -> dict[str, Any]:
        try:
            return read_run(run_uri(output_uri, name))
        except InputError:  # what learns from the counts, after they are taken in, says that the run's record is lost
            return {}

    in_force = read(run_id)
    runs = [in_force]
    if (manifest := manifest_of(in_force)) is not None:
        runs += [run for run in map(read, set(marked) - {run_id}) if manifest_of(run) == manifest]
    # the night's date is the warehouse's own, and in the westernmost zone its day ends 12 hours after that of UTC
    day_is_over = datetime.combine(date.fromisoformat(night), time(), UTC) + timedelta(days=1, hours=12)
    return min([day_is_over, *filter(None, map(began_at, runs))])


def _may_hold(group: pq.RowGroupMetaData, bin_ids: list[str]) -> bool:
    columns = (group.column(index) for index in range(group.num_columns))
    statistics = next(column for column in columns if column.path_in_schema == "bin_id").statistics
    if statistics is None or not statistics.has_min_max:
        return True
    first = bisect_left(bin_ids, statistics.min)
    return first < len(bin_ids) and bin_ids[first] <= statistics.max
