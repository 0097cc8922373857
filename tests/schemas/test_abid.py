import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.abid import MAX_RECORD_BYTES, BinRecord, SkuLine, UnreadableRecord, parse_record
from schemas.arrow import MAX_QUANTITY
from schemas.manifest import SKU_LINE


def document(quantities: dict[str, object], **fields: object) -> bytes:
    entries = {sku: {"name": f"name of {sku}", "quantity": quantity} for sku, quantity in quantities.items()}
    return json.dumps({"BIN_FCSKU_DATA": entries, **fields}).encode()


def test_a_record_gives_its_lines_in_order_and_its_total() -> None:
    record = parse_record(document({"B2": 4, "B1": 2}, EXPECTED_QUANTITY=6))
    assert record == BinRecord(
        expected_qty=6,
        lines=(SkuLine("B2", "name of B2", 4), SkuLine("B1", "name of B1", 2)),
        inconsistent=False,
    )


def test_an_empty_bin_expects_nothing() -> None:
    assert parse_record(b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 0}') == BinRecord(0, (), False)


def test_a_total_that_differs_from_its_lines_is_kept_and_marked() -> None:
    record = parse_record(document({"B1": 1}, EXPECTED_QUANTITY=2))
    assert (record.expected_qty, record.inconsistent) == (2, True)


@pytest.mark.parametrize("fields", [{}, {"EXPECTED_QUANTITY": None}])
def test_without_a_total_the_lines_are_the_record(fields: dict[str, object]) -> None:
    record = parse_record(document({"B1": 1, "B2": 3}, **fields))
    assert (record.expected_qty, record.inconsistent) == (4, False)


def test_a_total_without_fraction_written_as_a_float_counts() -> None:
    assert parse_record(document({"B1": 2.0}, EXPECTED_QUANTITY=2.0)) == parse_record(
        document({"B1": 2}, EXPECTED_QUANTITY=2)
    )


def test_a_byte_order_mark_is_no_obstacle() -> None:
    assert parse_record(b"\xef\xbb\xbf" + document({"B1": 2})).expected_qty == 2


def test_odd_names_are_kept_and_always_storable() -> None:
    names = ["", "\x00\x1b[31m", "a\nb\tc", "'; DROP TABLE bins; --", "=1+1", "\u202e", "漢字 🎁", None]
    entries = {f"B{index}": {"name": name, "quantity": 1} for index, name in enumerate(names)}
    record = parse_record(json.dumps({"BIN_FCSKU_DATA": entries}).encode())
    assert [line.name for line in record.lines] == names
    broken = parse_record(rb'{"BIN_FCSKU_DATA": {"B1": {"name": "half \ud83c pair", "quantity": 1}}}')
    assert broken.lines[0].name == "half \ufffd pair"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff\xfe", "expected UTF-8, found byte 0xff at 0"),
        (b"[]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found nothing"),
        (b"{}", "BIN_FCSKU_DATA: expected an object of SKU lines, found nothing"),
        (b'{"BIN_FCSKU_DATA": [1]}', "found a list"),
        (b'{"BIN_FCSKU_DATA": {"B1": 3}}', "SKU 'B1': expected an object with name and quantity, found 3"),
        (b'{"BIN_FCSKU_DATA": {"B1": {}}}', "SKU 'B1': quantity: .* found nothing"),
        (b'{"BIN_FCSKU_DATA": {"": {"quantity": 1}}}', "SKU '': expected a SKU"),
        (rb'{"BIN_FCSKU_DATA": {"\ud800": {"quantity": 1}}}', "expected a SKU of valid text"),
        (b'{"BIN_FCSKU_DATA": {"B1": {"quantity": 1, "name": 7}}}', "name: expected text, found 7"),
        (b'{"BIN_FCSKU_DATA": {}, "BIN_FCSKU_DATA": {}}', "found 'BIN_FCSKU_DATA' twice"),
        (b'{"BIN_FCSKU_DATA": {"B1": {"quantity": 1}, "B1": {"quantity": 2}}}', "found 'B1' twice"),
        (b'{"BIN_FCSKU_DATA": ' + b"[" * 1_000_000, "nested too deep"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": ' + b"9" * 100_000 + b"}", "expected JSON"),
        (b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": ' + b"9" * 4000 + b"}", "a number beyond 64 bits"),
        (b" " * (MAX_RECORD_BYTES + 1), "expected at most 10,485,760 bytes"),
    ],
)
def test_what_is_no_record_says_why_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableRecord, match=reason) as caught:
        parse_record(data)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantity", [-1, MAX_QUANTITY + 1, 1.5, "2", True, [], {}, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("in_line", [True, False])
def test_what_is_no_quantity_is_refused_in_a_line_and_as_the_total(quantity: object, in_line: bool) -> None:
    data = document({"B1": quantity}) if in_line else document({"B1": 1}, EXPECTED_QUANTITY=quantity)
    with pytest.raises(UnreadableRecord, match=f"expected a whole number from 0 to {MAX_QUANTITY}"):
        parse_record(data)


def test_lines_that_together_leave_int32_are_no_total() -> None:
    with pytest.raises(UnreadableRecord, match="sum of the lines"):
        parse_record(document({"B1": MAX_QUANTITY, "B2": 1}))
    assert parse_record(document({"B1": MAX_QUANTITY, "B2": 1}, EXPECTED_QUANTITY=5)).inconsistent


# No deadline: the machine may be busy with other work.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
near_records = st.fixed_dictionaries(
    {
        "BIN_FCSKU_DATA": st.dictionaries(
            st.text(st.characters(), max_size=5),
            st.fixed_dictionaries(
                {"quantity": st.integers(-2, 2**32) | json_values, "name": st.text(st.characters()) | json_values}
            ),
            max_size=3,
        )
        | json_values
    },
    optional={"EXPECTED_QUANTITY": st.integers(-2, 2**32) | json_values},
)


def assert_record_or_reason(data: bytes) -> None:
    try:
        record = parse_record(data)
    except UnreadableRecord as reason:
        assert 0 < len(str(reason)) < 250
        return
    assert 0 <= record.expected_qty <= MAX_QUANTITY
    assert record.inconsistent == (record.expected_qty != sum(line.quantity for line in record.lines))
    rows = [{"sku": line.sku, "name": line.name, "quantity": line.quantity} for line in record.lines]
    assert pa.array(rows, SKU_LINE).to_pylist() == rows


@given(st.binary(max_size=200))
def test_any_bytes_give_a_record_or_a_reason(data: bytes) -> None:
    assert_record_or_reason(data)


@given(near_records | json_values)
def test_any_json_gives_a_storable_record_or_a_reason(found: object) -> None:
    assert_record_or_reason(json.dumps(found).encode())


@given(st.dictionaries(st.text(min_size=1, max_size=10), st.integers(0, 1000), max_size=5), st.integers(0, 5000))
def test_a_well_formed_record_comes_through_whole(quantities: dict[str, int], expected_qty: int) -> None:
    record = parse_record(document(dict(quantities), EXPECTED_QUANTITY=expected_qty))
    assert {line.sku: line.quantity for line in record.lines} == quantities
    assert record.expected_qty == expected_qty
    assert record.inconsistent == (expected_qty != sum(quantities.values()))
