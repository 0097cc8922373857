"""A warehouse management system's export: one line per bin and SKU, checked cell by cell and grouped bin by bin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import MAX_QUANTITY, TIMESTAMP, column, outside_calendar
from schemas.manifest import MAX_UNIT_VALUE, SKU_LINE

WMS_SCHEMA = pa.schema(
    [
        column("bin_id", pa.string(), "Key of the storage location.", required=True),
        column("sku", pa.string(), "Stock keeping unit; empty in the one line of an empty bin.", required=True),
        column("quantity", pa.int32(), "Pieces of it that the record expects.", required=True),
        column("name", pa.string(), "The SKU's name."),
        column("unit_value", pa.float64(), "Value of one piece."),
        column("currency", pa.string(), "Currency of unit_value (ISO 4217)."),
        column("zone", pa.string(), "Part of the warehouse."),
        column("abc_class", pa.string(), "Class by usage value (A, B, C); of a bin of several classes, none."),
        column("image_uri", pa.string(), "The photo, absolute or below the images' folder."),
        column("photo_at", TIMESTAMP, "When the photo was taken, with its UTC offset."),
        column("expected_as_of", TIMESTAMP, "When the record was read, with its UTC offset."),
        column("moves_since_photo", pa.int32(), "Stock movements of the bin since the photo was taken."),
    ]
)
"""What is `required` must be a column; cells may be empty where an empty bin needs it."""

BIN_COLUMNS = ("currency", "zone", "abc_class", "image_uri", "photo_at", "expected_as_of", "moves_since_photo")
"""What is said of the whole bin: its lines must agree on it (but on abc_class, which is a SKU's); a line may leave it
empty."""

_THOUSAND = re.compile(r"\+?[1-9]\d{0,2}\.000", re.ASCII)
# databases write 0.5 as .5, and a decimal 0 as .00
_WHOLE = re.compile(r"\+?(\d{1,12}(\.0*)?|\.0+)", re.ASCII)
_DECIMAL = re.compile(r"\+?(\d{1,30}(\.\d*)?|\.\d{1,30})([eE][+-]?\d{1,2})?", re.ASCII)
_NUMBER_RANGE = f"expected a whole number from 0 to {MAX_QUANTITY}"


def parse_lines(found: pa.Table, first_row: int, file: str | None = None) -> pa.Table:
    """The columns of WMS_SCHEMA, `row` (counted from `first_row`), `place` (`row 7`, or `FILE, row 7` where `file` is one of
    several) and `problem` (the first of the line, else null).

    `found` has those columns of WMS_SCHEMA that the export has: all text (CSV; texts are trimmed, empty is null), or of
    types that `schema_problems` lets pass, numbers of any type (Parquet).
    """
    problems: list[str | None] = [None] * found.num_rows
    columns: dict[str, pa.Array] = {}
    for field in WMS_SCHEMA:
        if field.name not in found.column_names:
            columns[field.name] = pa.nulls(found.num_rows, field.type)
            continue
        cells = found[field.name].combine_chunks()
        if pa.types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        if pa.types.is_null(cells.type):  # how pandas writes a column of nothing
            cells = cells.cast(field.type)
        if pa.types.is_string(field.type):
            text = cells.cast(pa.string())
            text = text if field.name == "name" else pc.utf8_trim_whitespace(text)
            columns[field.name] = pc.if_else(pc.equal(text, ""), None, text)
        elif pa.types.is_timestamp(field.type) and not pa.types.is_string(cells.type):
            columns[field.name] = _checked_times(field.name, cells, problems).cast(field.type, safe=False)
        else:
            columns[field.name] = _parse_cells(field, cells, problems)
    for index, (sku, quantity) in enumerate(
        zip(columns["sku"].to_pylist(), columns["quantity"].to_pylist(), strict=True)
    ):
        if problems[index] is None and quantity is None:
            problems[index] = f"quantity: {_NUMBER_RANGE}, found nothing"
        elif problems[index] is None and quantity and sku is None:
            problems[index] = f"sku: expected one where quantity is {quantity}, found nothing"
    rows = range(first_row, first_row + found.num_rows)
    places = [f"{file}, row {row}" if file else f"row {row}" for row in rows]
    facts = {"row": pa.array(rows, pa.int64()), "place": pa.array(places, pa.string())}
    return pa.table({**columns, **facts, "problem": pa.array(problems, pa.string())})


def _checked_times(name: str, cells: pa.Array, problems: list[str | None]) -> pa.Array:
    """Without the times that no calendar here holds, such as a database's `infinity`: they are problems of their lines."""
    ticks, wrong = cells.cast(pa.int64()), outside_calendar(cells)
    for index in np.flatnonzero(wrong.to_numpy(zero_copy_only=False)).tolist():
        found = f"found {ticks[index].as_py()} {cells.type.unit} since 1970"
        problems[index] = problems[index] or f"{name}: expected a time of the years 2 to 9998, {found}"
    return pc.if_else(wrong, pa.scalar(None, cells.type), cells)


def _parse_cells(field: pa.Field, cells: pa.Array, problems: list[str | None]) -> pa.Array:
    parse: dict[pa.DataType, Callable[[object], object]] = {
        pa.int32(): _parse_whole,
        pa.float64(): _parse_decimal,
        TIMESTAMP: _parse_time,
    }
    values: list[object] = []
    for index, cell in enumerate(cells.to_pylist()):
        try:  # cell != cell: NaN, which pandas writes for an empty cell
            is_empty = cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
            values.append(None if is_empty else parse[field.type](cell))
        except ValueError as error:
            values.append(None)
            problems[index] = problems[index] or f"{field.name}: {error}, found {ascii(cell)[:60]}"
    return pa.array(values, field.type)


def _parse_whole(cell: object) -> int:
    text = f"{cell:f}" if isinstance(cell, Decimal) else str(cell).strip()  # str() of a decimal's 0 is 0E-18
    if isinstance(cell, str) and _THOUSAND.fullmatch(text):  # and not a Parquet file's decimal
        raise ValueError("expected a whole number without a point, which may part decimals or thousands")
    whole = text.partition(".")[0].lstrip("+") or "0"
    if not _WHOLE.fullmatch(text) or int(whole) > MAX_QUANTITY:
        raise ValueError(_NUMBER_RANGE)
    return int(whole)


def _parse_decimal(cell: object) -> float:
    text = str(cell).strip()
    if not _DECIMAL.fullmatch(text):
        raise ValueError("expected a number of 0 or more with a decimal point")
    if float(text) > MAX_UNIT_VALUE:
        raise ValueError(f"expected at most {MAX_UNIT_VALUE:g}")
    return float(text)


def _parse_time(cell: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(cell).strip())
        year = moment.astimezone(UTC).year  # as a manifest's times are judged (`outside_calendar`)
    except (ValueError, OverflowError):
        moment, year = None, 0
    if moment is None or moment.tzinfo is None or not 1 < year < 9999:
        raise ValueError("expected a time with its UTC offset, such as 2026-01-31T02:00:00Z")
    return moment


def group_lines(lines: pa.Table) -> pa.Table:
    """One row per bin, sorted by bin_id: the manifest's record columns, `first_place`, and `problem` where it has one.

    `lines` are all lines of these bins from `parse_lines`, each with its bin_id. unit_value is the mean over the
    bin's pieces, null where one of its SKUs has none; of an empty bin over the lines that give one.
    """
    lines = lines.sort_by([("bin_id", "ascending"), ("row", "ascending")]).combine_chunks()
    bins = lines["bin_id"].combine_chunks().dictionary_encode()
    bin_of_line = bins.indices.to_numpy()
    starts = np.unique(bin_of_line, return_index=True)[1]
    problems: list[str | None] = [None] * len(starts)
    for index, problem, place in _by_bin(bin_of_line, lines["problem"], lines["place"]):
        problems[index] = problems[index] or f"{place}: {problem}"

    quantity = pc.fill_null(lines["quantity"], 0).to_numpy().astype(np.int64)
    expected = np.bincount(bin_of_line, quantity, len(starts)).astype(np.int64)
    for index in np.flatnonzero(expected > MAX_QUANTITY).tolist():
        problems[index] = problems[index] or f"quantity: expected a sum up to {MAX_QUANTITY}, found {expected[index]}"
    columns: dict[str, pa.Array] = {
        "bin_id": bins.dictionary,
        "first_place": lines["place"].take(pa.array(starts)).combine_chunks(),
        "expected_qty": pa.array(np.minimum(expected, MAX_QUANTITY), pa.int32()),
        **_sku_columns(lines, bin_of_line, quantity, len(starts)),
        "unit_value": _mean_value(lines["unit_value"], bin_of_line, quantity, expected),
        "record_inconsistent": pa.array(np.zeros(len(starts), bool)),
    }
    for name in BIN_COLUMNS:
        values: list[object] = [None] * len(starts)
        several: set[int] = set()
        for index, value, place in _by_bin(bin_of_line, lines[name], lines["place"]):
            if values[index] is None:
                values[index] = value
            elif values[index] != value and name == "abc_class":
                several.add(index)
            elif values[index] != value:
                before, found = (
                    each.isoformat() if isinstance(each, datetime) else ascii(each)[:60]
                    for each in (values[index], value)
                )
                problems[index] = problems[index] or (
                    f"{place}: {name}: expected {before} as in the bin's lines before, found {found}"
                )
        values = [None if index in several else value for index, value in enumerate(values)]
        columns[name] = pa.array(values, WMS_SCHEMA.field(name).type)
    return pa.table({**columns, "problem": pa.array(problems, pa.string())})


def _by_bin(bin_of_line: np.ndarray, column: pa.ChunkedArray, places: pa.ChunkedArray) -> Iterator[tuple]:
    """(bin, value, place) of the lines that have a value."""
    given = pc.is_valid(column)
    taken = given.to_numpy()
    return zip(
        bin_of_line[taken].tolist(), column.filter(given).to_pylist(), places.filter(given).to_pylist(), strict=True
    )


def _sku_columns(lines: pa.Table, bin_of_line: np.ndarray, quantity: np.ndarray, num_bins: int) -> dict[str, pa.Array]:
    named = pc.is_valid(lines["sku"]).to_numpy()
    skus = lines.filter(pa.array(named))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bin_of_line[named], minlength=num_bins))])
    parts = [skus[name].combine_chunks().cast(SKU_LINE.field(name).type) for name in ("sku", "name", "quantity")]
    listed = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(parts, fields=list(SKU_LINE))
    )
    expected: list[dict[str, None]] = [{} for _ in range(num_bins)]
    for index, sku, pieces in zip(
        bin_of_line[named].tolist(), skus["sku"].to_pylist(), quantity[named].tolist(), strict=True
    ):
        if pieces:
            expected[index][sku] = None
    return {
        "skus": listed,
        "num_skus": pa.array([len(found) for found in expected], pa.int32()),
        "sku": pa.array([next(iter(found)) if len(found) == 1 else None for found in expected], pa.string()),
    }


def _mean_value(
    values: pa.ChunkedArray, bin_of_line: np.ndarray, quantity: np.ndarray, expected: np.ndarray
) -> pa.Array:
    value = pc.fill_null(values, float("nan")).to_numpy()
    # of an empty bin each line that gives one counts alike
    weight = np.where(expected[bin_of_line] > 0, quantity, ~np.isnan(value))
    worth = np.where(weight > 0, weight * value, 0.0)
    with np.errstate(invalid="ignore"):  # 0 / 0: no line gives one
        mean = np.bincount(bin_of_line, worth, len(expected)) / np.bincount(bin_of_line, weight, len(expected))
    return pa.array(mean, pa.float64(), mask=np.isnan(mean))
