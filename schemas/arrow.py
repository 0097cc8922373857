"""Arrow schemas whose columns say what they mean, and the message for a table that doesn't fit one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

TIMESTAMP = pa.timestamp("us", tz="UTC")
DAMAGED_PARQUET = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises of a file that is no Parquet or a damaged one: an OSError of a page, a UnicodeDecodeError of a column's
name, which it reads when it is asked for."""
MAX_QUANTITY = 2**31 - 1
"""Quantities are int32 in every table."""


def column(name: str, kind: pa.DataType, description: str, *, required: bool = False) -> pa.Field:
    """One column; `required` columns are never null. The description travels in the field's metadata."""
    return pa.field(name, kind, nullable=not required, metadata={"description": description})


def describe(field: pa.Field) -> str:
    """The description given to `column`."""
    return (field.metadata or {}).get(b"description", b"").decode()


def schema_problems(found: pa.Schema, expected: pa.Schema) -> list[str]:
    """What keeps a table of schema `found` from being read as `expected`: one line per column, all at once.

    Optional columns may be missing; other columns are ignored, but for misspelt ones; a type fits where a safe cast
    exists (int64 for int32, large_string for string, another time unit).
    """
    problems = misspelt_columns(found.names, expected.names)
    for field in expected:
        places = found.get_all_field_indices(field.name)
        if len(places) > 1:
            problems.append(f"column {field.name}: expected once, found {len(places)} times; keep one of them")
        elif not places and not field.nullable:
            problems.append(f"column {field.name}: expected {field.type}, found no such column; add it")
        elif places and not _castable(found.field(places[0]).type, field.type):
            kind = found.field(places[0]).type
            problems.append(f"column {field.name}: expected {field.type}, found {kind}; give it that type")
    return problems


def misspelt_columns(found: Sequence[str], expected: Sequence[str]) -> list[str]:
    """One line per name of `found` that is one of `expected` but for its letter case or blanks around it, where that one is
    missing: an optional column would be ignored without a word."""
    meant = [(name, name.strip().lower()) for name in found]
    return [
        f"column {name!a}: expected {right}; rename it"
        for name, right in meant
        if name != right and right in expected and right not in found
    ]


def conform(table: pa.Table, expected: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `expected`, in its order and types; missing optional ones are null.

    Raises pa.ArrowInvalid where a value doesn't fit (an int64 that is no int32). File metadata is kept.
    """
    columns = [
        cast_values(table.column(field.name), field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in expected
    ]
    return pa.Table.from_arrays(columns, schema=expected.with_metadata(table.schema.metadata))


def cast_values(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Of a time in nanoseconds, as pandas writes it, the microseconds. Raises pa.ArrowInvalid where a value doesn't fit."""
    is_fine = pa.types.is_timestamp(values.type) and values.type.unit == "ns"
    return values.cast(kind, safe=not is_fine)


def outside_calendar(times: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Mask of the timestamps that no calendar of Python's holds in every time zone, such as a database's `infinity`: those
    before the year 2 or after 9998. False for null."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[times.type.unit]
    first, last = (
        max(-(2**63), min(2**63 - 1, int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * per_second))
        for year in (2, 9999)
    )
    ticks = times.cast(pa.int64())
    return pc.fill_null(pc.or_(pc.less(ticks, first), pc.greater_equal(ticks, last)), False)


def file_metadata(schema: pa.Schema) -> dict[str, str]:
    """The file's own key-value metadata as text, without Arrow's and pandas' entries."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in metadata.items()
        if key not in (b"ARROW:schema", b"pandas") and not key.startswith(b"PARQUET:")
    }


def _castable(found: pa.DataType, expected: pa.DataType) -> bool:
    if found.equals(expected) or pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _castable(found.value_type, expected)
    if pa.types.is_struct(expected):
        return pa.types.is_struct(found) and not schema_problems(pa.schema(list(found)), pa.schema(list(expected)))
    if pa.types.is_list(expected):
        lists = pa.types.is_list(found) or pa.types.is_large_list(found)
        return lists and _castable(found.value_type, expected.value_type)
    kinds = (
        lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
        pa.types.is_integer,
        pa.types.is_boolean,
        lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None,
    )
    if any(kind(found) and kind(expected) for kind in kinds):
        return True
    return pa.types.is_floating(expected) and (pa.types.is_floating(found) or pa.types.is_integer(found))
