"""Text from records made safe for where it goes: a CSV cell, a spreadsheet cell, JSON inside HTML.

A spreadsheet reads a CSV cell that begins with = + - @ as a formula (OWASP, CSV injection); XML 1.0 has no control
characters; a browser ends a script at the first `</script>`, and U+2028 used to end a JavaScript line.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

CELL_CHARACTERS = 32_767
"""What a spreadsheet cell holds."""

FORMULA_START = r"^[=+\-@\t\r\n＝＋－＠]"

# Shown by the pictures that Unicode has for them: ␀ ␛; tab and line ends are legal.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A, 0x0D)}
_CONTROL_PICTURES |= {0x7F: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}
_CONTROL_PICTURES |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)

_SCRIPT_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def csv_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Text cells of which none can become a formula: a dangerous first character gets an apostrophe before it."""
    dangerous = pc.match_substring_regex(column, FORMULA_START)
    guarded = pc.if_else(dangerous, pc.binary_join_element_wise("'", column, ""), column)
    if pc.any(pc.match_substring_regex(guarded, r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]")).as_py():
        return pa.array([None if text is None else visible_text(text) for text in guarded.to_pylist()], pa.string())
    return guarded


def cell_text(text: str) -> str:
    """As a spreadsheet cell can hold it: control characters shown by their pictures, cut visibly at the limit."""
    text = visible_text(text)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def visible_text(text: str) -> str:
    """Control characters, which XML forbids and terminals obey, as their pictures."""
    return text.translate(_CONTROL_PICTURES)


def script_json(value: Any) -> Markup:
    """JSON to stand inside `<script type="application/json">`; NaN is an error."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_SCRIPT_ESCAPES))  # noqa: S704 - every sign that ends the element is escaped


def shorten(text: str | None, length: int) -> str | None:
    if text is None or len(text) <= length:
        return text
    return text[: length - 1] + "…"
