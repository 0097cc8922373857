"""What a spreadsheet of another locale makes of our CSV files."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from jobs.platform.texts import CELL_CHARACTERS, cell_text, csv_text, holds_rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        " =1+1",
        "Mug;=1+1",
        "Mug\t=1+1",
        'Mug;"=1+1;',
        'Mug; "=1+1',
        "Mug\n=1+1;",
        "Mug\r=1+1",
        'Mug\n"=1+1"',
        "Mug;'\"=1",
    ],
)
def test_no_cell_begins_a_formula_wherever_a_spreadsheet_parts_cells(name: str, delimiter: str) -> None:
    table = pa.table({"bin_id": ["b1"], "name": csv_text(pa.array([name])), "zone": ["Z"]})
    written = io.BytesIO()
    pa_csv.write_csv(table, written)
    text = written.getvalue().decode()
    # RFC 4180, and the way that ends a record at each line's end
    for lines in (io.StringIO(text, newline=""), text.splitlines(keepends=True)):
        for row in csv.reader(lines, delimiter=delimiter):
            assert not [cell for cell in row if cell.lstrip().startswith(("=", "+", "-", "@"))], row


def test_a_row_without_the_empty_cells_at_its_end_is_held_too() -> None:
    text = "damaged\nb,2026-03-02,3\nc"
    assert holds_rows(text, ",", 5, 7, 2)


def test_a_text_is_cut_where_a_cell_is_full() -> None:
    cut = cell_text(pa.array(["x" * CELL_CHARACTERS, "x" * (CELL_CHARACTERS + 1)])).to_pylist()
    assert cut == ["x" * CELL_CHARACTERS, "x" * (CELL_CHARACTERS - 1) + "…"]
