from __future__ import annotations

from pathlib import Path

from jobs.platform.parquet import parquet_files, write_table
from tests.ingested import LINES


def test_a_parquet_file_s_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("a.PARQUET", "b.parquet"):
        write_table(str(tmp_path / name), LINES)
    assert [entry.uri.rpartition("/")[2] for entry in parquet_files(str(tmp_path))] == ["a.PARQUET", "b.parquet"]
    assert len(parquet_files(str(tmp_path / "a.PARQUET"))) == 1
