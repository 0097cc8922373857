"""The Amazon Bin Image Dataset's record of one bin: a JSON document, from its bytes to a checked record.

`{"BIN_FCSKU_DATA": {ASIN: {"name": ..., "quantity": ...}, ...}, "EXPECTED_QUANTITY": N}`; other fields are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from schemas.arrow import MAX_QUANTITY

MAX_RECORD_BYTES = 10 * 2**20
"""Real records hold a few kB; what is larger is no record and is not read."""


class UnreadableRecord(ValueError):  # noqa: N818 - the domain's word; the image's counterpart is UnreadableImage
    """The document is no record; the message says what was expected and what was found, in one line."""


@dataclass(frozen=True)
class SkuLine:
    """One line of a record."""

    sku: str
    name: str | None
    quantity: int


@dataclass(frozen=True)
class BinRecord:
    """What the record expects in a bin. `expected_qty` is the record's own total, kept where its lines disagree."""

    expected_qty: int
    lines: tuple[SkuLine, ...]
    inconsistent: bool


def parse_record(data: bytes) -> BinRecord:
    """The record in one JSON document.

    A missing or null EXPECTED_QUANTITY is the sum of the lines: then they are the record's only statement. Names are
    kept as they are, control characters included; only half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD.
    Raises UnreadableRecord for everything else: nothing is guessed.
    """
    document = _load(data)
    if not isinstance(document, dict):
        raise UnreadableRecord(f"expected a JSON object, found {_show(document)}")
    entries = document.get("BIN_FCSKU_DATA")
    if not isinstance(entries, dict):
        raise UnreadableRecord(f"BIN_FCSKU_DATA: expected an object of SKU lines, found {_show(entries)}")
    lines = tuple(_parse_line(sku, entry) for sku, entry in entries.items())
    total = sum(line.quantity for line in lines)
    stated = document.get("EXPECTED_QUANTITY")
    if stated is None:
        expected_qty = _parse_quantity("sum of the lines", total)
    else:
        expected_qty = _parse_quantity("EXPECTED_QUANTITY", stated)
    return BinRecord(expected_qty=expected_qty, lines=lines, inconsistent=expected_qty != total)


def _load(data: bytes) -> object:
    if len(data) > MAX_RECORD_BYTES:
        raise UnreadableRecord(f"expected at most {MAX_RECORD_BYTES:,} bytes, found {len(data):,}")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise UnreadableRecord(f"expected UTF-8, found byte 0x{data[error.start]:02x} at {error.start}") from error
    except RecursionError as error:
        raise UnreadableRecord("expected a record, found JSON nested too deep to read") from error
    except UnreadableRecord:
        raise
    except ValueError as error:  # json.JSONDecodeError, and integers of more than 4,300 digits
        raise UnreadableRecord(f"expected JSON, found: {_clip(str(error))}") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Which of two values under one key counts is anybody's guess, so it is not made."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UnreadableRecord(f"expected each key once, found {_show(twice)} twice")
    return entries


def _parse_line(sku: str, entry: object) -> SkuLine:
    where = f"SKU {_clip(ascii(sku))}"
    if not sku or sku != _well_formed(sku):
        raise UnreadableRecord(f"{where}: expected a SKU of valid text")
    if not isinstance(entry, dict):
        raise UnreadableRecord(f"{where}: expected an object with name and quantity, found {_show(entry)}")
    name = entry.get("name")
    if name is not None and not isinstance(name, str):
        raise UnreadableRecord(f"{where}: name: expected text, found {_show(name)}")
    return SkuLine(
        sku=sku,
        name=None if name is None else _well_formed(name),
        quantity=_parse_quantity(f"{where}: quantity", entry.get("quantity")),
    )


def _parse_quantity(where: str, found: object) -> int:
    if isinstance(found, float) and found.is_integer():
        found = int(found)  # 2.0 is two: systems that keep quantities as floats write it so
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= MAX_QUANTITY:
        raise UnreadableRecord(f"{where}: expected a whole number from 0 to {MAX_QUANTITY}, found {_show(found)}")
    return found


def _well_formed(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _show(found: object) -> str:
    """A found value for a message: its kind, and short scalars themselves."""
    if found is None:
        return "nothing"
    if isinstance(found, dict | list):
        return "an object" if isinstance(found, dict) else "a list"
    if isinstance(found, int) and found.bit_length() > 64:
        return "a number beyond 64 bits"  # str() of huge integers is refused or slow
    return _clip(ascii(found))


def _clip(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
