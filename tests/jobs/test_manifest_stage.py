import io
import shutil
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.platform.cluster import connect
from jobs.platform.parquet import read_row_group, write_table
from jobs.stages import manifest as stages_manifest
from jobs.stages.manifest import check_manifest
from jobs.stages.manifest_file import report_file
from jobs.stages.worklist import shard_rows, temporary_worklist, write_worklist
from schemas.errors import InputError
from schemas.manifest import MANIFEST_SCHEMA
from tests.dump import NIGHT, manifest_table

pytestmark = pytest.mark.ray


def _write(folder: Path, *tables: pa.Table) -> str:
    uri = str(folder / "manifest")
    for index, table in enumerate(tables):
        write_table(f"{uri}/part-{index}.parquet", table)
    return uri


def _rows(count: int, **columns: list) -> pa.Table:
    return manifest_table("/photos", [number % 8 for number in range(count)], **columns)


def _lines(*lines: tuple[str | None, int | None]) -> list[dict]:
    return [{"sku": sku, "name": None, "quantity": quantity} for sku, quantity in lines]


@pytest.mark.usefixtures("ray_cluster")
def test_the_records_of_all_files_are_counted_by_class(tmp_path: Path) -> None:
    second = manifest_table("/photos", [0, 51, 2**31 - 1], bin_id=["x", "y", "z"])
    manifest = check_manifest(_write(tmp_path, _rows(10), second), None)
    assert manifest.class_histogram(3).tolist() == [3, 2, 1, 7]
    assert manifest.class_histogram(50).tolist() == [3, 2, *[1] * 6, *[0] * 42, 2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_rows(3).drop_columns(["expected_qty", "bin_id"]), r"bin_id: expected string, found no such column"),
        (
            _rows(3).drop_columns(["expected_qty", "bin_id"]),
            r"expected_qty: expected int32, found no such column; add it",
        ),
        (
            _rows(3).set_column(2, "expected_qty", pa.array(["1", "2", "3"])),
            r"part-0\.parquet: column expected_qty: expected int32, found string; give it that type",
        ),
        (
            _rows(3, expected_qty=[0, 1, -2]),
            r"row 3: expected_qty: expected 0 or more, found -2; correct it, or leave the row out$",
        ),
        (
            _rows(3, skus=[[], *[_lines(("S1", 2), ("S2", -5))] * 2]),
            r"row 2: skus\[\]\.quantity: .* 0 or more, found -5 \(and 1 r",
        ),
        (
            _rows(3, skus=[[], [], _lines(("S1", None))]),
            r"row 3: skus\[\]\.quantity: expected 0 or more, found none; correct it, or leave the row out$",
        ),
        (
            _rows(3, skus=[_lines(("S1", 2), (None, 1)), [], []]),
            r"row 1: skus\[\]\.sku: expected a value, found none; correct it, or leave the row out$",
        ),
        (
            _rows(3, bin_id=["a", "b", "a"]),
            r"'a' stands in 2 rows \(part-0\.parquet row 1, part-0\.parquet row 3\); every bin",
        ),
        (_rows(3, bin_id=["a", "", "c"]), r"row 2: bin_id: expected a text"),
        (_rows(3).append_column("zone", pa.array(["a", "b", "c"])), r"column zone: expected once, found 2 times"),
        (_rows(0), r"expected at least one bin, found no rows"),
        (_rows(3).replace_schema_metadata(None), r"no audit_date in the file metadata"),
        (_rows(3).replace_schema_metadata({"audit_date": "20261122"}), r"expected YYYY-MM-DD of .*, found '20261122'"),
        (_rows(3).replace_schema_metadata({"audit_date": "9999-12-31"}), r"the years 2000 to 2100, found '9999-12-31'"),
    ],
    ids=[
        "missing-key",
        "missing-quantity",
        "mistyped",
        "negative",
        "negative-line",
        "no-quantity",
        "no-sku",
        "twice",
        "empty-key",
        "column-twice",
        "empty",
        "no-night",
        "odd-night",
        "no-such-night",
    ],
)
def test_a_broken_manifest_is_refused_by_file_row_and_field(
    ray_cluster: None, tmp_path: Path, table: pa.Table, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_manifest(_write(tmp_path, table), None)


def test_a_null_quantity_is_named(ray_cluster: None, tmp_path: Path) -> None:
    schema = pa.schema([pa.field(field.name, field.type) for field in MANIFEST_SCHEMA])
    table = pa.Table.from_pylist([{**row, "expected_qty": None} for row in _rows(2).to_pylist()], schema=schema)
    with pytest.raises(InputError, match=r"row 1: expected_qty: expected a value, found none \(and 1 rows more\)"):
        check_manifest(_write(tmp_path, table), date(2026, 11, 22))


def test_a_bin_in_two_files_is_found(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"bin_id '00001' stands in 2 rows \(part-0\.parquet row 2, part-1\.parquet row 1\)"
    ):
        check_manifest(_write(tmp_path, _rows(2), _rows(4).slice(1, 2)), None)


def test_a_flag_that_disagrees_with_the_manifest_is_an_error(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the manifest is of {NIGHT}, --audit-date says 2026-01-01"):
        check_manifest(_write(tmp_path, _rows(2)), date(2026, 1, 1))


def test_something_else_than_parquet_is_named(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_text("bin_id,image_uri")
    with pytest.raises(InputError, match=r"manifest\.parquet: expected a Parquet file, .*; write it again"):
        check_manifest(str(tmp_path / "manifest.parquet"), None)
    with pytest.raises(InputError, match="found none"):
        check_manifest(str(tmp_path / "nowhere"), None)


def test_the_worklist_holds_every_row_once_in_shards_of_fixed_size(ray_cluster: None, tmp_path: Path) -> None:
    first, second = _rows(300), _rows(700).slice(300)
    # other integer and string types, as pandas and Spark write them
    wide = second.set_column(0, "bin_id", second["bin_id"].cast(pa.large_string()))
    manifest = check_manifest(_write(tmp_path, first, wide), None)
    shards = write_worklist(manifest, str(tmp_path / "worklist"), image_size=0)
    assert [shard.num_rows for shard in shards] == [256, 44, 256, 144]
    ids = [bin_id for shard in shards for bin_id in read_row_group(shard.uri, shard.row_group)["bin_id"].to_pylist()]
    assert ids == [f"{number:05d}" for number in range(700)]


@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_a_manifest_that_changes_after_its_check_is_refused(ray_cluster: None, tmp_path: Path, change: str) -> None:
    uri = _write(tmp_path, _rows(5))
    manifest = check_manifest(uri, None)
    Path(f"{uri}/part-0.parquet").unlink()
    if change == "rewritten":
        _write(tmp_path, _rows(5, expected_qty=[1, 1, 1, 1, 1]))
    # joined as jobs do, which is what lets a task's own error through
    with (
        connect(),
        pytest.raises(InputError, match=r"part-0\.parquet: expected the file that was checked a moment ago"),
    ):
        write_worklist(manifest, str(tmp_path / "worklist"), image_size=0)
    assert not list((tmp_path / "worklist").glob("*"))


def test_a_manifest_that_is_written_anew_while_it_is_checked_is_refused(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = _write(tmp_path, _rows(5))

    def write_anew(*_: object, **__: object) -> list[tuple[str, int]]:
        shutil.copy(f"{uri}/part-0.parquet", f"{uri}/part-1.parquet")
        return []

    monkeypatch.setattr(stages_manifest, "find_duplicates", write_anew)
    with pytest.raises(InputError, match="was written anew while it was read"):
        check_manifest(uri, None)


def test_two_jobs_with_one_output_keep_their_own_worklists(ray_cluster: None, tmp_path: Path) -> None:
    manifest = check_manifest(_write(tmp_path, _rows(5)), None)
    with temporary_worklist(manifest, str(tmp_path / "out"), image_size=0) as shards:
        with temporary_worklist(manifest, str(tmp_path / "out"), image_size=0):
            pass
        assert read_row_group(shards[0].uri, shards[0].row_group).num_rows == 5
    assert not list((tmp_path / "out").iterdir())


def test_what_a_killed_worker_was_writing_goes_with_the_worklist(ray_cluster: None, tmp_path: Path) -> None:
    manifest = check_manifest(_write(tmp_path, _rows(5)), None)
    with temporary_worklist(manifest, str(tmp_path / "out"), image_size=0) as shards:
        Path(f"{shards[0].uri}#1").write_bytes(b"half of it")
    assert not list((tmp_path / "out").iterdir())


def test_the_fingerprint_follows_the_content_and_not_the_place(ray_cluster: None, tmp_path: Path) -> None:
    here = check_manifest(_write(tmp_path / "a", _rows(5)), None)
    there = check_manifest(_write(tmp_path / "b", _rows(5)), None)
    longer = check_manifest(_write(tmp_path / "c", _rows(6)), None)
    other = check_manifest(_write(tmp_path / "d", _rows(5, expected_qty=[1, 1, 1, 1, 1])), None)
    assert here.fingerprint == there.fingerprint
    assert len({here.fingerprint, longer.fingerprint, other.fingerprint}) == 3


def test_a_file_of_many_rows_is_reported_as_one() -> None:
    values, file = [None, *[1.0] * 65_537, -1.0], io.BytesIO()
    pq.write_table(manifest_table("/photos", [0] * 65_536 + [1, 1, 2], unit_value=values), file)
    report = report_file("part-0.parquet", file.getvalue())
    assert report.num_rows == 65_539 and report.records[:4].tolist() == [65_536, 2, 1, 0]
    assert not report.has_all_unit_values
    assert report.problems[0].startswith("part-0.parquet: row 65539: unit_value: ")


def test_a_manifest_has_all_unit_values_only_where_all_its_files_have(ray_cluster: None, tmp_path: Path) -> None:
    valued, bare = _rows(3, unit_value=[1.0] * 3), _rows(5).slice(3)
    assert check_manifest(_write(tmp_path / "a", valued), None).has_all_unit_values
    assert not check_manifest(_write(tmp_path / "b", valued, bare), None).has_all_unit_values


def test_unit_values_that_name_no_currency_are_in_another_one(ray_cluster: None, tmp_path: Path) -> None:
    def currencies(name: str, **columns: list) -> list[str | None]:
        return check_manifest(_write(tmp_path / name, _rows(3, **columns)), None).currencies

    assert currencies("a", unit_value=[1.0, 2.0, 3.0], currency=["EUR", None, "EUR"]) == [None, "EUR"]
    assert currencies("b", unit_value=[1.0, None, 3.0], currency=["EUR", "JPY", "EUR"]) == ["EUR"]
    assert currencies("c", unit_value=[1.0, 2.0, 3.0]) == [None]
    assert currencies("d") == []


def test_shards_grow_with_the_manifest_but_stay_small() -> None:
    assert [shard_rows(count, image_size=0) for count in (1, 10_000, 2_000_000, 100_000_000)] == [256, 256, 512, 2048]
    assert [shard_rows(100_000_000, image_size=side) for side in (224, 600, 20_000)] == [2048, 994, 1]
