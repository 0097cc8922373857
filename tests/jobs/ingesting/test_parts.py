from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.ingesting import parts
from jobs.ingesting.keys import KEYS_SCHEMA
from jobs.ingesting.matching import match_range
from jobs.ingesting.parts import Target, begin, finish, write_part
from jobs.platform import storage
from jobs.platform.parquet import parquet_files, read_table, write_table
from schemas.errors import GateError, InputError
from tests.ingested import LINES, RECORD, make_target, matched_bins, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_records(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return make_target(tmp_path)


def test_a_part_tells_of_records_that_did_not_come_and_rejects_those_that_are_none(
    folder: Path, target: Target
) -> None:
    report = write_part(matched_bins(folder, "bad", "good", "gone", "loop"), target)
    assert report.num_bins == 1
    assert report.rejects == {"no_record": 2, "unreadable_record": 2}
    (line,) = report.unfetched
    assert re.match(rf"{re.escape(str(folder))}/loop\.json: \S", line)
    rejects = read_table(f"{target.rejects_uri}/part-00000-00000.parquet")
    assert set(rejects["key"].to_pylist()) == {"bad", "gone"}


def test_a_manifest_is_on_disk_before_it_is_declared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(str(tmp_path / "m"), str(tmp_path / "m.rejects"), str(tmp_path), "2026-11-22", False)
    mark = parts.begin(target, replace=False)
    settled: list[bool] = []
    monkeypatch.setattr(storage, "settle", lambda uri: settled.append(storage.exists(mark)))
    parts.finish(target, mark, {})
    assert (settled, storage.exists(mark)) == ([True], False)


def test_an_ingest_that_was_overtaken_leaves_the_folder_marked_as_incomplete(target: Target) -> None:
    first, second = begin(target, replace=False), begin(target, replace=False)
    finish(target, second, {})
    with pytest.raises(GateError, match="another ingest"):
        finish(target, first, {})
    with pytest.raises(InputError, match="being written or cut short"):
        parquet_files(target.manifest_uri)


def test_of_two_ingests_at_a_time_neither_is_whole(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = begin(target, replace=False), begin(target, replace=False)
    for mark in (first, second):  # the first one finishes first, though the second one has cleared its parts
        with pytest.raises(GateError, match="another ingest"):
            finish(target, mark, {})
    # and two that began at the same moment
    storage.delete([first, second])
    monkeypatch.setattr(parts, "_marks", lambda target: [])
    third, fourth = begin(target, replace=True), begin(target, replace=True)
    monkeypatch.undo()
    for mark in (third, fourth):
        with pytest.raises(GateError, match="another ingest"):
            finish(target, mark, {})
    with pytest.raises(InputError, match="being written or cut short"):
        parquet_files(target.manifest_uri)
    finish(target, begin(target, replace=False), {})  # the same command again


def test_an_ingest_that_finishes_leaves_the_mark_of_one_that_has_just_begun(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, write = begin(target, replace=False), storage.write_bytes

    def write_and_begin(uri: str, data: bytes) -> None:
        write(uri, data)
        if uri == f"{target.manifest_uri}.json":
            monkeypatch.undo()
            begin(target, replace=True)

    monkeypatch.setattr(parts.storage, "write_bytes", write_and_begin)
    finish(target, first, {})
    with pytest.raises(InputError, match="being written or cut short"):
        parquet_files(target.manifest_uri)


def test_a_manifest_that_was_finished_meanwhile_is_left_as_it_is(target: Target) -> None:
    parts.check_target(target, replace=False)
    write_table(f"{target.manifest_uri}/part-00000-00000.parquet", LINES)
    with pytest.raises(GateError, match="another ingest has finished a manifest there meanwhile"):
        begin(target, replace=False)
    assert [entry.uri for entry in parquet_files(target.manifest_uri)] == [
        f"{target.manifest_uri}/part-00000-00000.parquet"
    ]


def test_a_replaced_manifest_leaves_none_of_its_rejects(target: Target) -> None:
    for uri in (target.manifest_uri, target.rejects_uri):
        write_table(f"{uri}/part-00000-00000.parquet", LINES)
    mark = begin(target, replace=True)
    left = [*storage.list_objects(target.manifest_uri), *storage.list_objects(target.rejects_uri)]
    assert [entry.uri for entry in left] == [mark]


def test_a_range_of_more_bins_than_a_file_holds_loses_none(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROW_GROUP_ROWS", 2)
    stems = [f"{number:05d}" for number in range(7)]
    for stem in stems:
        (tmp_path / f"{stem}.json").write_bytes(RECORD)
    images, records = (
        pa.Table.from_pylist(
            [{"key": s, "uri": f"{tmp_path}/{s}.{suffix}", "num_bytes": 5, "etag": None} for s in stems],
            schema=KEYS_SCHEMA,
        )
        for suffix in ("jpg", "json")
    )
    matched, _, *slices = match_range._function(0, 3, 1, images, records)
    assert (matched.num_bins, [rows.num_rows for rows in slices]) == (7, [3, 3, 1])
    assert sum(write_part(rows, target).num_bins for rows in slices) == 7
    files = [entry.uri for entry in parquet_files(target.manifest_uri)]
    assert [row["bin_id"] for uri in files for row in read_table(uri).to_pylist()] == stems


def test_a_former_manifest_that_is_cleared_halfway_is_no_manifest(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(f"{target.manifest_uri}/part-00000-00000.parquet", LINES)

    def die(uris: Iterable[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parts.storage, "delete", die)
    with pytest.raises(KeyboardInterrupt):
        begin(target, replace=True)
    with pytest.raises(InputError, match="being written or cut short"):
        parquet_files(target.manifest_uri)
