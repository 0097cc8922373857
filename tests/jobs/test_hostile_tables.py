"""Manifests and recount files made to break the reader: each is read whole or refused with a message."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.counting.counts_file import read_counts_file
from jobs.platform.parquet import open_parquet, read_table
from jobs.stages.manifest import _agreed, problems_of_files
from jobs.stages.manifest_file import FileReport, report_file
from schemas.arrow import conform
from schemas.errors import InputError
from schemas.manifest import MANIFEST_SCHEMA
from schemas.recount import COUNTS_SCHEMA
from tests.dump import manifest_table
from tests.night import NASTY_TEXTS

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


GOOD = parquet_bytes(manifest_table("/photos", [1, 2, 3], unit_value=[1.0, 2.0, None]))
COUNTS = parquet_bytes(
    pa.table({"bin_id": ["a"], "audit_date": ["2026-03-02"], "counted_qty": [3], "counted_at": ["2026-03-03T08:00Z"]})
)
damages = st.tuples(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 60),
    st.binary(max_size=20),
)


def damage(data: bytes, how: tuple[list[tuple[int, int]], int, bytes]) -> bytes:
    places, cut, tail = how
    damaged = bytearray(data[: len(data) - cut] + tail)
    for place, value in places:
        damaged[place % len(damaged)] = value
    return bytes(damaged)


def problems(folder: Path, data: bytes) -> list[str]:
    path = folder / "part.parquet"
    path.write_bytes(data)
    return report_file(str(path), path.read_bytes()).problems


def test_a_column_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    data = GOOD.replace(b"bin_id", b"\x80in_id")
    assert "expected a Parquet file" in problems(tmp_path, data)[0]
    for read in (read_table, open_parquet):
        with pytest.raises(InputError, match=r"part\.parquet: expected a Parquet file"):
            read(str(tmp_path / "part.parquet"))


@unhurried
@given(damages)
def test_a_damaged_manifest_is_read_or_refused(tmp_path: Path, how: tuple) -> None:
    assert all(isinstance(problem, str) for problem in problems(tmp_path, damage(GOOD, how)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"unit_value": [1.0, float("nan"), None]}, r"row 2: unit_value: expected a value from 0 to 1e\+12, found nan"),
        (
            {"photo_at": pa.array([0, None, 2**63 - 1], pa.timestamp("us", "UTC"))},
            "row 3: photo_at: expected a time of the years 2 to 9998, found 9223372036854775807 micro",
        ),
        (
            {"expected_as_of": pa.array([0, 1764000000_000_000, None], pa.timestamp("ms", "UTC"))},
            "row 2: expected_as_of: expected a time of the years 2 to 9998",
        ),
        ({"unit_value": [float("inf"), 1.0, 1.0]}, "row 1: unit_value: .*found inf"),
        ({"unit_value": [1.0, 1.0, 1e300]}, r"row 3: unit_value: .*found 1e\+300"),
        ({"unit_value": [-0.01, 1.0, 1.0]}, r"row 1: unit_value: .*found -0\.01"),
        ({"expected_qty": [1, -(2**31), 3]}, "row 2: expected_qty: expected 0 or more"),
        ({"num_skus": [1, 1, -1]}, "row 3: num_skus: expected 0 or more, found -1"),
        ({"image_uri": ["a", "", "c"]}, "row 2: image_uri: expected a text"),
    ],
    ids=[
        *("nan", "infinite time", "milliseconds", "infinite", "huge", "negative value", "negative quantity"),
        *("negative number", "no photo"),
    ],
)
def test_a_value_that_is_none_is_named(tmp_path: Path, columns: dict, message: str) -> None:
    (problem,) = problems(tmp_path, parquet_bytes(manifest_table("/photos", [1, 2, 3], **columns)))
    assert re.search(message, problem), problem


def test_quantities_beyond_int32_and_texts_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    table = manifest_table("/photos", [1, 2, 3])
    wide = table.set_column(2, "expected_qty", pa.array([1, 2**40, 3]))
    (problem,) = problems(tmp_path, parquet_bytes(wide))
    assert (
        "row 2: expected_qty: expected int32, found another value (Integer value 1099511627776 not in range" in problem
    )
    broken = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    (problem,) = problems(tmp_path, parquet_bytes(table.set_column(0, "bin_id", broken)))
    assert "row 2: bin_id: expected string, found another value (" in problem and "UTF8" in problem


def test_metadata_of_noise_is_no_obstacle(tmp_path: Path) -> None:
    table = manifest_table("/photos", [1]).replace_schema_metadata({b"\xff": b"\xfe", b"audit_date": b"2026-11-22"})
    assert problems(tmp_path, parquet_bytes(table)) == []


def test_odd_names_are_no_problem(tmp_path: Path) -> None:
    texts = list(NASTY_TEXTS)
    table = manifest_table("/photos", [1] * len(texts), bin_id=texts, zone=texts)
    assert problems(tmp_path, parquet_bytes(table)) == []


def test_a_column_of_counts_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "counts.parquet"
    path.write_bytes(parquet_bytes(pa.table({"bin_id": ["a"]})).replace(b"bin_id", b"\x80in_id"))
    with pytest.raises(InputError, match=r"counts\.parquet: expected a Parquet file"):
        read_counts_file(str(path))


def assert_rows_or_reason(folder: Path, data: bytes) -> None:
    path = folder / "counts"
    path.write_bytes(data)
    try:
        rows = read_counts_file(str(path))
    except InputError as reason:
        assert str(path) in str(reason)
        return
    assert all(row.malformed or set(row.cells) <= set(COUNTS_SCHEMA.names) for row in rows)


@unhurried
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_recount_csv_is_rows_or_a_reason(tmp_path: Path, tail: bytes) -> None:
    assert_rows_or_reason(tmp_path, tail)
    assert_rows_or_reason(tmp_path, b"bin_id,audit_date,counted_qty,counted_at\n" + tail)


@unhurried
@given(damages)
def test_a_damaged_recount_parquet_is_rows_or_a_reason(tmp_path: Path, how: tuple) -> None:
    assert_rows_or_reason(tmp_path, damage(COUNTS, how))


def test_files_of_two_nights_or_of_another_format_are_no_manifest() -> None:
    def found(*versions: str) -> list[str]:
        metadata = [{"format_version": version} for version in versions]
        return problems_of_files([FileReport("m", "", num_rows=1, metadata=each) for each in metadata], "m")

    assert found("1", "1") == []
    assert found("2") == ["m: expected manifest format_version 1, found 2"]
    assert "m: the files disagree on format_version: 1, 2" in found("1", "2")[0]
    problems: list[str] = []
    _agreed("audit_date", [{"audit_date": "2026-11-22"}, {}, {"audit_date": "2026-11-21"}], "m", problems)
    assert "m: the files disagree on audit_date: 2026-11-21, 2026-11-22" in problems[0]


@pytest.mark.parametrize("name", ["photo_at", "expected_as_of"])
def test_a_time_without_a_zone_is_named(tmp_path: Path, name: str) -> None:
    table = manifest_table("/photos", [1, 2])
    local = pa.array([0, None], pa.timestamp("us"))
    data = parquet_bytes(table.set_column(table.schema.get_field_index(name), name, local))
    (problem,) = problems(tmp_path, data)
    assert problem.endswith(f"column {name}: expected timestamp[us, tz=UTC], found timestamp[us]; give it that type")


@pytest.mark.parametrize("name", ["photo_at", "expected_as_of"])
def test_a_time_in_nanoseconds_is_read_as_an_export_s_is(tmp_path: Path, name: str) -> None:
    table = manifest_table("/photos", [1, 2])
    times = pa.array([1764000000_000_000_123, None], pa.timestamp("ns", "UTC"))
    table = table.set_column(table.schema.get_field_index(name), name, times)
    assert problems(tmp_path, parquet_bytes(table)) == []
    assert conform(table, MANIFEST_SCHEMA)[name].cast(pa.int64()).to_pylist() == [1764000000_000_000, None]


def test_rows_are_numbered_and_judged_beyond_the_first_batch(tmp_path: Path) -> None:
    num_rows = 65_536 + 2
    prices = [None, *[1.0] * (num_rows - 1)]
    table = manifest_table("/photos", [1] * num_rows, unit_value=prices)
    path = tmp_path / "part.parquet"
    assert not report_file(str(path), parquet_bytes(table)).has_all_unit_values
    wide = table.set_column(2, "expected_qty", pa.array([*[1] * (num_rows - 1), 2**40]))
    (problem,) = problems(tmp_path, parquet_bytes(wide))
    assert f"row {num_rows}: expected_qty" in problem
