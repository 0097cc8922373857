from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs.config.ingest import IngestConfig
from jobs.ingesting import exchange, exports, inputs
from jobs.ingesting.exchange import Chunks
from jobs.platform import s3, storage
from jobs.platform.parquet import parquet_files, write_table
from schemas.errors import InputError
from schemas.wms import group_lines, parse_lines
from tests.ingested import LINES, damaged_parquet


@pytest.mark.parametrize("place", [4, 200, 800], ids=["page header", "page", "page"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, place: int) -> None:
    uri = damaged_parquet(LINES, tmp_path / "lines.parquet", place)
    with pytest.raises(
        InputError, match=r"lines\.parquet: expected a Parquet file, found something else or a damaged one"
    ):
        list(exports._read_parquet._function(uri, False))


def test_a_text_that_is_no_utf8_is_a_damaged_file(tmp_path: Path) -> None:
    names = pa.array([b"S", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"bin_id": ["a", "b"], "sku": names, "quantity": [1, 1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: .*UTF8"):
        list(exports._read_parquet._function(str(tmp_path / "x.parquet"), False))


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
    other = replace(info, num_others=1, others=["notes.txt"])
    assert exchange.collect("images", [iter([other, records, info, records])]).others == ["notes.txt"]


@pytest.mark.parametrize(("num_repeated", "is_told"), [(5, True), (4, False)])
def test_an_export_that_stands_there_twice_is_told_of_and_a_few_pallets_that_are_alike_are_not(
    num_repeated: int, is_told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = {
        "lines of the export": Chunks(num_rows=10),
        "records": Chunks(num_rows=5, num_repeated=num_repeated, repeated=["row 7"]),
    }
    monkeypatch.setattr(inputs, "collect", lambda what, sources: found[what])
    monkeypatch.setattr(inputs, "read_export", lambda *_, **__: ([], False))
    for name in ("find_export", "_start_listing", "exchange"):
        monkeypatch.setattr(inputs, name, lambda *_, **__: [])
    monkeypatch.setattr(inputs, "_list_folder", lambda *_: Chunks())
    config = IngestConfig(images_uri="s3://b/images", records_uri="s3://b/export.csv", manifest_uri="manifest")
    assert inputs.list_inputs(config)[1].num_rows == 5
    assert (
        "5 of 10 lines are those of another one in every column that is read (such as row 7)" in caplog.text
    ) is is_told


def test_rows_of_one_key_stand_in_one_order_whatever_order_their_pieces_come_in() -> None:
    rows = [("a", "x.jpg", 2), ("a", "y.jpg", 1), ("a", "y.jpg", 2), ("b", "x.jpg", 1)]
    pieces = [pa.table({"key": [key], "uri": [uri], "row": [row]}) for key, uri, row in rows]
    merged = exchange.merge([pieces[place] for place in (2, 3, 1, 0)])
    assert [tuple(row.values()) for row in merged.to_pylist()] == rows


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
        "  column sku: expected once, found 2 times; keep one of them",
        "  column quantity: expected int32, found no such column; add it",
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
