"""The steps of jobs.ingest one by one, without a cluster: records that don't come, files that are damaged."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from jobs.config.ingest import IngestConfig
from jobs.ingesting import exchange, exports, inputs, inventory, keys, parts, records
from jobs.ingesting.exchange import Chunks
from jobs.ingesting.keys import KEYS_SCHEMA, Folder
from jobs.ingesting.matching import match, match_range
from jobs.ingesting.parts import Target, begin, finish, write_part
from jobs.ingesting.readable import probe, unfetched_error
from jobs.ingesting.records import UNREADABLE, StorageOutage, read_records, record_columns
from jobs.platform import s3, storage
from jobs.platform.fetching import OUTAGE_FAILURES, Fault, NotFetched
from jobs.platform.parquet import parquet_files, read_table, write_table
from schemas.abid import BinRecord, SkuLine, UnreadableRecord
from schemas.errors import GateError, InputError
from schemas.wms import group_lines, parse_lines

RECORD = json.dumps({"BIN_FCSKU_DATA": {"B1": {"name": "Soap", "quantity": 2}}, "EXPECTED_QUANTITY": 2}).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of every kind: read, no record, gone, and one that is there but can't be opened."""
    (tmp_path / "good.json").write_bytes(RECORD)
    (tmp_path / "bad.json").write_bytes(b"[]")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    return tmp_path


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(str(tmp_path / "m"), str(tmp_path / "m.rejects"), "2026-01-31", str(tmp_path), anonymous=False)


def bins(folder: Path, *stems: str) -> pa.Table:
    """As match_range gives them."""
    images = [(stem, f"{folder}/{stem}.jpg", 5, None) for stem in stems]
    keys = pa.table(dict(zip(("key", "uri", "num_bytes", "etag"), map(list, zip(*images, strict=True)), strict=True)))
    keys = keys.set_column(3, "etag", pa.nulls(len(stems), pa.string()))
    found = pa.table(
        {
            "key": list(stems),
            "uri": [f"{folder}/{stem}.json" for stem in stems],
            "bin_id": list(stems),
            "problem": pa.nulls(len(stems), pa.string()),
        }
    )
    matched, _ = match(keys, found)
    numbers = pa.array([0] * matched.num_rows, pa.int32())
    return matched.append_column("range", numbers).append_column("slice", numbers)


def test_a_record_that_does_not_come_is_no_unreadable_one_and_a_storage_that_is_away_is_an_outage(folder: Path) -> None:
    uris = [str(folder / f"{name}.json") for name in ("good", "bad", "gone", "loop")]
    good, bad, gone, loop = read_records(uris, anonymous=False)
    assert getattr(good, "expected_qty", None) == 2
    assert isinstance(bad, UnreadableRecord)
    assert isinstance(gone, UnreadableRecord) and "found it gone" in str(gone)
    assert isinstance(loop, NotFetched) and loop.fault not in UNREADABLE
    with pytest.raises(StorageOutage, match=r"can't be fetched: .*loop\.json: .*, like 15 others"):
        read_records([uris[-1]] * 20, anonymous=False)


def test_a_record_that_is_denied_is_no_unreadable_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve_with(PermissionDeniedError("no"), monkeypatch)
    (found,) = read_records([str(folder / "good.json")], anonymous=False)
    assert isinstance(found, NotFetched) and str(found) == "access denied"
    with pytest.raises(StorageOutage, match="access denied, like 15 others"):
        read_records([str(folder / "good.json")] * 16, anonymous=False)


def test_failures_are_an_outage_only_in_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "REQUESTS_IN_FLIGHT", 1)
    uris = [str(folder / f"{name}.json") for name in ("loop", "good")]
    found = read_records(uris * OUTAGE_FAILURES, anonymous=False)
    assert sum(isinstance(reason, NotFetched) for reason in found) == OUTAGE_FAILURES


def _serve_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request ends with `error`. Returns the keys that were asked for."""
    asked: list[str] = []

    class Failing:
        async def get_async(self, key: str, **options: object) -> None:
            asked.append(key)
            raise error

    monkeypatch.setattr(storage, "locate", lambda uri, anonymous: (Failing(), uri))
    return asked


def test_a_record_that_storage_gave_up_on_is_not_asked_for_all_over_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _serve_with(GenericError("Error after 9 retries in 120s: 503"), monkeypatch)
    (found,) = read_records(["s3://bins/1.json"], anonymous=False)
    assert isinstance(found, NotFetched) and found.fault is Fault.GAVE_UP
    assert len(asked) == 1


def test_a_part_tells_of_records_that_did_not_come_and_rejects_those_that_are_none(
    folder: Path, target: Target
) -> None:
    report = write_part(bins(folder, "bad", "good", "gone", "loop"), target)
    assert report.num_bins == 1
    assert report.rejects == {"no_record": 2, "unreadable_record": 2}
    (line,) = report.unfetched
    assert re.match(rf"{re.escape(str(folder))}/loop\.json: \S", line)
    rejects = read_table(f"{target.rejects_uri}/part-00000-00000.parquet")
    assert set(rejects["key"].to_pylist()) == {"bad", "gone"}


def test_a_probe_ends_at_the_first_record_that_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.ingesting.readable.REQUESTS_IN_FLIGHT", 2)
    assert probe(bins(folder, "good"), False).readable
    assert probe(bins(folder, "bad", "bad2", "good"), False).readable
    none = probe(bins(folder, "bad", "gone1", "gone2", "gone3", "loop"), False)
    assert not none.readable
    assert (none.num_unfetched, len(none.unfetched), len(none.unreadable)) == (1, 1, 3)
    with pytest.raises(GateError, match="away; nothing was written"):
        monkeypatch.setattr("jobs.ingesting.readable.read_records", _raise_outage)
        probe(bins(folder, "good"), False)


def _raise_outage(uris: list[str], *, anonymous: bool) -> None:
    raise StorageOutage("away")


def test_the_message_counts_the_records_that_did_not_come_and_names_the_first() -> None:
    message = str(
        unfetched_error(1234, [f"s3://b/{number}.json: access denied" for number in range(9)], "not complete")
    )
    assert "1,234 records could not be fetched; not complete, run the same command again" in message
    assert "s3://b/0.json" in message and "s3://b/2.json" in message and "s3://b/3.json" not in message


def damaged_parquet(table: pa.Table, path: Path, place: int) -> str:
    pq.write_table(table, path, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    return str(path)


LINES = pa.table({"bin_id": [f"b{number}" for number in range(900)], "sku": ["S"] * 900, "quantity": [1] * 900})
KEYS = pa.table({"bucket": ["b"] * 900, "key": [f"images/{number}.jpg" for number in range(900)]})


@pytest.mark.parametrize("place", [4, 200, 800], ids=["page header", "page", "page"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, place: int) -> None:
    uri = damaged_parquet(LINES, tmp_path / "lines.parquet", place)
    with pytest.raises(
        InputError, match=r"lines\.parquet: expected a Parquet file, found something else or a damaged one"
    ):
        list(exports._read_parquet._function(uri, False))
    uri = damaged_parquet(KEYS.select(["key", "bucket"]), tmp_path / "keys.parquet", place)
    with pytest.raises(
        InputError, match=r"keys\.parquet: expected a Parquet file, found something else or a damaged one"
    ):
        list(inventory._read_parquet._function(uri, Folder("s3://b/images", (".jpg",))))


def test_a_text_that_is_no_utf8_is_a_damaged_file(tmp_path: Path) -> None:
    names = pa.array([b"S", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"bin_id": ["a", "b"], "sku": names, "quantity": [1, 1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: .*UTF8"):
        list(exports._read_parquet._function(str(tmp_path / "x.parquet"), False))


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


@pytest.mark.parametrize("delimiter", list(exports.DELIMITERS))
@pytest.mark.parametrize("start", [b"", b"\n\n", b"\xef\xbb\xbf"], ids=["plain", "empty lines", "BOM"])
def test_a_header_may_have_any_delimiter_and_quotation_marks(tmp_path: Path, delimiter: str, start: bytes) -> None:
    path = tmp_path / "export.csv"
    for names in (["bin_id", "sku", "quantity"], ['"bin_id"', '"sku"', '"quantity"']):
        path.write_bytes(start + delimiter.join(names).encode() + b"\n")
        assert exports._read_header(str(path), False) == (delimiter, ["bin_id", "sku", "quantity"])


def test_a_quotation_mark_that_a_header_does_not_close_is_named_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text('"bin_id,sku,quantity\n' + "A1,s,3\n" * 1000)
    with pytest.raises(
        InputError, match="expected a CSV file with a header in UTF-8: unexpected end of data"
    ) as refused:
        exports._read_header(str(path), False)
    assert len(str(refused.value)) < 300


def test_text_in_a_column_that_nobody_reads_may_be_of_any_encoding_and_hold_other_delimiters(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes("bin_id;sku;quantity;descr\nA1;s;3;Schlüssel, groß\n".encode("latin-1"))
    assert exports._read_header(str(path), False) == (";", ["bin_id", "sku", "quantity", "descr"])


def test_cells_of_blanks_are_empty_ones() -> None:
    lines = {"bin_id": ["A1  "], "sku": ["s "], "quantity": [" 3"], "unit_value": ["   "], "photo_at": [" "]}
    bins = group_lines(parse_lines(pa.table(lines), 2))
    assert bins.select(["bin_id", "expected_qty", "unit_value", "problem"]).to_pylist() == [
        {"bin_id": "A1", "expected_qty": 3, "unit_value": None, "problem": None}
    ]


def test_an_export_is_read_as_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def note(uri: str, *, anonymous: bool) -> None:
        raise InputError(f"{uri}, anonymous: {anonymous}")

    monkeypatch.setattr(inputs, "find_export", note)
    places = {"images_uri": "s3://b/images", "records_uri": "s3://b/export.csv", "manifest_uri": "manifest"}
    for anonymous in (True, False):
        with pytest.raises(InputError, match=f"s3://b/export.csv, anonymous: {anonymous}"):
            inputs.list_inputs(IngestConfig(**places, anonymous=anonymous))


@pytest.mark.parametrize("name", ["export.csv", "export.parquet"])
def test_an_export_that_is_still_being_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    pyarrow.csv.write_csv(LINES, path) if name.endswith("csv") else pq.write_table(LINES, path)

    def go_on(*_: object) -> Chunks:
        path.write_bytes(path.read_bytes() + b"b901,S,1")
        return Chunks()

    monkeypatch.setattr(inputs, "_start_listing", lambda *_: [])
    monkeypatch.setattr(inputs, "collect", go_on)
    for task in ("_read_csv", "_read_parquet"):
        monkeypatch.setattr(exports, task, SimpleNamespace(remote=lambda *given: given))
    places = {"images_uri": str(tmp_path), "records_uri": str(path), "manifest_uri": "manifest"}
    with pytest.raises(InputError, match=rf"{name}: was written while it was read; .* once it is whole"):
        inputs.list_inputs(IngestConfig(**places))


def test_lines_that_stand_there_twice_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("bin_id", "sku", "quantity")
    rows = [("a", "S", "2"), ("b", "S", "2"), ("a", "S", "2"), ("a", "S", "3"), ("a", "S", "2")]
    found = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    lines = parse_lines(found, 2)
    lines = lines.append_column("key", lines["bin_id"])
    info, records = exports.make_records._function("export.csv", None, lines)
    assert (info.num_repeated, info.repeated, records["expected_qty"].to_pylist()) == (2, ["row 4", "row 6"], [9, 2])
    monkeypatch.setattr(exchange.ray, "get", lambda reference: reference)
    chunks = exchange.collect("records", [iter([info, records]), iter([info, records])])
    assert (chunks.num_repeated, chunks.repeated) == (4, ["row 4", "row 6", "row 4"])


def test_a_listing_is_not_begun_anew_half_way() -> None:
    assert keys.list_keys._default_options["max_retries"] == 0


def test_a_manifest_is_on_disk_before_it_is_declared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(str(tmp_path / "m"), str(tmp_path / "m.rejects"), str(tmp_path), "2026-11-22", False)
    mark = parts.begin(target, replace=False)
    settled: list[bool] = []
    monkeypatch.setattr(storage, "settle", lambda uri: settled.append(storage.exists(mark)))
    parts.finish(target, mark, {})
    assert (settled, storage.exists(mark)) == ([True], False)


@pytest.mark.s3
@pytest.mark.parametrize("form", ["export.csv", "export.csv.gz", "export.parquet", "folder.parquet"])
def test_an_export_in_a_public_bucket_is_read_without_credentials(
    bucket: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    table, text = LINES.slice(0, 1), b"bin_id,sku,quantity\nb0,S,1\n"
    storage.write_bytes(f"{bucket}/export.csv", text)
    storage.write_bytes(f"{bucket}/export.csv.gz", gzip.compress(text))
    write_table(f"{bucket}/export.parquet", table)
    write_table(f"{bucket}/folder.parquet/0.parquet", table)
    name = bucket.removeprefix("s3://")
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    boto3.client("s3").put_bucket_policy(Bucket=name, Policy=policy)
    s3._known_store.cache_clear()
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for task in ("_read_csv", "_read_parquet"):  # here and not on a cluster
        read = getattr(exports, task)._function
        monkeypatch.setattr(exports, task, SimpleNamespace(remote=lambda *given, read=read: list(read(*given))))
    with pytest.raises(InputError, match="no AWS credentials found"):
        exports.read_export(f"{bucket}/{form}", anonymous=False)
    ((_, lines),), names_images = exports.read_export(f"{bucket}/{form}", anonymous=True)
    assert (lines["bin_id"].to_pylist(), names_images) == (["b0"], False)


@pytest.mark.parametrize(
    ("unit", "beyond"), [("s", 2**60), ("ms", 253_402_300_800_000), ("us", -(2**62)), ("s", -62_135_596_800)]
)
def test_a_time_that_no_calendar_holds_is_a_problem_of_its_line(unit: str, beyond: int) -> None:
    good = 1_700_000_000 * {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    times = pa.array([good, beyond, None], pa.timestamp(unit, "UTC"))
    found = parse_lines(
        pa.table({"bin_id": ["a", "b", "c"], "sku": ["S"] * 3, "quantity": [1] * 3, "photo_at": times}), 1
    )
    assert found["photo_at"].cast(pa.int64()).to_pylist() == [1_700_000_000_000_000, None, None]
    first, second, third = found["problem"].to_pylist()
    assert (first, third) == (None, None)
    assert second == f"photo_at: expected a time of the years 2 to 9998, found {beyond} {unit} since 1970"


def test_a_price_that_the_audit_would_refuse_the_night_for_is_a_problem_of_its_line() -> None:
    lines = pa.table(
        {"bin_id": ["a", "b"], "sku": ["S"] * 2, "quantity": [1] * 2, "unit_value": ["9999999999999", "7"]}
    )
    found = parse_lines(lines, 1)
    assert found["problem"].to_pylist() == ["unit_value: expected at most 1e+12, found '9999999999999'", None]


@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
def test_a_quotation_mark_that_is_not_closed_does_not_swallow_rows(tmp_path: Path, delimiter: str) -> None:
    def lines_of(*rows: tuple[str, ...]) -> list[dict]:
        names = ("bin_id", "sku", "quantity", "name", "zone")
        text = "".join(delimiter.join(cells) + "\n" for cells in (names, *rows))
        (tmp_path / "export.csv").write_text(text)
        chunks = list(exports._read_csv._function(str(tmp_path / "export.csv"), delimiter, list(names), False))
        return chunks[1].to_pylist()

    bracket = ("B", "s2", "2", '"L bracket', "Z1")
    with pytest.raises(InputError, match=r"export\.csv: row 3: name: .*a quotation mark in it is not closed"):
        lines_of(("A", "s1", "1", "x", "Z1"), bracket, ("C", "s3", "3", "y", "Z2"), ("D", "s4", "4", '"T', "Z3"))
    with pytest.raises(InputError, match=r"row 3: name: .*a quotation mark in it is not closed"):
        lines_of(("A", "s1", "1", "x", "Z1"), bracket, ("D", "s4", "4", '"T', "Z3"))  # no whole row between
    rows = [(f"E{i}", "s", "1", "y", "Z1") for i in range(5)]
    with pytest.raises(InputError, match=r"row 2: zone: .*a quotation mark in it is not closed"):
        lines_of(("A", "s1", "1", "x", '"Z1'), *rows)  # up to the end of the file
    with pytest.raises(InputError, match=r"row 2: zone: .*a quotation mark in it is not closed"):
        lines_of(("A", "s1", "1", "x", '"Z1'), rows[0], ("",), *rows)
    # several lines that are whole rows but for what stands where the quantity would
    listed = "\n".join(["Cable set", delimiter.join(["red", "green", "blue", "black", "white"])])
    assert lines_of(("A", "s1", "1", f'"{listed}"', "Z1"))[0]["name"] == listed
    assert lines_of(("A", "s1", "1", '"\n \n"', "Z1"))[0]["quantity"] == 1
    text = f'Screw{delimiter} M4{delimiter} "zinc"{delimiter}\npack of 10{delimiter} black'
    quoted = text.replace('"', '""')
    held = lines_of(("A", "s1", "1", f'"{quoted}"', "Z1"))
    assert held[0]["name"] == text
    (tmp_path / "latin.csv").write_bytes(b"bin_id,sku,quantity,remark\nA,s,1,Gr\xf6\xdfe\n")
    names = ["bin_id", "sku", "quantity", "remark"]
    read = list(exports._read_csv._function(str(tmp_path / "latin.csv"), ",", names, False))
    assert read[1]["bin_id"].to_pylist() == ["A"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ('"19" rack', r"line 4: expected nothing behind .*found '\"19\" rack,3"),
        ('"19" rack"', "line 4: expected nothing behind"),
        (r'"12\"X"', "line 4: expected nothing behind"),
        ('"S1" ', "line 4: expected nothing behind"),
        (r'"12\""', "row 3: sku: .*a quotation mark in it is not closed"),
    ],
)
@pytest.mark.parametrize("name", ["export.csv", "export.csv.gz"])
def test_a_quotation_mark_in_a_cell_is_refused_where_it_would_be_left_out(
    tmp_path: Path, name: str, cell: str, said: str
) -> None:
    data = f'bin_id,sku,quantity\r\na,"two\r\nlines, ""x""",1\r\nb,{cell},3\r\nc,"S2",3\r\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(InputError, match=said):
        list(exports._read_csv._function(str(tmp_path / name), ",", ["bin_id", "sku", "quantity"], False))


@pytest.mark.parametrize("num_bytes", [1, 2, 7, 1000])
def test_quotation_marks_are_judged_as_python_s_reader_does_however_the_file_is_cut(num_bytes: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(1000):
        data = "".join(rng.choice(list('""",,\na\r'), 12)).encode()
        quotes = exports._Quotes(",")
        for start in range(0, len(data) + num_bytes, num_bytes):
            quotes(pa.py_buffer(data[start : start + num_bytes]))
        try:
            list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
            refused = False
        except csv.Error as error:
            refused = "expected after" in str(error)  # and not of a mark that is not closed
        assert bool(quotes.problem) == refused, data


def test_marks_inside_cells_that_have_none_around_them_are_text(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text('bin_id,sku,quantity\na,19" rack,3\nb,x"",2\nc,"C:\\",1\n')
    (_, lines) = exports._read_csv._function(str(path), ",", ["bin_id", "sku", "quantity"], False)
    assert lines["sku"].to_pylist() == ['19" rack', 'x""', "C:\\"]


@pytest.mark.parametrize(
    ("data", "byte"),
    [
        ("bin_id\tsku\tquantity\n".encode("utf-16"), "0xff"),
        ("bin_id,sku,quantity\n".encode("utf-16-le"), "0x00"),
        (gzip.compress(b"bin_id,sku,quantity\n"), "0x1f"),
        (b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml", "0x03"),
        ("bin_id;sku;quantität\n".encode("latin-1"), "0xe4"),
    ],
    ids=["UTF-16", "UTF-16 without BOM", "gzip", "workbook", "Latin-1"],
)
def test_a_file_that_is_no_utf8_text_is_named_by_its_byte(tmp_path: Path, data: bytes, byte: str) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"found byte {byte} in it; save it as CSV UTF-8 \(\.csv\.gz where"):
        exports.read_export(str(path), anonymous=False)


def test_the_name_of_a_column_that_nobody_reads_may_be_of_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes("\nbin_id;Größe;sku;quantity\nA1;groß;s;3\n".encode("latin-1"))
    delimiter, names = exports._read_header(str(path), False)
    (_, lines) = exports._read_csv._function(str(path), delimiter, names, False)
    assert lines.select(["bin_id", "sku", "quantity", "row"]).to_pylist() == [
        {"bin_id": "A1", "sku": "s", "quantity": 3, "row": 2}
    ]


def test_an_empty_bin_has_the_value_that_its_line_gives() -> None:
    rows = [("a", None, "0", "3.5"), ("b", None, "0", ""), ("c", "S", "2", "4"), ("d", "S", "1", ""), ("e", "S", "0", "2"),
            ("e", "T", "0", "4")]  # fmt: skip
    names = ("bin_id", "sku", "quantity", "unit_value")
    found = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    assert group_lines(parse_lines(found, 2))["unit_value"].to_pylist() == [3.5, None, 4.0, None, 3.0]


def test_a_point_that_may_part_thousands_is_not_guessed_at() -> None:
    texts = ["1.000", "12.000", "1.0", "1.00", "1000.000", "5.", "0.000"]
    lines = {"bin_id": [f"b{i}" for i in range(len(texts))], "sku": ["S"] * len(texts)}
    found = parse_lines(pa.table({**lines, "quantity": texts}), 2)
    assert found["quantity"].to_pylist() == [None, None, 1, 1, 1000, 5, 0]
    assert found["problem"][0].as_py().startswith("quantity: expected a whole number without a point")
    decimals = pa.array([Decimal("5.000")], pa.decimal128(13, 3))
    exact = parse_lines(pa.table({"bin_id": ["a"], "sku": ["S"], "quantity": decimals}), 1)
    assert exact["quantity"].to_pylist() == [5]


def test_a_number_may_lack_its_leading_zero_as_databases_write_it() -> None:
    quantities = [".0000", "+.0", "3", "3", "3", ".5", ".", "+"]
    values = [".25", "+.5", ".5e1", ".", "-.5", "1", "1", "1"]
    lines = {"bin_id": [f"b{i}" for i in range(len(values))], "sku": ["S"] * len(values)}
    found = parse_lines(pa.table({**lines, "quantity": quantities, "unit_value": values}), 2)
    assert found["quantity"].to_pylist() == [0, 0, 3, 3, 3, None, None, None]
    assert found["unit_value"].to_pylist() == [0.25, 0.5, 5.0, None, None, 1, 1, 1]
    assert pc.is_valid(found["problem"]).to_pylist() == [False] * 3 + [True] * 5


@pytest.mark.parametrize("kind", [pa.decimal128(38, 18), pa.decimal128(10, 1), pa.float64(), pa.float32()])
def test_a_parquet_export_may_hold_its_numbers_in_any_type_and_each_is_checked(
    tmp_path: Path, kind: pa.DataType
) -> None:
    uri = str(tmp_path / "export.parquet")
    numbers = pa.array([0, 5, 5.5, None], pa.float64()).cast(kind)
    lines = {"bin_id": list("abcd"), "sku": ["S"] * 4, "quantity": numbers, "moves_since_photo": numbers}
    pq.write_table(pa.table({**lines, "unit_value": numbers}), uri)
    _, found = exports._read_parquet._function(uri, False)
    assert found["quantity"].to_pylist() == found["moves_since_photo"].to_pylist() == [0, 5, None, None]
    assert found["unit_value"].to_pylist() == [0, 5, 5.5, None]
    first, second, third, fourth = found["problem"].to_pylist()
    assert (first, second) == (None, None)
    assert third.startswith("quantity: expected a whole number from 0 to") and fourth.endswith("found nothing")


def test_a_column_that_stands_twice_is_named_once_and_matters_only_where_it_is_read(tmp_path: Path) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("bin_id", "sku", "sku", "", "")])
    with pytest.raises(InputError) as refused:
        exports._check_columns("x.csv", schema)
    assert str(refused.value).splitlines()[1:] == [
        "  column sku: expected once, found 2 times",
        "  column quantity: expected int32, found no such column",
    ]
    names = ["bin_id", "sku", "quantity", "", ""]
    (tmp_path / "x.csv").write_text(";".join(names) + "\na;S;1;;\n")
    _, lines = exports._read_csv._function(str(tmp_path / "x.csv"), ";", names, False)
    assert lines["quantity"].to_pylist() == [1]


def test_what_wrote_an_export_is_no_part_of_it_and_partitions_are_not_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export.parquet"
    for name in ("0", "_temporary/0/task/0", "_delta_log/1", ".spark/2"):
        write_table(str(folder / f"{name}.parquet"), LINES)
    assert [entry.uri for entry in parquet_files(str(folder))] == [str(folder / "0.parquet")]
    write_table(str(folder / "dt=2026-11-21" / "0.parquet"), LINES)
    with pytest.raises(
        InputError, match=r"partitions of a table \(.*dt=2026-11-21/0\.parquet\), which would be added up"
    ):
        exports.read_export(str(folder), anonymous=False)
    for one in (folder / "dt=2026-11-21" / "0.parquet", folder / "dt=2026-11-21"):  # one day's
        parquet_files(str(one))
    monkeypatch.setattr(exports, "_read_parquet", SimpleNamespace(remote=lambda *given: given))
    one = str(folder / "dt=2026-11-21" / "0.parquet")
    assert exports.read_export(one, anonymous=False) == ([(one, False)], False)


def test_two_days_in_folders_are_not_added_up(tmp_path: Path) -> None:
    folder = tmp_path / "export.parquet"
    for day in ("30", "31"):
        write_table(str(folder / "2026" / "01" / day / "0.parquet"), LINES)
    with pytest.raises(InputError, match=r"several folders of them, such as days .*2026/01/31/0\.parquet"):
        exports.read_export(str(folder), anonymous=False)


def test_a_column_name_that_is_no_utf8_is_a_damaged_file(tmp_path: Path) -> None:
    write_table(str(tmp_path / "x.parquet"), LINES.append_column("Groesse", pa.nulls(900, pa.int32())))
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data.replace(b"Groesse", b"Gr\xf6\xdfe:"))
    with pytest.raises(InputError, match=r"x\.parquet: expected a Parquet file, found something else or a damaged one"):
        exports.read_export(str(tmp_path / "x.parquet"), anonymous=False)


def test_a_mixed_bin_may_hold_goods_of_several_classes() -> None:
    lines = {"bin_id": list("aabb"), "sku": list("1212"), "quantity": ["1"] * 4, "abc_class": ["A", "B", "C", ""]}
    bins = group_lines(parse_lines(pa.table(lines), 2))
    assert bins["abc_class"].to_pylist() == [None, "C"]
    assert bins["problem"].to_pylist() == [None, None]


def test_a_line_of_several_files_is_named_by_its_file(tmp_path: Path) -> None:
    wrong = pa.table({"bin_id": ["a"], "sku": ["S"], "quantity": [-1]})
    pq.write_table(wrong, tmp_path / "x.parquet")
    _, lines = exports._read_parquet._function(str(tmp_path / "x.parquet"), False, "part-7.parquet")
    bins = group_lines(lines.drop_columns(["key"]))
    assert bins["first_place"].to_pylist() == ["part-7.parquet, row 1"]
    assert bins["problem"][0].as_py().startswith("part-7.parquet, row 1: quantity: expected a whole number")


def test_files_of_an_export_that_differ_in_naming_photos_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "export.parquet"
    write_table(str(folder / "0.parquet"), LINES)
    write_table(str(folder / "1.parquet"), LINES.append_column("image_uri", pa.array(["x"] * LINES.num_rows)))
    with pytest.raises(
        InputError, match=r"image_uri: expected in all files or in none, found it in 1 of 2 .*0\.parquet"
    ):
        exports.read_export(str(folder), anonymous=False)


def test_a_key_that_is_no_path_is_an_unreadable_record(tmp_path: Path) -> None:
    found = read_records([f"{tmp_path}/a\tb.json"], anonymous=False)
    assert [str(reason) for reason in found] == [
        "expected a valid key, found one with empty parts or control characters"
    ]


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


def test_a_column_of_times_may_hold_nothing_or_be_a_dictionary() -> None:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    encoded = pa.array([moment], pa.timestamp("us", "UTC")).dictionary_encode()
    for times, value in ((pa.nulls(1), None), (encoded, moment)):
        found = parse_lines(pa.table({"bin_id": ["a"], "sku": ["S"], "quantity": [1], "photo_at": times}), 1)
        assert (found["photo_at"].to_pylist(), found["problem"].to_pylist()) == ([value], [None])


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


def test_an_export_of_several_chunks_keeps_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "CHUNK_ROWS", 2)
    lines = pa.table({"bin_id": list("aabbc"), "sku": list("STSTS"), "quantity": ["1"] * 5})
    table = pa.concat_tables(list(exports._make_chunks(lines, 2))[1::2])
    assert sorted(table["row"].to_pylist()) == [2, 3, 4, 5, 6]
    assert group_lines(table.drop_columns(["key"]))["expected_qty"].to_pylist() == [2, 2, 1]


def test_lines_of_a_large_export_are_numbered_throughout(tmp_path: Path) -> None:
    """It is read in blocks of 8 MiB."""
    note = "x" * (5 * 2**20)
    (tmp_path / "export.csv").write_text("bin_id,sku,quantity,note\n" + f"a,S,1,{note}\n" * 3)
    names = ["bin_id", "sku", "quantity", "note"]
    tables = list(exports._read_csv._function(str(tmp_path / "export.csv"), ",", names, False))[1::2]
    assert len(tables) > 1 and pa.concat_tables(tables)["row"].to_pylist() == [2, 3, 4]


def test_a_record_s_line_of_no_pieces_is_no_further_sku() -> None:
    record = BinRecord(2, (SkuLine("A", None, 2), SkuLine("B", None, 0)), inconsistent=False)
    columns = record_columns([record])
    assert (columns["num_skus"].to_pylist(), columns["sku"].to_pylist()) == ([1], ["A"])


def test_a_line_of_no_pieces_is_no_further_sku() -> None:
    lines = {"bin_id": list("aab"), "sku": list("STS"), "quantity": ["0", "3", "0"]}
    bins = group_lines(parse_lines(pa.table(lines), 2))
    assert (bins["num_skus"].to_pylist(), bins["sku"].to_pylist()) == ([1, 0], ["T", None])
    assert [len(found) for found in bins["skus"].to_pylist()] == [2, 1]


def test_a_listing_of_several_chunks_keeps_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CHUNK_ROWS", 2)
    stems = [f"{number:05d}" for number in range(5)]
    for stem in stems:
        (tmp_path / f"{stem}.jpg").write_bytes(b"photo")
    found = list(keys.list_keys._function(Folder(str(tmp_path), (".jpg",))))
    assert [info.num_rows for info in found[::2]] == [2, 2, 1]
    assert sorted(key for table in found[1::2] for key in table["key"].to_pylist()) == stems


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


def test_the_photo_of_a_bin_with_a_bad_line_is_a_reject_too() -> None:
    stems = ["bad", "good"]
    images = pa.Table.from_pylist(
        [{"key": stem, "uri": f"{stem}.jpg", "num_bytes": 5, "etag": None} for stem in stems], schema=KEYS_SCHEMA
    )
    lines = {"key": stems, "uri": ["row 2", "row 3"], "bin_id": stems, "problem": ["quantity: found 'x'", None]}
    matched, rejects = match(images, pa.table(lines))
    assert matched["bin_id"].to_pylist() == ["good"]
    found = [(row["key"], row["kind"], row["reason"]) for row in rejects.to_pylist()]
    assert found == [("bad", "image", "no_record"), ("bad", "record", "unreadable_record")]


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


def test_a_line_of_no_pieces_needs_no_price() -> None:
    rows = [("a", "S", "2", "3"), ("a", "T", "0", "")]
    names = ("bin_id", "sku", "quantity", "unit_value")
    found = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    assert group_lines(parse_lines(found, 2))["unit_value"].to_pylist() == [3.0]


def test_an_object_that_is_all_suffix_is_no_photo() -> None:
    assert [keys.find_stem(uri, (".jpg",)) for uri in ("s3://b/.jpg", "s3://b/1.JPG", "s3://b/jpg")] == [
        None,
        "1",
        None,
    ]


def test_a_parquet_file_s_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("a.PARQUET", "b.parquet"):
        write_table(str(tmp_path / name), LINES)
    assert [entry.uri.rpartition("/")[2] for entry in parquet_files(str(tmp_path))] == ["a.PARQUET", "b.parquet"]
    assert len(parquet_files(str(tmp_path / "a.PARQUET"))) == 1
