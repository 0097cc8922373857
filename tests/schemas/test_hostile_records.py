"""Exports of a warehouse system made to break the reader: each line is a record or has its problem, and none is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.abid import MAX_RECORD_BYTES, UnreadableRecord, parse_record
from schemas.arrow import MAX_QUANTITY, outside_calendar
from schemas.wms import WMS_SCHEMA, group_lines, parse_lines

unhurried = settings(deadline=None)

NUMBERS = [
    "",
    " ",
    "0",
    "-0",
    "1e9",
    "1e999",
    "NaN",
    "inf",
    "-1",
    "+5",
    "5.0",
    "5.5",
    "0x10",
    "١٢",
    "９",
    "1_000",
    "1,5",
]
TIMES = [
    *("2026-01-31T02:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30"),
    *("9998-12-31T23:59:59.9-23:59", "0002-01-01T00:00:00+23:59"),
]
TEXTS = ["=1+1", "\x00", "\x1b[31m", "\u202e", "\u2028", "a\nb", '"', "'; DROP TABLE bins; --", "../..", "9" * 5000]
ODD = st.sampled_from([*NUMBERS, *TIMES, *TEXTS])
CELLS = ODD | st.text(max_size=8) | st.integers(-5, 2**40).map(str) | st.floats().map(str)


def with_surrogates_replaced(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@unhurried
@given(st.data(), st.integers(1, 5))
def test_any_cells_are_values_or_a_problem(data: st.DataObject, num_lines: int) -> None:
    names = data.draw(st.lists(st.sampled_from(WMS_SCHEMA.names[3:]), unique=True)) + WMS_SCHEMA.names[:3]
    cells = {name: [with_surrogates_replaced(data.draw(CELLS)) for _ in range(num_lines)] for name in names}
    lines = parse_lines(pa.table({name: pa.array(values, pa.string()) for name, values in cells.items()}), 2)
    assert lines["row"].to_pylist() == list(range(2, 2 + num_lines))
    for line in lines.to_pylist():
        quantity, value = line["quantity"], line["unit_value"]
        assert line["problem"] or 0 <= quantity <= MAX_QUANTITY
        assert value is None or 0 <= value < float("inf")
        assert not line["problem"] or "\n" not in line["problem"]
    assert not any(pa.compute.any(outside_calendar(lines[name])).as_py() for name in ("photo_at", "expected_as_of"))
    known = lines.filter(pa.compute.is_valid(lines["bin_id"]))
    bins = group_lines(known)
    assert bins["bin_id"].to_pylist() == sorted(set(known["bin_id"].to_pylist()), key=str.encode)
    for found in bins.to_pylist():
        if found["problem"] is None:
            assert found["expected_qty"] == sum(line["quantity"] for line in found["skus"])


@pytest.mark.parametrize("cell", ["9998-12-31T23:59:59.9-23:59", "0002-01-01T00:00:00+23:59", "0001-01-01T00:00+14:00"])
def test_the_year_of_a_time_is_the_one_that_the_audit_judges(cell: str) -> None:
    line = {"bin_id": ["a"], "sku": ["S"], "quantity": ["1"], "photo_at": [cell]}
    assert (parse_lines(pa.table(line), 2)["problem"][0].as_py() or "").startswith("photo_at: expected a time")


# not by getrusage: a process begins with the peak of the one that started it
MEASURE = """
import sys
from pathlib import Path
from schemas.abid import parse_record
def peak_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
before = peak_kb()
parse_record(sys.stdin.buffer.read())
print((peak_kb() - before) // 1024)
"""


@pytest.mark.parametrize(
    "record",
    [
        {"BIN_FCSKU_DATA": {f"B{n:06d}": {"name": "x", "quantity": 1} for n in range(200_000)}},
        {"BIN_FCSKU_DATA": {}, "other": [[]] * 3_000_000},
    ],
    ids=["200,000 lines", "3,000,000 lists"],
)
def test_a_record_of_ten_megabytes_takes_bounded_memory(record: dict) -> None:
    data = json.dumps(record, separators=(",", ":")).encode()
    assert 5 * 2**20 < len(data) <= MAX_RECORD_BYTES
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=data, cwd=Path(__file__).parents[2], capture_output=True, check=True
    )
    assert int(done.stdout) < 512, "MB"


def test_nesting_beyond_the_stack_is_a_reason_and_no_crash() -> None:
    for opening in (b"[", b'{"a":'):
        with pytest.raises(UnreadableRecord, match="nested too deep"):
            parse_record(b'{"BIN_FCSKU_DATA": ' + opening * 500_000)
