import gzip
import io
import json
from collections import Counter
from pathlib import Path
from urllib.parse import quote_plus

import boto3
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import ingest
from jobs.ingesting import exchange
from jobs.platform import storage
from jobs.platform.parquet import open_parquet, parquet_files, read_table, write_table
from jobs.platform.uris import join
from schemas.abid import MAX_RECORD_BYTES
from schemas.arrow import file_metadata
from schemas.manifest import MANIFEST_SCHEMA, REJECTS_SCHEMA

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def abid_record(*lines: tuple[str, int], total: int | None = None) -> bytes:
    entries = {sku: {"asin": sku, "name": f"name of {sku}", "quantity": quantity} for sku, quantity in lines}
    total = sum(quantity for _, quantity in lines) if total is None else total
    return json.dumps({"BIN_FCSKU_DATA": entries, "EXPECTED_QUANTITY": total}).encode()


def put(place: str, objects: dict[str, bytes]) -> None:
    for name, data in objects.items():
        storage.write_bytes(join(place, name), data)


def put_bins(place: str, *stems: str) -> None:
    for stem in stems:
        put(place, {f"images/{stem}.jpg": b"photo", f"records/{stem}.json": abid_record(("B1", 2))})


def run(place: str, *flags: str, records: str = "records", manifest: str = "manifest") -> int:
    return ingest.main(
        [
            *("--images-uri", join(place, "images"), "--records-uri", join(place, records)),
            *("--manifest-uri", join(place, manifest), "--audit-date", "2026-01-31", *flags),
        ]
    )


def read(place: str, name: str = "manifest") -> list[dict]:
    files = [entry.uri for entry in parquet_files(join(place, name))]
    return [row for uri in files for row in read_table(uri).to_pylist()]


def rejects(place: str) -> list[tuple[str, str, str]]:
    return sorted((row["key"], row["kind"], row["reason"]) for row in read(place, "manifest.rejects"))


def test_a_bin_is_a_photo_and_a_record_of_one_stem(place: str) -> None:
    put(place, {"images/00123.jpg": b"photo", "records/00123.json": abid_record(("B2", 3), ("B1", 1))})
    assert run(place) == 0
    (row,) = read(place)
    etag = row.pop("image_etag")
    assert etag == next(storage.list_objects(join(place, "images"))).etag
    assert row == {
        **{field.name: None for field in MANIFEST_SCHEMA if field.name != "image_etag"},
        "bin_id": "00123",
        "image_uri": join(place, "images", "00123.jpg"),
        "image_bytes": 5,
        "expected_qty": 4,
        "num_skus": 2,
        "skus": [
            {"sku": "B2", "name": "name of B2", "quantity": 3},
            {"sku": "B1", "name": "name of B1", "quantity": 1},
        ],
        "group": "1",
        "record_inconsistent": False,
    }
    assert rejects(place) == []


def test_every_image_and_record_is_a_bin_or_a_reject(place: str) -> None:
    put_bins(place, "00001", "00002", "shelf/A 1%é", "both", "two-images", "two-records")
    put(
        place,
        {
            "images/README.txt": b"no photo",
            "images/alone.PNG": b"photo",
            "images/other/two-images.webp": b"photo",
            "records/no-photo.json": abid_record(),
            "records/other/two-records.json": abid_record(),
            "images/bad.jpeg": b"photo",
            "records/bad.json": b'{"BIN_FCSKU_DATA": {"B1": {"quantity": -1}}}',
            "images/huge.jpg": b"photo",
            "records/huge.json": b" " * (MAX_RECORD_BYTES + 1),
            "images/odd.jpg": b"",
            "records/odd.json": abid_record(("B1", 2), total=5),
            "records/notes.txt": b"",
        },
    )
    assert run(place) == 0
    bins = read(place)
    assert [row["bin_id"] for row in bins] == ["00001", "00002", "A 1%é", "both", "odd"]
    assert [row["image_uri"] for row in bins][2] == join(place, "images", "shelf/A 1%é.jpg")
    assert [(row["expected_qty"], row["record_inconsistent"]) for row in bins][-1] == (5, True)
    assert rejects(place) == [
        ("alone", "image", "no_record"),
        ("bad", "image", "no_record"),
        ("bad", "record", "unreadable_record"),
        ("huge", "image", "no_record"),
        ("huge", "record", "unreadable_record"),
        ("no-photo", "record", "no_image"),
        ("two-images", "image", "duplicate_image"),
        ("two-images", "image", "duplicate_image"),
        ("two-images", "record", "no_image"),
        ("two-records", "image", "no_record"),
        ("two-records", "record", "duplicate_record"),
        ("two-records", "record", "duplicate_record"),
    ]
    details = {row["key"]: row["detail"] for row in read(place, "manifest.rejects") if row["kind"] == "record"}
    assert "quantity: expected a whole number from 0 to 2147483647, found -1" in details["bad"]
    assert "expected at most 10,485,760 bytes" in details["huge"]


def test_the_files_conform_and_say_which_night_they_are_of(place: str) -> None:
    put_bins(place, "1", "2")
    assert run(place) == 0
    (file,) = parquet_files(join(place, "manifest"))
    schema = open_parquet(file.uri).schema_arrow
    assert schema.equals(MANIFEST_SCHEMA)
    assert schema.field("bin_id").metadata == MANIFEST_SCHEMA.field("bin_id").metadata
    assert file_metadata(schema) == {
        "audit_date": "2026-01-31",
        "images_uri": join(place, "images"),
        "format_version": "1",
    }
    (file,) = parquet_files(join(place, "manifest.rejects"))
    assert open_parquet(file.uri).schema_arrow.equals(REJECTS_SCHEMA)


def test_many_bins_in_many_ranges_and_files_come_out_sorted_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems = [f"{number:05d}" for number in range(0, 9000, 3)]
    put_bins(str(tmp_path), *stems)
    put(str(tmp_path), {"images/04000.jpg": b"photo", "records/08500.json": abid_record()})
    monkeypatch.setattr(exchange, "PARTITION_ROWS", 1000)
    monkeypatch.setattr(exchange, "SPLIT_CHUNKS", 1)
    assert run(str(tmp_path)) == 0
    bins = read(str(tmp_path))
    assert [row["bin_id"] for row in bins] == stems
    assert rejects(str(tmp_path)) == [("04000", "image", "no_record"), ("08500", "record", "no_image")]
    files = parquet_files(str(tmp_path / "manifest"))
    assert len(files) > 2
    assert all(entry.uri.endswith(".parquet") for entry in storage.list_objects(str(tmp_path / "manifest")))
    assert all(pq.ParquetFile(entry.uri).metadata.row_group(0).num_rows <= 1024 for entry in files)
    query = f"SELECT count(*), count(DISTINCT bin_id) FROM read_parquet('{tmp_path}/manifest/*.parquet')"
    assert duckdb.sql(query).fetchall() == [(3000, 3000)]


def test_neighbouring_numbers_are_one_group_and_other_bins_go_by_sku(tmp_path: Path) -> None:
    groups = {"1": "0", "00099": "0", "00100": "1", "123456": "1234", "A-1": "B1", "١٢٣": "B1"}
    put_bins(str(tmp_path), *groups)
    assert run(str(tmp_path)) == 0
    assert {row["bin_id"]: row["group"] for row in read(str(tmp_path))} == groups


def test_settings_and_versions_lie_beside_the_manifest_and_not_in_it(place: str) -> None:
    put_bins(place, "00001")
    assert run(place) == 0
    facts = json.loads(storage.read_bytes(join(place, "manifest.json")))
    assert facts["config"]["images_uri"] == join(place, "images")
    assert (facts["audit_date"], facts["counts"]["bins"]) == ("2026-01-31", 1)
    assert facts["versions"]["ray"]
    assert "git_commit" in facts
    first = [storage.read_bytes(entry.uri) for entry in parquet_files(join(place, "manifest"))]
    assert run(place, "--replace") == 0
    assert [storage.read_bytes(entry.uri) for entry in parquet_files(join(place, "manifest"))] == first


def test_a_manifest_is_replaced_only_when_asked_to(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(place, "1", "2")
    put(place, {"records/alone.json": abid_record()})
    assert run(place) == 0
    storage.delete([join(place, "images", "2.jpg"), join(place, "records", "alone.json")])
    assert run(place) == 2
    assert "a manifest is already there; choose another place or give --replace" in capsys.readouterr().err
    assert [row["bin_id"] for row in read(place)] == ["1", "2"]
    assert run(place, "--replace") == 0
    assert [row["bin_id"] for row in read(place)] == ["1"]
    assert rejects(place) == [("2", "record", "no_image")]


def test_a_night_whose_photos_are_late_is_not_begun(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(place, "1", "2")
    put(place, {"records/late.json": abid_record()})
    assert run(place, "--max-missing-share", "0.33") == 1
    assert (
        "1 of 3 records have no photo there, or several of one name, and --max-missing-share allows 33.0%"
        in capsys.readouterr().err
    )
    assert contents(place) == {}
    assert run(place, "--max-missing-share", "0.34") == 0
    assert rejects(place) == [("late", "record", "no_image")]


def contents(place: str) -> dict[str, bytes]:
    """Of the manifest, its rejects and the facts beside it."""
    uris = [entry.uri for entry in storage.list_objects(place) if "/manifest" in entry.uri.removeprefix(place)]
    return {uri: storage.read_bytes(uri) for uri in uris}


def test_a_manifest_stays_where_nothing_can_be_put_in_its_place(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(place, "1", "2")
    put(place, {"images/alone.jpg": b"photo", "other/x.json": abid_record(("B1", 1))})
    put(place, {f"none/{stem}.json": b"{}" for stem in ("1", "2")})
    put(place, {"other.csv": b"bin_id,sku,quantity\nx,S1,1\n", "bad.csv": b"bin_id,sku,quantity\n1,S1,many\n"})
    assert run(place) == 0
    before = contents(place)
    assert len(before) == 3
    for records, found in (
        ("other", "other/x.json: no image of this key"),
        ("none", "none/1.json: BIN_FCSKU_DATA: expected"),
        ("other.csv", "other.csv, row 2: no image of this key"),
        ("bad.csv", "bad.csv, row 2: row 2: quantity: expected"),
    ):
        assert run(place, "--replace", records=records) == 2
        error = capsys.readouterr().err
        assert "no image has a readable record of its stem" in error and "nothing was written" in error
        assert found in error
        assert contents(place) == before
    assert [row["bin_id"] for row in read(place)] == ["1", "2"]


def test_a_manifest_cut_short_is_refused_by_readers_and_written_anew_by_the_same_command(place: str) -> None:
    put_bins(place, "1", "2")
    assert run(place) == 0
    put(place, {"manifest/_incomplete": b"of a run that was killed", "manifest/part-00007-00000.parquet": b"PAR1"})
    with pytest.raises(storage.InputError, match="being written or cut short"):
        parquet_files(join(place, "manifest"))
    assert run(place) == 0
    assert [row["bin_id"] for row in read(place)] == ["1", "2"]


def test_files_of_others_are_never_deleted(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(place, "1")
    put(place, {"manifest/sub/sales.parquet": b"theirs"})
    assert run(place, "--replace") == 2
    assert "expected a folder of this job's own, found" in capsys.readouterr().err
    assert storage.read_bytes(join(place, "manifest/sub/sales.parquet")) == b"theirs"


WMS_CSV = """\
bin_id,sku,quantity,name,zone,unit_value,currency,photo_at,moves_since_photo,ignored
00007,S1,2,"Soap, 3 pieces",Z1,1.50,EUR,2026-01-30T22:00:00+01:00,0,x
A-1,S2,1,,Z2,10,EUR,,,x
00007,S2,1,Lamp,,3.00,EUR,2026-01-30T21:00:00Z,,x
empty,,0,,Z1,,,,,x
"""


def test_an_export_gives_bins_from_several_lines_each(place: str) -> None:
    put(place, {f"images/{stem}.jpg": b"photo" for stem in ("00007", "A-1", "empty", "none")})
    put(place, {"export.csv": WMS_CSV.encode()})
    assert run(place, records="export.csv") == 0
    mixed, single, empty = read(place)
    assert (mixed["bin_id"], mixed["expected_qty"], mixed["num_skus"], mixed["sku"]) == ("00007", 3, 2, None)
    assert mixed["skus"] == [
        {"sku": "S1", "name": "Soap, 3 pieces", "quantity": 2},
        {"sku": "S2", "name": "Lamp", "quantity": 1},
    ]
    assert (mixed["unit_value"], mixed["currency"], mixed["zone"]) == (2.0, "EUR", "Z1")
    assert mixed["photo_at"].isoformat() == "2026-01-30T21:00:00+00:00"
    assert (mixed["moves_since_photo"], mixed["group"], mixed["record_inconsistent"]) == (0, "S1", False)
    assert (single["bin_id"], single["sku"], single["num_skus"], single["group"]) == ("A-1", "S2", 1, "S2")
    assert (empty["expected_qty"], empty["num_skus"], empty["skus"], empty["group"]) == (0, 0, [], "empty")
    assert rejects(place) == [("none", "image", "no_record")]


@pytest.mark.parametrize("form", ["csv.gz", "semicolons.csv", "parquet", "folder.parquet", "bom.csv"])
def test_exports_come_in_several_forms(tmp_path: Path, form: str) -> None:
    put(str(tmp_path), {f"images/{stem}.jpg": b"photo" for stem in ("00007", "A-1")})
    table = pa.table({"quantity": [2, 1], "bin_id": ["00007", "A-1"], "sku": ["S1", "S2"]})
    text = "quantity,bin_id,sku\n2,00007,S1\n1,A-1,S2\n"
    name = f"export.{form}"
    if form == "parquet":
        pq.write_table(table, tmp_path / name)
    elif form == "folder.parquet":
        for index in range(2):
            write_table(str(tmp_path / name / f"{index}.parquet"), table.slice(index, 1))
    elif form == "csv.gz":
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    else:
        text = text.replace(",", ";") if form == "semicolons.csv" else "\ufeff" + text
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert run(str(tmp_path), records=name) == 0
    assert [(row["bin_id"], row["expected_qty"], row["sku"]) for row in read(str(tmp_path))] == [
        ("00007", 2, "S1"),
        ("A-1", 1, "S2"),
    ]


def test_an_export_may_name_its_photos(place: str) -> None:
    names = ("2026/cam1-0001.jpg", "2026/cam1-0002.jpg", "2026/cam2-0001.jpg", "shared.jpg")
    put(place, {f"images/{name}": b"photo" for name in names})
    lines = [
        "bin_id,sku,quantity,image_uri",
        "A,S1,1,2026/cam1-0001.jpg",
        f"B,S1,2,{place}/images/2026/cam2-0001.jpg",
        "A,S2,1,",
        "C,S1,3,shared.jpg",
        "D,S1,4,shared.jpg",
        "E,S1,5,gone.jpg",
        "F,S1,6,",
        "G,S1,7,http://elsewhere/1.jpg",
    ]
    put(place, {"export.csv": "\n".join(lines).encode()})
    assert run(place, records="export.csv") == 0
    assert [(row["bin_id"], row["expected_qty"], row["image_uri"].rpartition("/")[2]) for row in read(place)] == [
        ("A", 2, "cam1-0001.jpg"),
        ("B", 2, "cam2-0001.jpg"),
    ]
    assert Counter((kind, reason) for _, kind, reason in rejects(place)) == {
        ("image", "no_record"): 2,
        ("record", "duplicate_record"): 2,
        ("record", "no_image"): 1,
        ("record", "unreadable_record"): 2,
    }


def test_a_bin_with_one_bad_line_is_rejected_whole_and_the_line_is_named(tmp_path: Path) -> None:
    lines = [
        "bin_id,sku,quantity,zone,unit_value,photo_at",
        "good,S1,1.0,Z1,,",
        "negative,S1,5,Z1,,",
        "negative,S2,-1,Z1,,",
        "text,S1,many,Z1,,",
        "blank,S1,,Z1,,",
        "fraction,S1,1.5,Z1,,",
        "huge,S1,2147483648,Z1,,",
        "sum,S1,2147483647,Z1,,",
        "sum,S1,1,Z1,,",
        "no-sku,,3,Z1,,",
        "zones,S1,1,Z1,,",
        "zones,S2,1,Z2,,",
        'value,S1,1,Z1,"1,50",',
        "time,S1,1,Z1,,2026-01-30 22:00:00",
        ",S1,1,Z1,,",
    ]
    (tmp_path / "export.csv").write_text("\n".join(lines), encoding="utf-8")
    put(str(tmp_path), {"images/good.jpg": b"photo"})
    assert run(str(tmp_path), records="export.csv") == 0
    assert [row["bin_id"] for row in read(str(tmp_path))] == ["good"]
    found = read(str(tmp_path), "manifest.rejects")
    assert {row["reason"] for row in found} == {"unreadable_record"}
    whole = "expected a whole number from 0 to 2147483647"
    expected = {
        "negative": f"row 4: quantity: {whole}, found '-1'",
        "text": f"row 5: quantity: {whole}, found 'many'",
        "blank": f"row 6: quantity: {whole}, found nothing",
        "fraction": f"row 7: quantity: {whole}, found '1.5'",
        "huge": f"row 8: quantity: {whole}, found '2147483648'",
        "sum": "quantity: expected a sum up to 2147483647, found 2147483648",
        "no-sku": "row 11: sku: expected one where quantity is 3, found nothing",
        "zones": "row 13: zone: expected 'Z1' as in the bin's lines before, found 'Z2'",
        "value": "row 14: unit_value: expected a number of 0 or more with a decimal point, found '1,50'",
        "time": "row 15: photo_at: expected a time with its UTC offset",
        "row 16": "bin_id: expected a value, found nothing",
    }
    assert {row["key"] for row in found} == set(expected)
    for row in found:
        assert expected[row["key"]] in row["detail"]


@pytest.mark.s3
@pytest.mark.parametrize("form", ["Parquet", "CSV", "file"])
def test_an_inventory_stands_in_for_listing(bucket: str, form: str) -> None:
    put_bins(bucket, "1", "2 é+%")
    put(bucket, {"images/not-in-the-inventory.jpg": b"photo", "else/1.jpg": b"photo"})
    name = bucket.removeprefix("s3://")
    keys = ["images/1.jpg", "images/2 é+%.jpg", "else/1.jpg", "records/1.json", "records/2 é+%.json", "images/old.jpg"]
    latest = [True] * 5 + [False]
    files = []
    if form == "CSV":
        rows = [
            f'"{name}","{quote_plus(key)}","v1","{str(is_latest).lower()}","false","5","abc"'
            for key, is_latest in zip(keys, latest, strict=True)
        ]
        for index, part in enumerate((rows[:3], rows[3:])):
            files.append(f"inventory/data/{index}.csv.gz")
            put(bucket, {files[-1]: gzip.compress("\n".join(part).encode())})
    else:
        table = pa.table(
            {"bucket": [name] * 6, "key": keys, "is_latest": latest, "size": [5] * 6, "e_tag": ["abc"] * 6}
        )
        files.append("inventory/data/0.parquet")
        write_table(join(bucket, files[0]), table)
    document = {
        "destinationBucket": f"arn:aws:s3:::{name}",
        "fileFormat": form,
        "fileSchema": "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag",
        "files": [{"key": key} for key in files],
    }
    put(bucket, {"inventory/manifest.json": json.dumps(document).encode()})
    uri = join(bucket, files[0] if form == "file" else "inventory/manifest.json")
    assert run(bucket, "--inventory-uri", uri) == 0
    assert [(row["bin_id"], row["image_bytes"], row["image_etag"]) for row in read(bucket)] == [
        ("1", 5, None),
        ("2 é+%", 5, None),
    ]
    assert rejects(bucket) == []


@pytest.mark.s3
def test_an_inventory_that_is_none_is_named(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(bucket, "1")
    put(bucket, {"i/manifest.json": b"[]", "i/wide.csv": b'"b","k","v","true"\n', "i/odd.parquet": b"PAR1"})
    for name, message in (
        ("manifest.json", "expected an S3 Inventory's manifest.json with fileFormat"),
        ("gone.json", "gone.json: expected an S3 Inventory's manifest.json, found nothing"),
        ("wide.csv", "give its manifest.json, which names the columns"),
        ("gone.csv", "gone.csv: expected an S3 Inventory file, found nothing"),
        ("gone.parquet", "gone.parquet: expected an S3 Inventory file, found nothing"),
        ("odd.parquet", "odd.parquet: expected a Parquet file, found something else"),
        ("x.orc", "expected an inventory's manifest.json, .parquet, .csv or .csv.gz file"),
    ):
        assert run(bucket, "--inventory-uri", join(bucket, "i", name)) == 2, name
        assert message in capsys.readouterr().err, name


def damaged_export() -> bytes:
    """Parquet whose footer can be read, but not its first page."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"bin_id": ["a"], "sku": ["S1"], "quantity": [1]}), sink)
    return b"PAR1" + b"\xff" * 30 + sink.getvalue()[34:]


DAMAGED = damaged_export()


@pytest.mark.parametrize(
    ("objects", "records", "message"),
    [
        ({}, "records", "images: expected images (.jpg, .jpeg, .png, .webp), found nothing; check --images-uri"),
        ({"images/a.txt": b""}, "records", "found 1 other objects (such as "),
        ({"images/a.jpg": b""}, "records", "records: expected records (.json), found nothing; check --records-uri"),
        ({"images/a.jpg": b"", "records/b.json": b"{}"}, "records", "no image has a readable record of its stem"),
        ({"images/a.jpg": b"", "records/a.json": b"{}"}, "records", "no image has a readable record of its stem"),
        ({"images/a.jpg": b""}, "gone.csv", "gone.csv: expected a WMS export (CSV), found nothing"),
        ({"images/a.jpg": b""}, "gone.parquet", "gone.parquet: expected a Parquet file or a folder"),
        ({"images/a.jpg": b"", "x.parquet": b"bin_id"}, "x.parquet", "x.parquet: expected a Parquet file"),
        (
            {"images/a.jpg": b"", "x.parquet": DAMAGED},
            "x.parquet",
            "x.parquet: expected a Parquet file, found something else or a damaged",
        ),
        ({"images/a.jpg": b"", "x.csv": b""}, "x.csv", "x.csv: expected a CSV file with a header in UTF-8"),
        ({"images/a.jpg": b"", "x.csv": b"bin_id,sku,quantity\n"}, "x.csv", "expected lines of a WMS export below"),
        (
            {"images/a.jpg": b"", "x.csv": "bin_id;sku;Stückzahl\na;b;1\n".encode("cp1252")},
            "x.csv",
            "x.csv: expected a CSV file with a header in UTF-8, found byte 0xfc",
        ),
        (
            {"images/a.jpg": b"", "x.xlsx": b"PK"},
            "x.xlsx",
            "x.xlsx: expected a folder of records, or a WMS export (.csv,",
        ),
        (
            {"images/a.jpg": b"", "x.csv": b"bin_id,sku,quantity,Unit_Value\na,b,1,2\n"},
            "x.csv",
            "column 'Unit_Value': expected unit_value; rename it",
        ),
        (
            {"images/a.jpg": b"", "x.csv": b"bin_id,sku,quantity\na,b,1\nc,d\n"},
            "x.csv",
            "expected UTF-8 CSV with 3 columns",
        ),
        (
            {"images/a.jpg": b"", "x.csv": b"bin_id,sku,quantity\n\xff,b,1\n"},
            "x.csv",
            "expected UTF-8 CSV with 3 columns",
        ),
        (
            {"images/a.jpg": b"", "x.csv": b"bin_id,sku,quantity,sku\na,b,1,c\n"},
            "x.csv",
            "sku: expected once, found 2 times",
        ),
    ],
)
def test_inputs_that_can_not_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], objects: dict[str, bytes], records: str, message: str
) -> None:
    put(str(tmp_path), objects)
    assert run(str(tmp_path), records=records) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    with pytest.raises(storage.InputError):
        parquet_files(str(tmp_path / "manifest"))


def test_all_columns_that_do_not_fit_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(str(tmp_path), {"images/a.jpg": b"", "x.csv": b"Bin,quantity\na,1\n"})
    assert run(str(tmp_path), records="x.csv") == 2
    error = capsys.readouterr().err
    assert "column bin_id: expected string, found no such column" in error
    assert "column sku: expected string, found no such column" in error
    pq.write_table(
        pa.table({"bin_id": [7], "sku": ["S"], "quantity": ["1"], "photo_at": ["x"]}), tmp_path / "x.parquet"
    )
    assert run(str(tmp_path), records="x.parquet") == 2
    error = capsys.readouterr().err
    assert "column bin_id: expected string, found int64" in error
    assert "column quantity: expected int32, found string" in error
    assert "column photo_at: expected timestamp[us, tz=UTC], found string" in error


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(str(tmp_path), "1")
    put(str(tmp_path), {"file": b""})
    assert run(str(tmp_path), manifest="file/manifest") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/file/manifest: can't be" in error


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_named(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_bins(bucket, "1")
    assert run(bucket, "--images-uri", "s3://no-such-bucket-here/images") == 2
    assert "s3://no-such-bucket-here/images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--audit-date", "31.01.2026"],
        ["--inventory-uri", "s3://b/manifest.json"],
        ["--oops"],
    ],
)
def test_bad_flags_are_refused(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path), *flags) == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.s3
def test_a_bucket_is_a_folder_too(bucket: str) -> None:
    put(bucket, {"1.jpg": b"photo", "1.json": abid_record(("B1", 1))})
    flags = ["--images-uri", bucket, "--records-uri", bucket + "/", "--manifest-uri", bucket + "/nights/1"]
    assert ingest.main(flags) == 0
    assert [row["image_uri"] for row in read(bucket, "nights/1")] == [bucket + "/1.jpg"]


def allow_all(bucket: str, *actions: str, only: str = "*") -> None:
    """Opens the bucket to everybody, objects whose key is like `only`; nothing else may be asked of it."""
    name = bucket.removeprefix("s3://")
    statements = [
        {"Effect": "Allow", "Principal": "*", "Action": [action], "Resource": [f"arn:aws:s3:::{name}{below}"]}
        for action in actions
        for below in (("",) if action == "s3:ListBucket" else (f"/{only}",))
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    boto3.client("s3").put_bucket_policy(Bucket=name, Policy=policy)


@pytest.mark.s3
def test_a_public_bucket_is_read_without_credentials(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_bins(bucket, "1")
    flags = ["--anonymous", "--manifest-uri", str(tmp_path / "manifest")]
    assert run(bucket, *flags) == 2  # so that below it can only be the policy that lets us in
    assert "can't be listed" in capsys.readouterr().err
    allow_all(bucket, "s3:GetObject", "s3:ListBucket")
    assert run(bucket, *flags) == 0
    assert [row["image_uri"] for row in read(str(tmp_path))] == [bucket + "/images/1.jpg"]


@pytest.mark.s3
@pytest.mark.parametrize("name", ["inventory.csv", "inventory.parquet", "manifest.json"])
def test_an_inventory_too_is_read_without_credentials(
    bucket: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_bins(bucket, "1")
    of, keys = bucket.removeprefix("s3://"), ["images/1.jpg", "records/1.json"]
    document = {"destinationBucket": of, "fileFormat": "CSV", "fileSchema": "Bucket, Key", "files": []}
    document["files"] = [{"key": "inventory.csv"}]
    put(bucket, {"inventory.csv": "\n".join(f'"{of}","{key}"' for key in keys).encode()})
    put(bucket, {"manifest.json": json.dumps(document).encode()})
    write_table(f"{bucket}/inventory.parquet", pa.table({"bucket": [of] * 2, "key": keys}))
    flags = ["--anonymous", "--manifest-uri", str(tmp_path / "manifest"), "--inventory-uri", f"{bucket}/{name}"]
    allow_all(bucket, "s3:GetObject", only="[ir]*s/*")  # images and records
    assert run(bucket, *flags) == 2
    assert name in capsys.readouterr().err
    allow_all(bucket, "s3:GetObject")
    assert run(bucket, *flags) == 0
    assert [row["image_uri"] for row in read(str(tmp_path))] == [bucket + "/images/1.jpg"]


@pytest.mark.s3
def test_a_manifest_without_records_that_did_not_come_is_not_complete(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_bins(bucket, "1", "2", "3")
    flags = ["--anonymous", "--manifest-uri", str(tmp_path / "manifest")]
    allow_all(bucket, "s3:GetObject", "s3:ListBucket", only="records/1.json")
    assert run(bucket, *flags) == 1
    error = capsys.readouterr().err
    assert "2 records could not be fetched; the manifest is not complete, run the same command again" in error
    assert f"{bucket}/records/2.json: access denied" in error
    assert "Traceback" not in error
    with pytest.raises(storage.InputError, match="being written or cut short"):
        parquet_files(str(tmp_path / "manifest"))
    allow_all(bucket, "s3:GetObject", "s3:ListBucket")
    assert run(bucket, *flags) == 0
    assert [row["bin_id"] for row in read(str(tmp_path))] == ["1", "2", "3"]


@pytest.mark.s3
def test_a_manifest_stays_while_no_record_comes(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_bins(bucket, "1", "2")
    flags = ["--anonymous", "--replace", "--manifest-uri", str(tmp_path / "manifest")]
    allow_all(bucket, "s3:GetObject", "s3:ListBucket")
    assert run(bucket, *flags) == 0
    before = contents(str(tmp_path))
    allow_all(bucket, "s3:ListBucket")
    assert run(bucket, *flags) == 1
    assert "2 records could not be fetched; nothing was written" in capsys.readouterr().err
    assert contents(str(tmp_path)) == before
    put_bins(bucket, *(str(number) for number in range(1, 21)))
    assert run(bucket, *flags) == 2
    error = capsys.readouterr().err
    assert "access denied, like 15 others before it; nothing was written; let the job read the records" in error
    assert contents(str(tmp_path)) == before
