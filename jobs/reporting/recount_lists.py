"""The list that goes to the floor, blind: where to count and nothing else; and the same list for the planner, who sees why.

Blind: no quantities, no SKUs (lines of a record hint at quantities), no rank and no reason, since a counter who knows
that a bin is suspect counts it differently. Walk order: zone, then bin_id with numbers in it compared as numbers. The
blind CSV has the columns that `jobs.recount` takes in, empty, so that the list itself can be filled in and given back.
"""

from __future__ import annotations

import codecs
import csv
import io
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import xlsxwriter

from jobs.counting.history import BinToCount
from jobs.platform.texts import CSV_ENCODING, csv_text, visible_text
from schemas.recount import COUNTS_SCHEMA
from schemas.results import RESULTS_SCHEMA

FILLED_IN = [name for name in COUNTS_SCHEMA.names if name not in ("bin_id", "audit_date")]
"""Columns that the counter fills in."""

PLACE = ["stop", "zone", "bin_id", "audit_date"]
"""Columns of both lists: the same bins at the same stops."""

COLUMNS = [*PLACE, *FILLED_IN]

SEEN_BY_PLANNER = [
    *("recount", "rank", "expected_qty", "camera_qty", "p_record_wrong", "expected_variance_qty"),
    *("value_at_risk", "currency"),
]

RECORD_MODEL = "record_model"
"""What the probabilities of a planner's file rest on stands in its last column, the same in every row."""

PLANNER_SCHEMA = pa.schema([RESULTS_SCHEMA.field(name) for name in ("bin_id", "zone", *SEEN_BY_PLANNER)])


def walk_order(planned: pa.Table) -> list[tuple[str | None, str]]:
    """(zone, bin_id) of every planned bin (PLANNER_SCHEMA) in walk order; bins without a zone last."""
    places = zip(planned["zone"].to_pylist(), planned["bin_id"].to_pylist(), strict=True)
    return sorted(places, key=lambda place: _walk_key(*place))


def _walk_key(zone: str | None, bin_id: str) -> tuple[object, ...]:
    return zone is None, natural_key(zone or ""), natural_key(bin_id)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts B-2 before B-10, and what differs in leading zeros only by its text."""
    pieces = re.split(r"([0-9]+)", text)
    # isascii: other scripts have decimal digits too, which the pattern leaves in the text
    numbered = [
        (0, int(piece), "") if piece.isascii() and piece.isdecimal() else (1, 0, piece) for piece in pieces if piece
    ]
    return numbered, text


def recount_csv(places: list[tuple[str | None, str]], audit_date: str) -> bytes:
    return blind_csv([BinToCount(zone, bin_id, audit_date) for zone, bin_id in places])


def second_counts_csv(waiting: list[BinToCount]) -> bytes:
    """Bins to be counted by a second person, as blind as the first time, each for its own night."""
    return blind_csv(sorted(waiting, key=lambda bin: (_walk_key(bin.zone, bin.bin_id), bin.night)))


def blind_csv(bins: list[BinToCount]) -> bytes:
    """COLUMNS of them, in the order given."""
    zones = csv_text(pa.array([bin.zone for bin in bins], pa.string())).to_pylist()
    bin_ids = csv_text(pa.array([bin.bin_id for bin in bins], pa.string())).to_pylist()
    nights = [bin.night for bin in bins]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for stop, (zone, bin_id, night) in enumerate(zip(zones, bin_ids, nights, strict=True), start=1):
        writer.writerow([stop, zone or "", bin_id, night, *[""] * len(FILLED_IN)])
    return text.getvalue().encode(CSV_ENCODING)


def is_blank(data: bytes) -> bool:
    """Whether a list is as `blind_csv` wrote it: nobody has filled it in, nor saved it in a form of their own."""
    return all(line.endswith(b"," * len(FILLED_IN)) for line in data.splitlines()[1:])


def planner_csv(places: list[tuple[str | None, str]], planned: pa.Table, audit_date: str, record_model: str) -> bytes:
    """The blind list's bins at their stops with what the night says of them (`planned`, PLANNER_SCHEMA, in any order)."""
    zones, bins = (pa.array([place[part] for place in places], pa.string()) for part in (0, 1))
    rows = planned.take(pc.index_in(bins, planned["bin_id"].combine_chunks()))
    texts = [csv_text(rows[name]) if pa.types.is_string(rows[name].type) else rows[name] for name in SEEN_BY_PLANNER]
    where = [range(1, len(places) + 1), csv_text(zones), csv_text(bins), pa.repeat(audit_date, len(places))]
    sink = io.BytesIO()
    sink.write(codecs.BOM_UTF8)
    names = [*PLACE, *SEEN_BY_PLANNER, RECORD_MODEL]
    pa_csv.write_csv(pa.table([*where, *texts, pa.repeat(record_model, len(places))], names=names), sink)
    return sink.getvalue()


def recount_xlsx(places: list[tuple[str | None, str]], audit_date: str) -> bytes:
    """A sheet for a clipboard: A4, the header on every page, ruled rows, an empty column for the count."""
    sink = io.BytesIO()
    book = xlsxwriter.Workbook(sink, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False})
    sheet = book.add_worksheet("Recount")
    title = book.add_format({"bold": True, "font_size": 14})
    head = book.add_format({"bold": True, "border": 1, "bg_color": "#E8E8E8", "text_wrap": True})
    cell = book.add_format({"border": 1, "valign": "vcenter", "text_wrap": True})
    empty = book.add_format({"border": 2, "valign": "vcenter"})
    sheet.write_string(0, 0, f"Recount list for night {audit_date}: {len(places)} bins in walk order", title)
    sheet.write_string(
        1,
        0,
        "Count every piece in the bin. Write 0 for an empty bin. Counted by: ____________  Day and time: ____________",
    )
    for column, (name, width) in enumerate((("Stop", 6), ("Zone", 14), ("Bin", 32), ("Count", 12), ("Remarks", 28))):
        sheet.write_string(3, column, name, head)
        sheet.set_column(column, column, width)
    for stop, (zone, bin_id) in enumerate(places, start=1):
        row = stop + 3
        sheet.set_row(row, 24)
        sheet.write_number(row, 0, stop, cell)
        sheet.write_string(row, 1, visible_text(zone or ""), cell)
        sheet.write_string(row, 2, visible_text(bin_id), cell)
        sheet.write_blank(row, 3, None, empty)
        sheet.write_blank(row, 4, None, cell)
    sheet.freeze_panes(4, 0)
    sheet.repeat_rows(3)
    sheet.set_paper(9)
    sheet.fit_to_pages(1, 0)
    sheet.set_footer(f"&LNight {audit_date}&RPage &P of &N")
    book.close()
    return sink.getvalue()
