from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from schemas.wms import group_lines, parse_lines


def test_cells_of_blanks_are_empty_ones() -> None:
    lines = {"bin_id": ["A1  "], "sku": ["s "], "quantity": [" 3"], "unit_value": ["   "], "photo_at": [" "]}
    bins = group_lines(parse_lines(pa.table(lines), 2))
    assert bins.select(["bin_id", "expected_qty", "unit_value", "problem"]).to_pylist() == [
        {"bin_id": "A1", "expected_qty": 3, "unit_value": None, "problem": None}
    ]


@pytest.mark.parametrize(
    ("unit", "beyond"), [("s", 2**60), ("ms", 253_402_300_800_000), ("us", -(2**62)), ("s", -62_135_596_800)]
)
def test_a_time_that_no_calendar_holds_is_a_problem_of_its_line(unit: str, beyond: int) -> None:
    good = 1_700_000_000 * {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    times = pa.array([good, beyond, None], pa.timestamp(unit, "UTC"))
    found = parse_lines(
        pa.table({"bin_id": ["a", "b", "c"], "sku": ["S"] * 3, "quantity": [1] * 3, "photo_at": times}), 1
    )
    assert found["photo_at"].cast(pa.int64()).to_pylist() == [1_700_000_000_000_000, None, None]
    first, second, third = found["problem"].to_pylist()
    assert (first, third) == (None, None)
    assert second == f"photo_at: expected a time of the years 2 to 9998, found {beyond} {unit} since 1970"


def test_a_price_that_the_audit_would_refuse_the_night_for_is_a_problem_of_its_line() -> None:
    lines = pa.table(
        {"bin_id": ["a", "b"], "sku": ["S"] * 2, "quantity": [1] * 2, "unit_value": ["9999999999999", "7"]}
    )
    found = parse_lines(lines, 1)
    assert found["problem"].to_pylist() == ["unit_value: expected at most 1e+12, found '9999999999999'", None]


def test_an_empty_bin_has_the_value_that_its_line_gives() -> None:
    rows = [("a", None, "0", "3.5"), ("b", None, "0", ""), ("c", "S", "2", "4"), ("d", "S", "1", ""), ("e", "S", "0", "2"),
            ("e", "T", "0", "4")]  # fmt: skip
    names = ("bin_id", "sku", "quantity", "unit_value")
    found = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    assert group_lines(parse_lines(found, 2))["unit_value"].to_pylist() == [3.5, None, 4.0, None, 3.0]


def test_a_bin_s_lines_stand_in_the_order_of_the_export() -> None:
    rows = [("a", "S", 1), ("b", "S", 1), ("a", "T", 2), ("a", "R", 3)]
    bins, skus, quantities = map(list, zip(*rows, strict=True))
    lines = parse_lines(pa.table({"bin_id": bins, "sku": skus, "quantity": quantities}), 2)
    found = group_lines(lines.take(pa.array([3, 1, 2, 0])))  # as pieces of a range come in
    assert [[line["sku"] for line in each] for each in found["skus"].to_pylist()] == [["S", "T", "R"], ["S"]]
    assert found["first_place"].to_pylist() == ["row 2", "row 3"]


def test_a_point_that_may_part_thousands_is_not_guessed_at() -> None:
    texts = ["1.000", "12.000", "1.0", "1.00", "1000.000", "5.", "0.000"]
    lines = {"bin_id": [f"b{i}" for i in range(len(texts))], "sku": ["S"] * len(texts)}
    found = parse_lines(pa.table({**lines, "quantity": texts}), 2)
    assert found["quantity"].to_pylist() == [None, None, 1, 1, 1000, 5, 0]
    assert found["problem"][0].as_py().startswith("quantity: expected a whole number without a point")
    decimals = pa.array([Decimal("5.000")], pa.decimal128(13, 3))
    exact = parse_lines(pa.table({"bin_id": ["a"], "sku": ["S"], "quantity": decimals}), 1)
    assert exact["quantity"].to_pylist() == [5]


def test_a_number_may_lack_its_leading_zero_as_databases_write_it() -> None:
    quantities = [".0000", "+.0", "3", "3", "3", ".5", ".", "+"]
    values = [".25", "+.5", ".5e1", ".", "-.5", "1", "1", "1"]
    lines = {"bin_id": [f"b{i}" for i in range(len(values))], "sku": ["S"] * len(values)}
    found = parse_lines(pa.table({**lines, "quantity": quantities, "unit_value": values}), 2)
    assert found["quantity"].to_pylist() == [0, 0, 3, 3, 3, None, None, None]
    assert found["unit_value"].to_pylist() == [0.25, 0.5, 5.0, None, None, 1, 1, 1]
    assert pc.is_valid(found["problem"]).to_pylist() == [False] * 3 + [True] * 5


def test_a_mixed_bin_may_hold_goods_of_several_classes() -> None:
    lines = {"bin_id": list("aabb"), "sku": list("1212"), "quantity": ["1"] * 4, "abc_class": ["A", "B", "C", ""]}
    bins = group_lines(parse_lines(pa.table(lines), 2))
    assert bins["abc_class"].to_pylist() == [None, "C"]
    assert bins["problem"].to_pylist() == [None, None]


def test_a_column_of_times_may_hold_nothing_or_be_a_dictionary() -> None:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    encoded = pa.array([moment], pa.timestamp("us", "UTC")).dictionary_encode()
    for times, value in ((pa.nulls(1), None), (encoded, moment)):
        found = parse_lines(pa.table({"bin_id": ["a"], "sku": ["S"], "quantity": [1], "photo_at": times}), 1)
        assert (found["photo_at"].to_pylist(), found["problem"].to_pylist()) == ([value], [None])


def test_a_line_of_no_pieces_is_no_further_sku() -> None:
    lines = {"bin_id": list("aab"), "sku": list("STS"), "quantity": ["0", "3", "0"]}
    bins = group_lines(parse_lines(pa.table(lines), 2))
    assert (bins["num_skus"].to_pylist(), bins["sku"].to_pylist()) == ([1, 0], ["T", None])
    assert [len(found) for found in bins["skus"].to_pylist()] == [2, 1]


def test_a_line_of_no_pieces_needs_no_price() -> None:
    rows = [("a", "S", "2", "3"), ("a", "T", "0", "")]
    names = ("bin_id", "sku", "quantity", "unit_value")
    found = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    assert group_lines(parse_lines(found, 2))["unit_value"].to_pylist() == [3.0]
