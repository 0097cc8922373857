"""Which tables can be read as a schema, and what is said of those that can't."""

from __future__ import annotations

import pyarrow as pa
import pytest

from schemas.arrow import misspelt_columns, schema_problems
from schemas.manifest import MANIFEST_SCHEMA


def retyped(name: str, kind: pa.DataType) -> pa.Schema:
    return MANIFEST_SCHEMA.set(MANIFEST_SCHEMA.get_field_index(name), pa.field(name, kind))


def test_prices_may_be_whole_numbers() -> None:
    assert schema_problems(retyped("unit_value", pa.int64()), MANIFEST_SCHEMA) == []


def test_a_list_of_other_things_is_another_column() -> None:
    (problem,) = schema_problems(retyped("skus", pa.list_(pa.string())), MANIFEST_SCHEMA)
    assert problem.endswith("found list<item: string>; give it that type")


@pytest.mark.parametrize("name", [" zone", "Zone", "zone\t"])
def test_a_column_that_is_misspelt_is_named_unless_the_right_one_is_there(name: str) -> None:
    assert misspelt_columns([name], ["zone"]) == [f"column {name!a}: expected zone; rename it"]
    assert misspelt_columns([name, "zone"], ["zone"]) == []
