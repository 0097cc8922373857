"""What comes back from the floor: a CSV or Parquet file, read into rows of text that are checked one by one."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.platform import storage
from jobs.platform.parquet import damage_named
from jobs.platform.texts import CSV_ENCODING, csv_text, holds_rows
from jobs.platform.uris import join
from schemas.arrow import misspelt_columns
from schemas.errors import InputError
from schemas.recount import COUNTS_SCHEMA, RejectReason

REQUIRED = [field.name for field in COUNTS_SCHEMA if not field.nullable]
_OF_A_COUNT = [name for name in COUNTS_SCHEMA.names if name not in ("bin_id", "audit_date", "counter_id")]
"""What a row with a count has a value of. Not who counts: people are assigned before they go."""


@dataclass(frozen=True)
class CountsRow:
    """One row as it was written: `number` is its line in a CSV file, else its row, both from 1; cells stripped."""

    number: int
    cells: dict[str, str]
    malformed: str | None = None
    """Why the row has no cells to check."""

    @property
    def is_blank(self) -> bool:
        """A row of the recount list that nobody has filled in yet."""
        return self.malformed is None and not any(self.cells.get(name) for name in _OF_A_COUNT)


def read_counts_file(uri: str) -> list[CountsRow]:
    """Every row of the file. Raises InputError, with all problems of its columns, where it can't be read at all."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise InputError(f"{uri}: expected a CSV or Parquet file of counts, found nothing") from error
    if data.startswith(b"PK\x03\x04"):
        raise InputError(
            f"{uri}: expected CSV or Parquet, found a workbook (.xlsx): copy its counts into recount_list.csv"
        )
    rows = list(_parquet_rows(uri, data) if data.startswith(b"PAR1") else _csv_rows(uri, data))
    if all(row.is_blank for row in rows):
        raise InputError(f"{uri}: expected at least one count, found {len(rows)} rows without any")
    return rows


def write_rejects(output_uri: str, rejects: Sequence[tuple[CountsRow, RejectReason, str]]) -> str:
    """Writes `count_rejects/<hash>.csv`: every reject as it was written, with reason and detail. No cell of it is a
    formula to a spreadsheet. Returns its URI."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(["row", *COUNTS_SCHEMA.names, "reason", "detail"])
    for row, reason, detail in sorted(rejects, key=lambda reject: reject[0].number):
        cells = pa.array([*(row.cells.get(name, "") for name in COUNTS_SCHEMA.names), str(reason), detail])
        writer.writerow([row.number, *csv_text(cells).to_pylist()])
    data = sink.getvalue().encode(CSV_ENCODING)
    # not below counted/: Athena and Spark read every file below a table's location as a part of it
    uri = join(output_uri, "count_rejects", f"{hashlib.sha256(data).hexdigest()[:32]}.csv")
    storage.write_bytes(uri, data)
    return uri


def _csv_rows(uri: str, data: bytes) -> Iterator[CountsRow]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{uri}: expected UTF-8 text or Parquet, found byte 0x{data[error.start]:02x} at {error.start}; "
            "save the list as CSV UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{uri}: expected a list of counts with its header, found an empty file")
    head = text.splitlines()[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_columns(uri, names)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            # a spreadsheet leaves out the empty cells at the end of a row, or adds some
            cells = [cell.strip() for cell in cells] + [""] * (len(names) - len(cells))
            problem = f"expected {len(names)} cells, found {len(cells)}" if any(cells[len(names) :]) else None
            _check_quotes(uri, cells, names, reader)
            known = zip(names, cells, strict=False)
            yield CountsRow(
                reader.line_num, {name: cell for name, cell in known if name in COUNTS_SCHEMA.names}, problem
            )
    except csv.Error as error:
        raise InputError(f"{uri}: line {reader.line_num}: expected CSV, found: {error}") from error


def _check_quotes(uri: str, cells: Sequence[str], names: Sequence[str], reader: Any) -> None:
    """A quotation mark that is not closed takes in all rows up to the next one, as text of one cell. Raises InputError."""
    for place, cell in enumerate(cells[: len(names)]):
        if holds_rows(cell, reader.dialect.delimiter, place, len(names), names.index("counted_qty")):
            raise InputError(
                f"{uri}: line {reader.line_num}: {names[place]}: expected one cell, found one that holds whole rows: a "
                "quotation mark before it is not closed"
            )


def _parquet_rows(uri: str, data: bytes) -> Iterator[CountsRow]:
    with damage_named(uri):
        file = pq.ParquetFile(io.BytesIO(data))
        names = file.schema_arrow.names
    _check_columns(uri, names)
    with damage_named(uri):
        table = file.read([name for name in COUNTS_SCHEMA.names if name in names])
    nested = [
        f"column {field.name}: expected single values, found {field.type}"
        for field in table.schema
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_duration(field.type)
    ]
    if nested:
        raise InputError("\n  ".join([f"{uri}: the counts can't be read:", *nested]))
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":  # coarser ones need none, and may overflow
            whole = pa.timestamp("us", field.type.tz)
            table = table.set_column(index, field.name, table.column(index).cast(whole, safe=False))
    columns = {name: [_read_cell(value) for value in table.column(name)] for name in table.column_names}
    for index in range(table.num_rows):
        cells = {name: column[index] for name, column in columns.items()}
        broken = [name for name, cell in cells.items() if cell is None]
        problem = f"{broken[0]}: expected a value, found one that can't be read" if broken else None
        yield CountsRow(index + 1, {name: cell or "" for name, cell in cells.items()}, problem)


def _read_cell(value: pa.Scalar) -> str | None:
    """None for what Python can't hold: a time beyond the years 1 to 9999 or in an unknown zone, text that is no UTF-8."""
    try:
        return _as_text(value.as_py()).strip()
    except (ValueError, OverflowError):
        return None


def _as_text(value: object) -> str:
    if value is None or value != value:  # a NaN is how pandas writes an empty cell
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def _check_columns(uri: str, names: Sequence[str]) -> None:
    problems = misspelt_columns(names, COUNTS_SCHEMA.names)
    problems += [f"column {name}: expected it, found no such column" for name in REQUIRED if name not in names]
    problems += [f"column {name}: expected once, found twice" for name in COUNTS_SCHEMA.names if names.count(name) > 1]
    if problems:
        found = ", ".join(ascii(name) for name in names[:12]) or "nothing"
        raise InputError("\n  ".join([f"{uri}: the counts can't be read:", *problems, f"columns found: {found}"]))
