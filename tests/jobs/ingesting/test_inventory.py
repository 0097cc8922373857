from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.ingesting import inventory
from jobs.ingesting.keys import Folder
from jobs.platform.parquet import write_table
from schemas.errors import InputError
from tests.ingested import damaged_parquet

KEYS = pa.table({"bucket": ["b"] * 900, "key": [f"images/{number}.jpg" for number in range(900)]})


@pytest.mark.parametrize("place", [4, 200, 800], ids=["page header", "page", "page"])
def test_a_damaged_inventory_in_parquet_is_named(tmp_path: Path, place: int) -> None:
    uri = damaged_parquet(KEYS.select(["key", "bucket"]), tmp_path / "keys.parquet", place)
    with pytest.raises(
        InputError, match=r"keys\.parquet: expected a Parquet file, found something else or a damaged one"
    ):
        list(inventory._read_parquet._function(uri, Folder("s3://b/images", (".jpg",))))


@pytest.mark.parametrize("damage", ["cut", "noise", "no gzip"])
def test_a_damaged_inventory_in_csv_is_named(tmp_path: Path, damage: str) -> None:
    lines = "\n".join(f'"b","images/{number * 7919}.jpg"' for number in range(20_000)).encode()
    data = gzip.compress(lines)
    middle = len(data) // 2
    data = {"cut": data[:middle], "noise": data[:middle] + b"\0" * 99 + data[middle + 99 :], "no gzip": lines}[damage]
    path = tmp_path / "keys.csv.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"keys\.csv\.gz: expected an S3 Inventory"):
        list(inventory._read_csv._function(str(path), ["bucket", "key"], Folder("s3://b/images", (".jpg",))))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"bucket": [1.5], "key": ["images/a.jpg"]}, "no keys"),
        ({"bucket": ["b"], "key": ["images/a.jpg"], "size": ["many"]}, r"found bucket \(string\).*size \(string\)"),
        (
            {"Bucket": ["b"], "key": ["images/a.jpg"], "Key": ["images/b.jpg"]},
            "each column once, found Bucket, key, Key",
        ),
    ],
)
def test_an_inventory_of_other_columns_is_named(tmp_path: Path, columns: dict[str, list], said: str) -> None:
    uri = str(tmp_path / "keys.parquet")
    write_table(uri, pa.table(columns))
    read = inventory._read_parquet._function(uri, Folder("s3://b/images", (".jpg",)))
    if said == "no keys":
        assert sum(table.num_rows for table in read if isinstance(table, pa.Table)) == 0
        return
    with pytest.raises(InputError, match=rf"keys\.parquet: expected an S3 Inventory.*{said}"):
        list(read)


def test_an_inventory_may_hold_its_texts_as_a_dictionary(tmp_path: Path) -> None:
    uri = str(tmp_path / "keys.parquet")
    texts = {"bucket": ["b", "b"], "key": ["images/a.jpg", "other/b.jpg"]}
    write_table(uri, pa.table({name: pa.array(each).dictionary_encode() for name, each in texts.items()}))
    (found,) = [
        rows
        for rows in inventory._read_parquet._function(uri, Folder("s3://b/images", (".jpg",)))
        if isinstance(rows, pa.Table)
    ]
    assert found["uri"].to_pylist() == ["s3://b/images/a.jpg"]


def test_of_an_inventory_neither_old_versions_nor_deleted_objects_count(tmp_path: Path) -> None:
    stems, latest, deleted = ["1", "old", "gone"], [True, False, True], [False, False, True]
    rows = zip(stems, latest, deleted, strict=True)
    lines = [f'"b","images/{stem}.jpg","{str(last).lower()}","{str(gone).lower()}"\n' for stem, last, gone in rows]
    (tmp_path / "keys.csv").write_text("".join(lines))
    columns = {"bucket": ["b"] * 3, "key": [f"images/{stem}.jpg" for stem in stems]}
    table = pa.table({**columns, "is_latest": latest, "is_delete_marker": deleted})
    pq.write_table(table, tmp_path / "keys.parquet")
    folder, names = Folder("s3://b/images", (".jpg",)), ["bucket", "key", "is_latest", "is_deleted"]
    _, of_csv = inventory._read_csv._function(str(tmp_path / "keys.csv"), names, folder)
    _, of_parquet = inventory._read_parquet._function(str(tmp_path / "keys.parquet"), folder)
    assert of_csv["key"].to_pylist() == of_parquet["key"].to_pylist() == ["1"]


def test_an_inventory_s_keys_of_a_folder_whose_name_only_begins_alike_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "keys.csv").write_text('"b","images/1.jpg"\n"b","images-old/1.jpg"\n"b2","images/2.jpg"\n')
    folder = Folder("s3://b/images", (".jpg",))
    _, found = inventory._read_csv._function(str(tmp_path / "keys.csv"), ["bucket", "key"], folder)
    assert found["uri"].to_pylist() == ["s3://b/images/1.jpg"]


@pytest.mark.parametrize(("place", "anonymous"), [("s3://b/of/keys.csv", True), ("s3://mine/keys.csv", False)])
def test_an_inventory_in_a_bucket_of_one_s_own_is_read_with_one_s_credentials(
    monkeypatch: pytest.MonkeyPatch, place: str, anonymous: bool
) -> None:
    def note(uri: str, *, anonymous: bool) -> None:
        raise InputError(f"anonymous: {anonymous}")

    monkeypatch.setattr(inventory, "open_csv", note)
    with pytest.raises(InputError, match=f"anonymous: {anonymous}"):
        list(
            inventory._read_csv._function(place, ["bucket", "key"], Folder("s3://b/images", (".jpg",), anonymous=True))
        )
