"""Every bin of the night with everything, the most doubtful first: one CSV and one XLSX, written row by row."""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import xlsxwriter
from xlsxwriter.format import Format
from xlsxwriter.worksheet import Worksheet

from jobs.platform.texts import cell_text, csv_text
from jobs.reporting.nights import Night
from jobs.reporting.recount_lists import RECORD_MODEL
from schemas.arrow import describe
from schemas.results import RESULTS_SCHEMA

logger = logging.getLogger("jobs.report")

SHEET_ROWS = 1_048_576
"""Of an XLSX sheet, its header included."""

COLUMNS = [
    *("rank", "recount", "verdict", "reason", "bin_id", "zone", "abc_class", "sku", "skus", "num_skus"),
    *("expected_qty", "camera_qty", "qty_low", "qty_high", "variance_qty", "likely_qty"),
    *("p_record_wrong", "p_short", "p_over", "p_empty", "expected_variance_qty", "expected_abs_variance_qty"),
    *("unit_value", "currency", "value_at_risk", "last_counted_at", "last_counted_qty", "num_counted"),
    *("certificate_p", "certified_at", "inclusion_probability", "p_expected", "camera_is_top_class", "probabilities"),
    *("status", "error", "image_uri", "photo_at", "expected_as_of", "bundle_id", "calibration_id", "run_id"),
]
"""All columns of RESULTS_SCHEMA, what a planner reads first."""

SHEET_COLUMNS = [name for name in COLUMNS if name not in ("bundle_id", "calibration_id", "run_id")]
"""The spreadsheet names bundle, calibration and run once, on its second sheet: every cell costs microseconds."""

WIDE = {"bin_id": 16, "skus": 40, "image_uri": 30, "error": 24, "last_counted_at": 17, "photo_at": 17}
SHARES = ("p_", "certificate_p", "certified_at", "inclusion_probability")


DISCREPANCIES = ("discrepancies.csv", "discrepancies.xlsx")


def write_discrepancies(tables: Iterable[pa.Table], folder: Path, night: Night, num_rows: int) -> None:
    """DISCREPANCIES in `folder` from the rows in their order (RESULTS_SCHEMA)."""
    csv_path, xlsx_path = (folder / name for name in DISCREPANCIES)
    columns = [
        ("audit_date", pa.string()),
        *[(name, _flat_type(name)) for name in COLUMNS],
        (RECORD_MODEL, pa.string()),
    ]
    schema = pa.schema(columns)
    options = {
        "constant_memory": True,
        "strings_to_formulas": False,
        "strings_to_urls": False,
        "strings_to_numbers": False,
        "default_date_format": "yyyy-mm-dd hh:mm",
        "remove_timezone": True,
    }
    csv_path.write_bytes(codecs.BOM_UTF8)  # else Excel does not take it for UTF-8
    with (
        csv_path.open("ab") as sink,
        xlsxwriter.Workbook(xlsx_path, options) as book,
        pa_csv.CSVWriter(sink, schema) as csv_file,
    ):
        book.use_zip64()
        kept = min(num_rows, SHEET_ROWS - 1)
        if kept < num_rows:
            logger.warning(
                "discrepancies.xlsx: a sheet holds %s rows, so it has the first %s of %s bins; discrepancies.csv has all",
                *(f"{number:,}" for number in (SHEET_ROWS, kept, num_rows)),
            )
        sheet = _Sheet(book, kept)
        _write_about(book, night, kept, num_rows)
        for table in tables:
            for start in range(0, table.num_rows, 10_000):
                rows = flatten(table.slice(start, 10_000))
                sheet.add(rows)
                dates, models = (
                    pa.repeat(pa.scalar(text), rows.num_rows) for text in (night.audit_date, night.whole[RECORD_MODEL])
                )
                whole = _csv_rows(rows).add_column(0, "audit_date", dates).append_column(RECORD_MODEL, models)
                csv_file.write_table(whole.cast(schema))


def flatten(rows: pa.Table) -> pa.Table:
    """COLUMNS with the two nested ones as text: `2 × SKU name; …`, and the probabilities as a JSON list."""
    columns = {name: rows[name] for name in COLUMNS}
    columns["skus"] = pa.array([_lines(lines) for lines in rows["skus"].to_pylist()], pa.string())
    columns["probabilities"] = pa.array(
        [_json_list(values) for values in rows["probabilities"].to_pylist()], pa.string()
    )
    return pa.table(columns)


def _flat_type(name: str) -> pa.DataType:
    kind = RESULTS_SCHEMA.field(name).type
    return pa.string() if pa.types.is_list(kind) else kind


def _lines(lines: list[dict[str, Any]]) -> str:
    return "; ".join(f"{line['quantity']} × {line['sku'] or '?'} {line['name'] or ''}".rstrip() for line in lines)


def _json_list(values: list[float] | None) -> str | None:
    return None if values is None else json.dumps([round(value, 4) for value in values])


def _csv_rows(rows: pa.Table) -> pa.Table:
    for place, name in enumerate(COLUMNS):
        # a JSON list is the one text that we write ourselves
        if pa.types.is_string(rows.schema.field(name).type) and name != "probabilities":
            rows = rows.set_column(place, name, csv_text(rows[name]))
    return rows


class _Sheet:
    """The XLSX's sheet of bins, filled from the top; rows beyond what a sheet holds are left out."""

    def __init__(self, book: xlsxwriter.Workbook, num_rows: int) -> None:
        self._sheet: Worksheet = book.add_worksheet("Discrepancies")
        self._room, self._next = num_rows, 1
        head = book.add_format({"bold": True, "bg_color": "#E8E8E8", "text_wrap": True, "valign": "top"})
        share, value = book.add_format({"num_format": "0.0%"}), book.add_format({"num_format": "#,##0.00"})
        self._formats: list[Format | None] = []
        for place, name in enumerate(SHEET_COLUMNS):
            kind = _flat_type(name)
            form = share if name.startswith(SHARES) else value if pa.types.is_floating(kind) else None
            self._formats.append(form)
            self._sheet.set_column(place, place, WIDE.get(name, 12))
        for place, name in enumerate(SHEET_COLUMNS):
            self._sheet.write_string(0, place, name, head)
        self._sheet.freeze_panes(1, SHEET_COLUMNS.index("bin_id") + 1)
        self._sheet.autofilter(0, 0, max(1, num_rows), len(SHEET_COLUMNS) - 1)

    def add(self, rows: pa.Table) -> None:
        rows = rows.slice(0, self._room)
        self._room -= rows.num_rows
        columns = [_values(rows[name]) for name in SHEET_COLUMNS]
        writers = [self._writer(name) for name in SHEET_COLUMNS]
        for number in range(rows.num_rows):
            for place, column in enumerate(columns):
                value = column[number]
                if value is not None and value == value:  # NaN has no cell
                    writers[place](self._next, place, value, self._formats[place])
            self._next += 1

    def _writer(self, name: str) -> Any:
        kind = _flat_type(name)
        if pa.types.is_string(kind):
            return self._sheet.write_string
        if pa.types.is_boolean(kind):
            return self._sheet.write_boolean
        return self._sheet.write_datetime if pa.types.is_timestamp(kind) else self._sheet.write_number


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As Python values that a cell can hold: clean text, times to the second, no more digits than mean something."""
    if pa.types.is_string(column.type):
        column = cell_text(column)
    elif pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column, unit="second")
    elif pa.types.is_floating(column.type):
        column = pc.round(column.cast(pa.float64()), 6)
    return column.to_pylist()


def _record_model(night: Night) -> str:
    """What every probability here rests on."""
    state, rate = night.whole["record_model"], night.whole["record_error_rate_used"]
    said = {"assumed": "assumed: too few random recounts yet", "learned": "learned from recounts"}.get(state, state)
    return said if rate is None else f"{said}; apart from bulk stock {rate:.1%} of the records wrong"


def _write_about(book: xlsxwriter.Workbook, night: Night, kept: int, num_rows: int) -> None:
    sheet = book.add_worksheet("About")
    bold = book.add_format({"bold": True})
    sheet.set_column(0, 0, 28)
    sheet.set_column(1, 1, 100)
    cut = "" if kept == num_rows else " (a sheet holds no more: discrepancies.csv has all of them)"
    facts = [
        ("night", night.audit_date),
        ("run", night.run_id),
        ("bundle", night.whole["bundle_id"]),
        ("calibration", night.whole["calibration_id"]),
        ("record model", _record_model(night)),
        ("bins", f"{kept:,} of {num_rows:,}{cut}"),
        ("order", "priority list by rank, random recounts, then by falling p_record_wrong; not assessed bins last"),
        ("times", "UTC"),
        ("variance", "camera or true quantity minus recorded quantity: negative is a shortage"),
    ]
    facts += [(name, describe(RESULTS_SCHEMA.field(name))) for name in SHEET_COLUMNS]
    for row, (name, text) in enumerate(facts):
        sheet.write_string(row, 0, name, bold)
        sheet.write_string(row, 1, text)
