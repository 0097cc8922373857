"""Text from records made safe for where it goes: a CSV cell, a spreadsheet cell, JSON inside HTML.

A spreadsheet reads a CSV cell that begins with = + - @ as a formula (OWASP, CSV injection); XML 1.0 has no control
characters; a browser ends a script at the first `</script>`, and U+2028 used to end a JavaScript line.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

Strings: TypeAlias = pa.ChunkedArray | pa.Array

CSV_ENCODING = "utf-8-sig"
"""Excel takes a CSV file without a byte order mark for the machine's own code page, and shows and saves ö as something
else."""
CELL_CHARACTERS = 32_767
"""What a spreadsheet cell holds."""

_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]*)?")

FORMULA_START = r"^([\t\r\n]|[\s\"']*[=+\-@＝＋－＠])"
CELL_INSIDE = r"([;\t\r\n][\s\"']*)([=+\-@＝＋－＠])"
"""Where a spreadsheet that parts cells at semicolons or tabs, as it does in much of Europe, begins another one. To it our
quotation marks are a part of the text, so that a line's end or a quotation mark of the text's own ends or begins a cell."""

# Shown by the pictures that Unicode has for them: ␀ ␛; tab and line ends are legal.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A, 0x0D)}
_CONTROL_PICTURES |= {0x7F: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}

_INVISIBLE = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F\x{FFFE}\x{FFFF}]"

_SCRIPT_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def csv_text(column: Strings) -> Strings:
    """Text cells of which none can become a formula: a dangerous first character gets an apostrophe before it, also
    after a semicolon, tab or line's end, where another locale begins a cell."""
    if pc.any(pc.match_substring_regex(column, CELL_INSIDE)).as_py():
        column = pc.replace_substring_regex(column, CELL_INSIDE, r"\1'\2")
    dangerous = pc.match_substring_regex(column, FORMULA_START)
    return visible_column(pc.if_else(dangerous, pc.binary_join_element_wise("'", column, ""), column))


def holds_rows(text: str, delimiter: str, place: int, num_cells: int, quantity: int) -> bool:
    """Whether a CSV cell took in rows because a quotation mark was not closed: whether its lines are the rest of its own row
    (it is cell `place` of `num_cells`), perhaps whole rows, and the next one up to the same place or the end of the file.
    Text of several lines may look like that by chance, but for the number that stands as cell `quantity`."""
    # not splitlines, for which a byte of a letter may end a line
    lines = [line.split(delimiter) for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if len(lines) < 2:
        return False
    first, *between, last = ([cell.strip() for cell in line] for line in lines)
    # a spreadsheet may leave out empty cells at the end of a row
    if any(len(cells) <= num_cells and _shows_number(cells, quantity) for cells in between):
        return True
    if len(last) == num_cells:
        return _shows_number(last, quantity)
    if between or len(first) > num_cells - place or len(last) != place + 1 or quantity == place:
        return False
    return _shows_number(last, quantity) if quantity < place else _shows_number(first, quantity - place)


def _shows_number(cells: list[str], place: int) -> bool:
    return place < len(cells) and _NUMBER.fullmatch(cells[place]) is not None


def cell_text(column: Strings) -> Strings:
    """Text as spreadsheet cells can hold it: visible, and cut visibly at the limit."""
    too_long = pc.greater(pc.utf8_length(column), CELL_CHARACTERS)
    if pc.any(too_long).as_py():
        cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(column, 0, CELL_CHARACTERS - 1), "…", "")
        column = pc.if_else(too_long, cut, column)
    return visible_column(column)


def visible_column(column: Strings) -> Strings:
    if pc.any(pc.match_substring_regex(column, _INVISIBLE)).as_py():
        return pa.array([None if text is None else visible_text(text) for text in column.to_pylist()], pa.string())
    return column


def visible_text(text: str) -> str:
    """Control characters, which XML forbids and terminals obey, as their pictures."""
    return text.translate(_CONTROL_PICTURES)


def script_json(value: Any) -> Markup:
    """JSON to stand inside `<script type="application/json">`; NaN is an error."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_SCRIPT_ESCAPES))


def shorten(text: str | None, length: int) -> str | None:
    if text is None or len(text) <= length:
        return text
    return text[: length - 1] + "…"
