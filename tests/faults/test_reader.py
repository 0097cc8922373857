"""The suite's reader sees what it must see: a night without some of its rows is no night."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.recount import COUNTED_SCHEMA
from tests.faults.disturbed_runs import ROOT, Reader, is_whole, read_views
from tests.night import write_nights


@pytest.fixture
def night(tmp_path: Path) -> Path:
    write_nights(tmp_path, ["2026-03-01"], num_bins=60)
    views = (ROOT / "jobs" / "views.sql").read_text()
    (tmp_path / "views.sql").write_text(views.replace("{output_uri}", str(tmp_path)))
    (tmp_path / "counted").mkdir(exist_ok=True)
    pq.write_table(COUNTED_SCHEMA.empty_table(), tmp_path / "counted" / "_schema.parquet")
    assert is_whole(read_views(str(tmp_path)), 60)
    return tmp_path


def replace(folder: Path, table: str, rows: pa.Table) -> None:
    part, *others = (folder / table).rglob("*.parquet")
    for other in others:  # of a run that was not committed
        other.unlink()
    pq.write_table(rows, part)


@pytest.mark.parametrize("table", ["results", "recount_plan"])
@pytest.mark.parametrize("change", ["none", "one short", "one twice"])
def test_a_night_that_is_not_whole_is_seen(night: Path, table: str, change: str) -> None:
    rows = read_views(str(night))[table].drop_columns(["audit_date"])
    kept = {"none": rows[:0], "one short": rows[1:], "one twice": pa.concat_tables([rows[1:], rows[1:2]])}[change]
    replace(night, table, kept)
    assert not is_whole(read_views(str(night)), 60)


def test_a_summary_of_fewer_bins_is_seen_and_nothing_at_all_is_whole(night: Path, tmp_path: Path) -> None:
    assert not is_whole(read_views(str(night)), 61)
    assert is_whole(read_views(str(tmp_path / "nothing")), 60)


def test_a_summary_without_parts_is_seen_early(night: Path) -> None:
    for part in (night / "results").rglob("*.parquet"):
        part.unlink()
    reader = Reader(str(night), 60)
    reader.start()
    deadline = time.monotonic() + 60
    while not reader.num_reads and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reader.stop() > 0
