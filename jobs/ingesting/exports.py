"""A WMS export read in chunks of lines, and the lines of a range of bins made into the bins' records."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import ray

from jobs.ingesting.exchange import merge
from jobs.ingesting.keys import CHUNK_ROWS, ChunkInfo, describe_chunk
from jobs.ingesting.sources import open_csv, read_chunks
from jobs.platform import storage
from jobs.platform.parquet import open_parquet, parquet_files
from jobs.platform.texts import holds_rows
from jobs.platform.uris import absolute, join
from schemas.arrow import schema_problems
from schemas.errors import InputError
from schemas.wms import WMS_SCHEMA, group_lines, parse_lines

CSV_SUFFIXES = (".csv", ".csv.gz")
DELIMITERS = ",;\t|"
_QUOTED_CELL = re.compile(rb'"(?:[^"]++|"")*+"?+')
"""From its first quotation mark up to the one that ends it, or as far as it is read."""


def is_export(uri: str) -> bool:
    """Whether the URI names a WMS export (else a folder of ABID records)."""
    return uri.lower().endswith((*CSV_SUFFIXES, ".parquet"))


def find_export(uri: str, *, anonymous: bool) -> list[storage.StoredObject]:
    """The files of an export as they lie there now. Raises InputError where there are none."""
    if not uri.lower().endswith(CSV_SUFFIXES):
        return parquet_files(uri, anonymous=anonymous)
    found = storage.describe(uri, anonymous=anonymous)
    if found is None:
        raise InputError(f"{uri}: expected a WMS export (CSV), found nothing; check --records-uri")
    return [found]


def read_export(uri: str, *, anonymous: bool) -> tuple[list[Any], bool]:
    """Checks the columns of an export that is there and starts reading: generators of lines keyed by bin, and whether the
    lines name images.

    Raises InputError where it lacks columns (all problems in one message).
    """
    if uri.lower().endswith(CSV_SUFFIXES):
        delimiter, names = _read_header(uri, anonymous)
        schema = pa.schema(
            [(name, WMS_SCHEMA.field(name).type if name in WMS_SCHEMA.names else pa.string()) for name in names]
        )
        _check_columns(uri, schema)
        return [_read_csv.remote(uri, delimiter, names, anonymous)], "image_uri" in names
    files = [entry.uri for entry in find_export(uri, anonymous=anonymous)]
    below = absolute(uri) + "/"
    # a whole path may have such a folder in it
    folders = {file.removeprefix(below).rpartition("/")[0]: file for file in files if file.startswith(below)}
    if len(folders) > 1:
        raise InputError(
            f"{uri}: expected the files of one export, found several folders of them, such as days or the partitions of "
            f"a table ({', '.join(sorted(folders.values())[-2:])}), which would be added up; give one file, or one folder"
        )
    naming = ["image_uri" in open_parquet(file, anonymous=anonymous).schema_arrow.names for file in files]
    if len(set(naming)) > 1:
        raise InputError(
            f"{uri}: column image_uri: expected in all files or in none, found it in {sum(naming)} of {len(files)} "
            f"(not in {files[naming.index(False)]}); add it there, or ingest the files apart"
        )
    if len(files) == 1:
        return [_read_parquet.remote(files[0], anonymous)], naming[0]
    return [_read_parquet.remote(file, anonymous, file.removeprefix(below)) for file in files], naming[0]


@ray.remote(num_returns="streaming")
def make_records(uri: str, images_uri: str | None, *pieces: pa.Table) -> Iterator[ChunkInfo | pa.Table]:
    """Yields one chunk: the records of all bins in these lines, and the lines that belong to no bin as problems.

    With `images_uri` the records' key is the URI of the image that they name, else the bin_id.
    """
    lines = merge(pieces)
    placed = pc.is_valid(lines["bin_id"])
    of_bins = lines.filter(placed).drop_columns(["key"])
    # two pallets may be alike, or the export stands there twice: how many they are tells
    twice = of_bins.select(WMS_SCHEMA.names).to_pandas().duplicated().to_numpy()
    repeated = of_bins["place"].filter(pa.array(twice)).to_pylist()
    records = group_lines(of_bins)
    keys = records["bin_id"].to_pylist()
    problems = records["problem"].to_pylist()
    if images_uri is not None:
        for index, image in enumerate(records["image_uri"].to_pylist()):
            try:
                keys[index] = _locate_image(image, images_uri)
            except InputError as error:
                problems[index] = problems[index] or f"image_uri: {error}"
    records = records.drop_columns(["problem", "image_uri"]).append_column("problem", pa.array(problems, pa.string()))
    records = records.append_column("key", pa.array(keys, pa.string()))
    places = [f"{uri}, {place}" for place in records["first_place"].to_pylist()]
    records = records.append_column("uri", pa.array(places, pa.string())).drop_columns(["first_place"])
    lost = lines.filter(pc.invert(placed))["place"].to_pylist()
    stray = pa.table(
        {
            "key": pa.array(lost, pa.string()),
            "uri": pa.array([f"{uri}, {place}" for place in lost], pa.string()),
            "problem": pa.array(["bin_id: expected a value, found nothing"] * len(lost), pa.string()),
        }
    )
    table = merge([pa.concat_tables([records, stray], promote_options="default")])
    yield replace(describe_chunk(table), num_repeated=len(repeated), repeated=repeated[:3])
    yield table


def _locate_image(image: str | None, images_uri: str) -> str:
    if image is None:
        raise InputError(
            "expected a value, as the export has this column, found nothing; fill it in every line, or leave the column out"
        )
    return absolute(image if "://" in image or image.startswith("/") else join(images_uri, image))


@ray.remote(num_returns="streaming")
def _read_csv(uri: str, delimiter: str, names: list[str], anonymous: bool) -> Iterator[ChunkInfo | pa.Table]:
    row, header = 2, 1
    quotes = _Quotes(delimiter)
    try:
        reader = pyarrow.csv.open_csv(
            pa.TransformInputStream(open_csv(uri, anonymous=anonymous), quotes),
            # not by Arrow's own reading of the header, which may hold a name that is no UTF-8 and that nobody reads
            read_options=pyarrow.csv.ReadOptions(block_size=8 * 2**20, use_threads=False, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                # of columns that nobody reads it doesn't matter whether they are UTF-8
                column_types={name: pa.string() if name in WMS_SCHEMA.names else pa.binary() for name in names},
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            lines, header = pa.Table.from_batches([batch]).slice(header), 0
            _check_quotes(uri, lines, delimiter, row)
            if quotes.problem:
                break
            yield from _make_chunks(lines.select([name for name in names if name in WMS_SCHEMA.names]), row)
            row += lines.num_rows
    except (pa.ArrowInvalid, EOFError, OSError) as error:
        if not quotes.problem:
            raise InputError(
                f"{uri}: from row {row} on: expected UTF-8 CSV with {len(names)} columns: {error}"
            ) from error
    if quotes.problem:
        raise InputError(f"{uri}: {quotes.problem}")


class _Quotes:
    """Looks at the bytes of a CSV file as they are read: Arrow takes what stands behind the closing quotation mark of a cell
    into the cell. `problem` is the first one."""

    def __init__(self, delimiter: str) -> None:
        end = rb"[\r\n%b]" % delimiter.encode()
        # a mark inside a cell without marks around it is text
        self._cells = re.compile(rb'(?:[^"]*+(?:(?<!%b)"|"(?:[^"]++|"")*+"(?=%b)))*+[^"]*+' % (end, end))
        self._rest = b"\n"
        """The last byte before what is still to be looked at, and that."""
        self._ends = [0, 0]
        """How many \\n and \\r were looked at: those of a file number its lines, or both do."""
        self.problem: str | None = None

    def __call__(self, read: pa.Buffer) -> pa.Buffer:
        """`read` is empty at the end of the file."""
        text = self._rest + (bytes(read) or b"\n")
        looked = self._cells.match(text, 1)
        stop = looked.end() if looked else 1
        self._ends = [found + text.count(sign, 1, stop) for found, sign in zip(self._ends, (b"\n", b"\r"), strict=True)]
        self._rest = text[stop - 1 :]
        cell = _QUOTED_CELL.match(text, stop)
        if cell and cell.end() < len(text) and self.problem is None:
            shown = text[stop:][:60].decode(errors="replace")
            self.problem = (
                f"line {max(self._ends) + 1}: expected nothing behind the quotation mark that ends a cell, found {shown!a}; "
                "write every text with quotation marks around it, and those inside twice"
            )
        return read


def _check_quotes(uri: str, lines: pa.Table, delimiter: str, first_row: int) -> None:
    """A quotation mark that is not closed takes in all rows up to the next one, as text of one cell. Raises InputError."""
    names = lines.column_names
    for place, name in enumerate(names):
        cells = lines.column(place).combine_chunks()  # not by name: what nobody reads may stand there twice
        for index in np.flatnonzero(pc.match_substring_regex(cells, r"[\r\n]").to_numpy(zero_copy_only=False)).tolist():
            cell = cells[index].as_py()
            text = cell if isinstance(cell, str) else cell.decode("latin-1")  # columns that nobody reads
            if holds_rows(text, delimiter, place, len(names), names.index("quantity")):
                raise InputError(
                    f"{uri}: row {first_row + index}: {name}: expected one cell, found one that holds whole rows: a quotation "
                    "mark in it is not closed; write every text with quotation marks around it, and those inside twice"
                )


@ray.remote(num_returns="streaming")
def _read_parquet(uri: str, anonymous: bool, file: str | None = None) -> Iterator[ChunkInfo | pa.Table]:
    """`file` is its name among several, whose rows are counted apart."""
    parquet = open_parquet(uri, anonymous=anonymous)
    names = parquet.schema_arrow.names
    _check_columns(uri, parquet.schema_arrow)
    row = 1
    for found in read_chunks(uri, parquet, [name for name in names if name in WMS_SCHEMA.names]):
        yield from _make_chunks(found, row, file)
        row += found.num_rows


def _make_chunks(found: pa.Table, row: int, file: str | None = None) -> Iterator[ChunkInfo | pa.Table]:
    for start in range(0, found.num_rows, CHUNK_ROWS):
        lines = parse_lines(found.slice(start, CHUNK_ROWS), row + start, file)
        lines = lines.append_column("key", pc.fill_null(lines["bin_id"], "")).sort_by("key")
        yield describe_chunk(lines)
        yield lines


def _read_header(uri: str, anonymous: bool) -> tuple[str, list[str]]:
    """The delimiter is the one that finds bin_id, sku and quantity in the first line that isn't empty."""
    best: list[str] = []
    problem: Exception | str = "it is empty"
    for delimiter in DELIMITERS:
        # of columns that nobody reads, which may be decoded with the header, it doesn't matter whether they are UTF-8
        with io.TextIOWrapper(open_csv(uri, anonymous=anonymous), "utf-8-sig", "surrogateescape", newline="") as text:
            try:
                names = next((row for row in csv.reader(text, delimiter=delimiter, strict=True) if row), [])
            except csv.Error as error:  # quotation marks, as another delimiter has them
                problem = error
                continue
            except (pa.ArrowInvalid, EOFError, OSError) as error:
                raise InputError(f"{uri}: expected a CSV file with a header in UTF-8: {error}") from error
        if {"bin_id", "sku", "quantity"} <= set(names):
            return delimiter, [name.encode(errors="surrogateescape").decode(errors="replace") for name in names]
        best = max(best, names, key=len)
    if not best:
        raise InputError(f"{uri}: expected a CSV file with a header in UTF-8: {problem}")
    if foreign := re.search("[\0-\x08\x0e-\x1f\udc80-\udcff]", "".join(best)):
        raise InputError(
            f"{uri}: expected a CSV file with a header in UTF-8, found byte 0x{ord(foreign[0]) & 0xFF:02x} in it; save it as "
            "CSV UTF-8 (.csv.gz where it is compressed)"
        )
    return DELIMITERS[0], best


def _check_columns(uri: str, schema: pa.Schema) -> None:
    """Raises InputError. What holds numbers may be of any type of them: its cells are checked one by one, as a CSV's are."""
    known = [
        field.with_type(WMS_SCHEMA.field(field.name).type)
        if field.name in WMS_SCHEMA.names and _is_number(WMS_SCHEMA.field(field.name).type) and _is_number(field.type)
        else field
        for field in schema
    ]
    problems = schema_problems(pa.schema(known), WMS_SCHEMA)
    if problems:
        raise InputError(
            "\n  ".join([f"{uri}: not the columns of a WMS export (found {', '.join(schema.names)}):", *problems])
        )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
