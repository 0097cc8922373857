"""One file of a manifest: what it holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.arrow import DAMAGED_PARQUET, cast_values, conform, file_metadata, outside_calendar, schema_problems
from schemas.manifest import MANIFEST_SCHEMA, MAX_UNIT_VALUE

MOST_TOLD = 50
"""Quantities above it are told as one: no bundle counts further."""
MAX_PROBLEMS = 10
"""So many problems are listed in one message; the rest are counted."""
ROW_REMEDY = "correct it, or leave the row out"


@dataclass
class FileReport:
    """What one file of a manifest holds, and what is wrong with it. See Manifest, which sums up those of all its files."""

    uri: str
    sha256: str
    num_rows: int = 0
    problems: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    has_all_unit_values: bool = True
    has_photo_ages: bool = False
    currencies: list[str | None] = field(default_factory=list)
    records: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_TOLD + 1, np.int64))


def report_file(uri: str, data: bytes) -> FileReport:
    """The report of a file that is read already."""
    report = FileReport(uri, sha256=hashlib.sha256(data).hexdigest())
    try:
        _check_rows(pq.ParquetFile(io.BytesIO(data)), report)
    except DAMAGED_PARQUET as error:
        # Arrow finds damage where it stands: in the footer, or only in some page of some column
        report.problems.append(
            f"{uri}: expected a Parquet file, found something else or a damaged one ({error}); write it again"
        )
    return report


def _check_rows(parquet: pq.ParquetFile, report: FileReport) -> None:
    uri = report.uri
    schema = parquet.schema_arrow
    report.metadata = file_metadata(schema)
    report.problems = [f"{uri}: {problem}" for problem in schema_problems(schema, MANIFEST_SCHEMA)]
    if report.problems:
        return
    currencies: set[str | None] = set()
    present = [field.name for field in MANIFEST_SCHEMA if field.name in schema.names]
    for batch in parquet.iter_batches(batch_size=65536, columns=present):
        misfits = [misfit for name in present if (misfit := _find_misfit(batch, MANIFEST_SCHEMA.field(name)))]
        if misfits:
            report.problems += [
                f"{uri}: row {report.num_rows + 1 + row}: {name}: expected {MANIFEST_SCHEMA.field(name).type}, found another "
                f"value ({error}); {ROW_REMEDY}"
                for row, name, error in misfits
            ]
            return
        table = conform(pa.Table.from_batches([batch]), MANIFEST_SCHEMA)
        report.problems += list(row_problems(table, uri, report.num_rows + 1))
        report.num_rows += table.num_rows
        told = table["expected_qty"].drop_null().to_numpy().clip(0, MOST_TOLD)
        report.records += np.bincount(told, minlength=MOST_TOLD + 1)
        report.has_all_unit_values &= table["unit_value"].null_count == 0
        aged = pc.and_(pc.is_valid(table["photo_at"]), pc.is_valid(table["expected_as_of"]))
        report.has_photo_ages |= bool(pc.any(aged).as_py())
        currencies.update(pc.unique(table["currency"].filter(pc.is_valid(table["unit_value"]))).to_pylist())
        if len(report.problems) > MAX_PROBLEMS:
            break
    report.currencies = sort_currencies(currencies)[:MAX_PROBLEMS]


def _find_misfit(batch: pa.RecordBatch, field: pa.Field) -> tuple[int, str, str] | None:
    """Row, column and what is wrong of the first value that the column can't hold: a number out of its range, a text that is
    no UTF-8."""
    values = batch.column(field.name)

    def misfit(rows: pa.Array) -> str | None:
        try:
            cast_values(rows, field.type).validate(full=True)
        except pa.ArrowInvalid as error:
            return str(error)
        return None

    if misfit(values) is None:
        return None
    row = bisect_left(range(len(values)), True, key=lambda last: misfit(values.slice(0, last + 1)) is not None)
    return row, field.name, misfit(values.slice(row, 1)) or ""


def sort_currencies(currencies: Iterable[str | None]) -> list[str | None]:
    return sorted(currencies, key=lambda currency: (currency is not None, currency or ""))


def row_problems(table: pa.Table, uri: str, first_row: int) -> Iterable[str]:
    """What is wrong with rows of MANIFEST_SCHEMA, by column; `first_row` is the number of the first one in its file, from 1."""
    checks = [
        (field.name, pc.is_null(table[field.name]), "a value", "none")
        for field in MANIFEST_SCHEMA
        if not field.nullable
    ]
    checks += [
        (name, pc.equal(pc.utf8_length(table[name]), 0), "a text", "an empty one") for name in ("bin_id", "image_uri")
    ]
    checks += [(name, pc.less(table[name], 0), "0 or more", "a negative one") for name in ("expected_qty", "num_skus")]
    price = table["unit_value"]
    in_range = pc.and_(pc.greater_equal(price, 0), pc.less_equal(price, MAX_UNIT_VALUE))  # false for NaN too
    checks += [("unit_value", pc.invert(in_range), f"a value from 0 to {MAX_UNIT_VALUE:g}", "another one")]
    for name, mask, expected, found in checks:
        rows = np.flatnonzero(pc.fill_null(mask, False).to_numpy())
        if rows.size:
            value = table[name][int(rows[0])].as_py()
            yield _row_problem(uri, first_row, rows, name, expected, found if value in (None, "") else repr(value))
    for name in ("photo_at", "expected_as_of"):
        rows = np.flatnonzero(outside_calendar(table[name]).to_numpy())
        if rows.size:
            found = f"{table[name].cast(pa.int64())[int(rows[0])]} microseconds since 1970"
            yield _row_problem(uri, first_row, rows, name, "a time of the years 2 to 9998", found)
    lines = table["skus"].combine_chunks()
    parents, line = pc.list_parent_indices(lines).to_numpy(), pc.list_flatten(lines)
    for name, expected in (("sku", "a value"), ("quantity", "0 or more")):
        values = pc.struct_field(line, name)
        wrong = pc.is_null(values) if name == "sku" else pc.fill_null(pc.less(values, 0), True)
        places = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
        if places.size:
            value = values[int(places[0])].as_py()
            shown = "none" if value is None else repr(value)
            yield _row_problem(uri, first_row, np.unique(parents[places]), f"skus[].{name}", expected, shown)


def _row_problem(uri: str, first_row: int, rows: np.ndarray, name: str, expected: str, found: str) -> str:
    more = f" (and {rows.size - 1} rows more)" if rows.size > 1 else ""
    return f"{uri}: row {first_row + int(rows[0])}: {name}: expected {expected}, found {found}{more}; {ROW_REMEDY}"
