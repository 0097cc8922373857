from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.counting.check import MOST_WAITING, check_counts
from jobs.counting.count_rows import Reject, parse_row
from jobs.counting.counted import add_counted, read_counted
from jobs.counting.counts_file import CountsRow
from jobs.counting.history import read_history
from jobs.counting.ledger import Ledger
from jobs.counting.records import lines_of
from jobs.platform import storage
from jobs.platform.parquet import read_table, write_table
from jobs.platform.run_record import read_run
from jobs.platform.uris import absolute, is_s3, join
from jobs.recount import main
from jobs.reporting.recount_lists import recount_csv, recount_xlsx, second_counts_csv
from schemas.errors import InputError
from schemas.recount import COUNTED_SCHEMA
from tests.planned_night import commit_night, plan_row, priority_row, write_run

NIGHT = "2026-03-02"
HEADER = "bin_id,audit_date,counted_qty,counted_at,counter_id,confirmed,reason_code"


def at(hour: int, day: int = 3) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """One committed night: bins a to d to count, z not in the plan."""
    uri = str(tmp_path / "audits")
    commit_night(uri, NIGHT, [plan_row(name) for name in "abc"] + [priority_row("d", 1)], other_bins=[plan_row("z")])
    return uri


def test_counts_are_on_disk_before_they_are_taken_in_and_what_a_power_cut_left_of_them_says_what_to_do(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settled: list[int] = []
    monkeypatch.setattr(storage, "settle", lambda uri: settled.append(storage.find_object(uri).num_bytes))
    assert take_in(output, f"a,{NIGHT},3,{at(8).isoformat()},ann,,") == 0
    (size,) = settled
    (entry,) = (e for e in storage.list_objects(f"{output}/counted") if not e.uri.endswith("_schema.parquet"))
    assert size == entry.num_bytes > 0
    storage.write_bytes(entry.uri, b"")
    assert take_in(output, f"a,{NIGHT},3,{at(8).isoformat()},ann,,") == 2
    assert "delete it, and give the counts of that time to jobs.recount again" in capsys.readouterr().err
    storage.delete([entry.uri])
    assert take_in(output, f"a,{NIGHT},3,{at(8).isoformat()},ann,,") == 0


def take_in(
    output: str, *lines: str, header: str = HEADER, name: str = "counts.csv", flags: tuple[str, ...] = ()
) -> int:
    uri = join(output, "..", name) if not is_s3(output) else join(output, name)
    storage.write_bytes(absolute(uri), "\n".join([header, *lines, ""]).encode())
    return main(["--output-uri", output, "--counts-uri", uri, *flags])


def rejects(output: str) -> list[dict[str, str]]:
    (entry,) = storage.list_objects(join(output, "count_rejects"))
    data = storage.read_bytes(entry.uri)
    assert data.startswith(b"\xef\xbb\xbf")  # by which a spreadsheet knows UTF-8
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))


def test_a_count_is_kept_with_what_the_plan_knew(output: str) -> None:
    assert take_in(output, f"d,{NIGHT},1,2026-03-03T08:00Z,kim,true,theft") == 0
    table = read_counted(output)
    assert table.schema.equals(COUNTED_SCHEMA, check_metadata=True)
    (row,) = table.to_pylist()
    assert row == {
        **row,
        "bin_id": "d",
        "audit_date": NIGHT,
        "counted_qty": 1,
        "counted_at": at(8),
        "counter_id": "kim",
        "confirmed": True,
        "reason_code": "theft",
        "run_id": f"{NIGHT}-aaaaaaaaaaaa",
        "expected_qty": 3,
        "recount": "priority",
        "inclusion_probability": 1.0,
        "rank": 1,
        "bundle_id": "bundle-one",
        "camera_qty": 3,
    }
    assert len(row["probabilities"]) == 7
    (entry,) = storage.list_objects(join(output, "counted"))
    made = json.loads(read_table(entry.uri).schema.metadata[b"made"])
    assert made["config"]["time_zone"] == "UTC" and "pyarrow" in made["versions"]


def test_the_same_file_twice_adds_nothing(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"a,{NIGHT},3,2026-03-03T08:00Z,,,", f"b,{NIGHT},2,2026-03-03T08:05Z,,,"]
    assert take_in(output, *lines) == 0
    before = {entry.uri: storage.read_bytes(entry.uri) for entry in storage.list_objects(output + "/counted")}
    capsys.readouterr()
    assert take_in(output, *reversed(lines), name="again.csv") == 0
    assert "taken in before" in capsys.readouterr().out
    assert {entry.uri: storage.read_bytes(entry.uri) for entry in storage.list_objects(output + "/counted")} == before


ROWS = st.lists(
    st.tuples(
        st.sampled_from([2, 3, 4]),
        st.integers(8, 11).map(at),
        st.sampled_from(["anna", "bert", "cleo", ""]),
        st.sampled_from(["", "", "", "true", "false"]),
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@example([(3, at(8), "anna", ""), (2, at(9), "anna", ""), (2, at(10), "cleo", "")])
@example(
    [
        (3, at(8), "bert", ""),
        *((2, at(9), who, "") for who in ("bert", "anna")),
        (3, at(10), "cleo", ""),
        (2, at(11), "bert", ""),
    ]
)
@given(ROWS)
def test_neither_the_same_file_again_nor_one_that_grows_says_something_else(
    rows: list[tuple[int, datetime, str, str]],
) -> None:
    counts = [
        CountsRow(
            number,
            {
                **{"bin_id": "a", "audit_date": NIGHT, "counted_qty": str(quantity), "counter_id": who},
                **{"counted_at": counted_at.isoformat(), "confirmed": confirmed},
            },
        )
        for number, (quantity, counted_at, who, confirmed) in enumerate(sorted(rows, key=lambda row: row[1]), start=2)
    ]

    def say(output: str, *files: list[CountsRow]) -> list[tuple[float, bool, int]]:
        said = []
        commit_night(output, NIGHT, [plan_row("a", 3)])
        for file in files:
            found = check_counts(output, [NIGHT], file, zone=ZoneInfo("UTC"), now=at(12))
            if found.accepted.num_rows:
                add_counted(output, found.accepted)
            (night,) = read_history(output, "2026-03-03").in_force
            said.append((np.nan_to_num(night.counted_qty[0]), night.settled[0], found.accepted.num_rows))
        return said

    with tempfile.TemporaryDirectory() as folder:
        once, twice = say(f"{folder}/whole", counts, counts)
        assert twice == (*once[:2], 0)
        growing = say(f"{folder}/growing", *(counts[:size] for size in range(1, len(counts) + 1)))
        assert growing[-1][:2] == once[:2]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_a_list_may_part_its_cells_as_spreadsheets_do(output: str, delimiter: str) -> None:
    line, header = (text.replace(",", delimiter) for text in (f"a,{NIGHT},3,2026-03-03T08:00Z,,,", HEADER))
    assert take_in(output, line, header=header) == 0
    (row,) = read_counted(output).to_pylist()
    assert (row["counted_qty"], row["confirmed"]) == (3, None), "whether it is confirmed, nobody says"


def test_rows_that_all_name_one_bin_are_not_tried_again_without_end(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, tries = Ledger.enter, []
    monkeypatch.setattr(Ledger, "enter", lambda ledger, row, qty: (tries.append(row), enter(ledger, row, qty)))
    commit_night(output, NIGHT, [plan_row("a", 3)])
    rows = [
        CountsRow(
            number,
            {
                **{"bin_id": "a", "audit_date": NIGHT, "counted_qty": str(number % 17), "counter_id": f"p{number % 9}"},
                **{"counted_at": (at(8) + timedelta(seconds=number)).isoformat(), "confirmed": "true"},
            },
        )
        for number in range(2, 402)
    ]
    found = check_counts(output, [NIGHT], rows, zone=ZoneInfo("UTC"), now=at(12))
    assert found.accepted.num_rows + len(found.rejects) == 400
    assert len(tries) < (MOST_WAITING + 2) * len(rows)


def test_a_growing_export_adds_only_what_is_new(output: str) -> None:
    first = f"a,{NIGHT},3,2026-03-03T08:00Z,,,"
    assert take_in(output, first) == 0
    assert take_in(output, first, f"b,{NIGHT},3,2026-03-03T09:00Z,,,") == 0
    assert sorted(read_counted(output)["bin_id"].to_pylist()) == ["a", "b"]


def test_results_that_were_deleted_are_asked_for_by_new_counts_only(output: str) -> None:
    old = f"a,{NIGHT},3,2026-03-04T08:00Z,,,"
    commit_night(output, "2026-03-03", [plan_row("a"), plan_row("b")])
    assert take_in(output, old) == 0
    commit_night(output, "2026-03-04", [plan_row("c")])
    storage.delete([entry.uri for entry in storage.list_objects(output + "/results/audit_date=2026-03-03")])
    assert take_in(output, old, "c,2026-03-04,3,2026-03-05T08:00Z,,,") == 0
    assert take_in(output, old, f"b,{NIGHT},3,2026-03-04T08:00Z,,,", "b,2026-03-03,3,2026-03-04T09:00Z,,,") == 1
    (reject,) = rejects(output)
    assert (reject["bin_id"], reject["audit_date"], reject["reason"]) == ("b", NIGHT, "unknown_night")
    assert "the results of the night 2026-03-03, which say what was recorded then, are deleted" in reject["detail"]
    assert sorted(read_counted(output)["bin_id"].to_pylist()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nowhere,2026-03-02,3,2026-03-03T08:00Z,,,", "unknown_bin"),
        ("z,2026-03-02,3,2026-03-03T08:00Z,,,", "not_planned"),
        ("a,2026-03-01,3,2026-03-03T08:00Z,,,", "unknown_night"),
        ("a,../../runs,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,03/04/2026,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,31-02-2026,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,22/02/2026,3,2026-03-03T08:00Z,,,", "unknown_night"),
        ("a,2026-03-01T23:00:00.000Z,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,02.03.2026 23:00,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,0001-01-01,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,1999-12-31,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,9999-12-31,3,2026-03-03T08:00Z,,,", "bad_date"),
        ("a,2026-03-02,3,yesterday,,,", "bad_date"),
        ("a,2026-03-02,3,0001-01-01,,,", "before_night"),
        ("a,2026-03-02,3,9999-12-31T23:59:59-14:00,,,", "bad_date"),
        ("a,2026-03-02,3,9999-12-31T23:59:59Z,,,", "in_future"),
        ("a,2026-03-02,3,0001-01-01T00:00+14:00,,,", "bad_date"),
        ("a,2026-03-02,3,,,,", "missing_value"),
        ("a,2026-03-02,,2026-03-03T08:00Z,,,", "missing_value"),
        ("a,2026-03-02,-1,2026-03-03T08:00Z,,,", "negative_quantity"),
        ("a,2026-03-02,2.5,2026-03-03T08:00Z,,,", "bad_quantity"),
        ("a,2026-03-02,many,2026-03-03T08:00Z,,,", "bad_quantity"),
        ("a,2026-03-02,3000000000,2026-03-03T08:00Z,,,", "bad_quantity"),
        ("a,2026-03-02,3,2026-03-03T08:00Z,,perhaps,", "bad_flag"),
        ("a,2026-03-02,3,2026-03-03T08:00Z,1.23457E+11,,", "bad_counter"),
        ("a,2026-03-02,3,2026-02-28T08:00Z,,,", "before_night"),
        ("a,2026-03-02,3,2999-01-01T08:00Z,,,", "in_future"),
        ("a,2026-03-02,3,2026-03-03T08:00Z,,,,more", "malformed_row"),
        ("a,2026-03-02,1.000,2026-03-03T08:00Z,,,", "bad_quantity"),
        ("a,2026-03-02,40170725,2026-03-03T08:00Z,,,", "implausible_quantity"),
        ("a,2026-03-02,3,05/06/2026 08:00,,,", "bad_date"),
        ("a,2026-03-02,3,31.02.2026 08:00,,,", "bad_date"),
        ("a,3/2/2026,3,13/3/2026 8:15,,,", "bad_date"),
        ("a,3/2/2026,3,3/3/2026 13:15 PM,,,", "bad_date"),
        ("b,2026-03-02,3,2026-03-03T09:00Z,,,", "counted_twice"),
        ("b,2026-03-02,2,2026-03-03T10:00Z,,,", "counted_twice"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason_and_the_good_ones_are_taken_in(
    output: str, line: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take_in(output, f"b,{NIGHT},3,2026-03-03T09:00Z,,,", line) == 1
    (found,) = rejects(output)
    assert (found["row"], found["reason"], found["bin_id"]) == ("3", reason, line.split(",")[0])
    assert found["detail"]
    assert read_counted(output)["bin_id"].to_pylist() == ["b"]
    assert f"1 {reason}" in capsys.readouterr().err
    # Athena and Spark take every file below counted/ for a part of the table
    assert all(entry.uri.endswith(".parquet") for entry in storage.list_objects(output + "/counted"))


def test_a_rejected_row_is_reported_again_until_it_can_be_taken_in(output: str) -> None:
    line = "a,2026-03-04,3,2026-03-05T08:00Z,,,"
    assert take_in(output, line) == 1
    assert take_in(output, line) == 1
    commit_night(output, "2026-03-04", [plan_row("a")])
    assert take_in(output, line) == 0


def test_one_message_names_all_problems_of_the_columns(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert take_in(output, "a,3,1,1", header="bin,counted_qty,counter_id,counter_id") == 2
    message = capsys.readouterr().err
    for part in ("column bin_id", "column audit_date", "column counted_at", "column counter_id: expected once"):
        assert part in message
    assert list(storage.list_objects(output + "/counted")) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b"\xff\xfe\x00b", "save the list as CSV UTF-8"),
        (b"PAR1 and no more", "a damaged one"),
        (recount_xlsx([("Z", "a")], NIGHT), "found a workbook (.xlsx): copy its counts into recount_list.csv"),
        (HEADER.encode(), "found 0 rows without any"),
        (b'bin_id,"au', "expected CSV"),
    ],
)
def test_a_file_that_is_no_list_of_counts_is_refused(
    output: str, tmp_path: Path, data: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "counts").write_bytes(data)
    assert main(["--output-uri", output, "--counts-uri", str(tmp_path / "counts")]) == 2
    assert message in capsys.readouterr().err


def test_without_a_committed_night_there_is_nothing_to_count_for(tmp_path: Path) -> None:
    write_run(str(tmp_path / "audits"), f"{NIGHT}-bbbbbbbbbbbb", [plan_row("a")])
    assert take_in(str(tmp_path / "audits"), f"a,{NIGHT},3,2026-03-03T08:00Z,,,") == 2


def test_plans_of_replaced_runs_still_count_and_those_never_committed_do_not(output: str) -> None:
    write_run(output, f"{NIGHT}-cccccccccccc", [plan_row("never")])
    commit_night(output, NIGHT, [plan_row("e")], run="bbbbbbbbbbbb", marked=False)  # it died right after its commit
    commit_night(output, "2026-03-03", [plan_row("f")])
    lines = [f"{name},{NIGHT},3,2026-03-03T08:00Z,,," for name in ("a", "e", "never")]
    assert take_in(output, *lines, "f,2026-03-03,3,2026-03-04T08:00Z,,,") == 1
    runs = dict(zip(*(read_counted(output)[name].to_pylist() for name in ("bin_id", "run_id")), strict=True))
    assert runs == {
        name: f"{night}-{run * 12}"
        for name, night, run in (("a", NIGHT, "a"), ("e", NIGHT, "b"), ("f", "2026-03-03", "a"))
    }
    assert [found["bin_id"] for found in rejects(output)] == ["never"]


def test_a_count_after_the_record_changed_is_rejected(output: str) -> None:
    changed = [plan_row("a", 3), plan_row("b", 5), plan_row("c", 5, expected_as_of=at(20))]
    commit_night(output, "2026-03-03", [], other_bins=changed)
    lines = [f"{name},{NIGHT},3,2026-03-04T12:00Z,,," for name in "abc"]
    assert take_in(output, *lines) == 1
    assert [(found["bin_id"], found["reason"]) for found in rejects(output)] == [
        ("b", "record_changed"),
        ("c", "record_changed"),
    ]
    assert "from 3 to 5" in rejects(output)[0]["detail"]


def test_a_count_after_as_many_of_another_sku_were_recorded_is_rejected(tmp_path: Path) -> None:
    uri = str(tmp_path / "audits")

    def record(sku: str, *quantities: int) -> list[dict[str, object]]:
        return [{"sku": sku, "name": None, "quantity": quantity} for quantity in quantities or [3]]

    assert lines_of([*record("A"), *record("B")]) == lines_of([*record("B"), *record("A")]), "lines have no order"
    # two lots of one SKU and a line of none are the same pieces
    lots = [*record("B", 1, 2), *record("sold out", 0)]
    commit_night(uri, NIGHT, [plan_row("a", skus=record("A")), plan_row("b", skus=lots), plan_row("c", skus=[])])
    tonight = [plan_row("a", skus=record("other")), plan_row("b", skus=record("B")), plan_row("c", skus=record("C"))]
    commit_night(uri, "2026-03-03", tonight)
    assert take_in(uri, *(f"{name},{NIGHT},1,2026-03-05T08:00Z,kim,," for name in "abc")) == 1
    assert [(row["bin_id"], row["reason"]) for row in rejects(uri)] == [("a", "record_changed")]
    assert read_counted(uri)["skus"].to_pylist() == [lots, []]
    assert read_history(uri, "2026-03-06").last_counts["lines"].dropna().to_dict() == {"b": lines_of(record("B"))}


def test_a_count_before_the_record_changed_stands(output: str) -> None:
    changed = [plan_row("b", 5), plan_row("c", 5, expected_as_of=at(20))]
    commit_night(output, "2026-03-03", [], other_bins=changed)
    assert take_in(output, *(f"{name},{NIGHT},3,2026-03-03T19:00Z,,," for name in "bc")) == 0


@pytest.mark.parametrize(
    ("counted_at", "reason"),
    [("2026-03-03T02:00Z", None), ("2026-03-03T10:00Z", "record_changed"), ("2026-03-03", "bad_date")],
)
def test_a_record_of_unknown_age_was_read_before_its_audit_began(
    output: str, counted_at: str, reason: str | None
) -> None:
    """Two pieces came, the audit that began at 2:30 has seen them in the record, and somebody counts by the list of the day
    before: no error of the record."""
    changed = [plan_row("b", 5)]
    commit_night(output, "2026-03-03", [], other_bins=changed, started_at="2026-03-03T02:30:00+00:00")
    assert take_in(output, f"b,{NIGHT},5,{counted_at},,,") == (reason is not None)
    if reason:
        assert [found["reason"] for found in rejects(output)] == [reason]


def test_time_zones_need_none_of_the_system_s_files() -> None:
    ask = "from zoneinfo import ZoneInfo; print(ZoneInfo('UTC'), ZoneInfo('Europe/Berlin'))"
    done = subprocess.run(
        [sys.executable, "-c", ask], env=os.environ | {"PYTHONTZPATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "UTC Europe/Berlin\n"


def test_a_count_by_a_plan_that_was_replaced_meanwhile_is_about_that_plan_s_record(tmp_path: Path) -> None:
    """Counted 4 where 5 were expected; the record was mended to 4, and the night audited again, before it came in."""
    output = str(tmp_path / "audits")
    old = commit_night(output, NIGHT, [plan_row("a", 5)], run="ffffffffffff", started_at="2026-03-03T02:00:00+00:00")
    commit_night(output, NIGHT, [plan_row("a", 6)], run="bbbbbbbbbbbb", started_at="2026-03-03T01:00:00+00:00")
    commit_night(output, NIGHT, [plan_row("a", 4)], run="cccccccccccc", started_at="2026-03-03T11:00:00+00:00")
    assert take_in(output, f"a,{NIGHT},4,2026-03-03T09:00Z,kim,,") == 0
    assert read_counted(output).select(["run_id", "expected_qty"]).to_pylist() == [{"run_id": old, "expected_qty": 5}]


def test_a_count_made_before_the_record_was_read_says_nothing_about_it(tmp_path: Path) -> None:
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row("a", expected_as_of=at(23, day=2))])
    assert take_in(output, f"a,{NIGHT},3,2026-03-02T22:00Z,,,") == 1
    assert rejects(output)[0]["reason"] == "before_night"


@pytest.mark.parametrize(
    ("bin_id", "counted_at", "reason"),
    [
        ("dated", "2026-03-03", "bad_date"),  # its record was read at 2:00 that day
        ("dated", "03.03.2026", "bad_date"),
        ("dated", "2026-03-03 00:00:00", "bad_date"),  # a day, as a column of timestamps holds it
        ("dated", "2026-03-02", "before_night"),
        ("dated", "2026-03-04", None),
        ("undated", "2026-03-03", None),
        ("midnight", "2026-03-03", None),  # of which only the day is known, too
        ("changed", "2026-03-03", None),
        ("changed", "2026-03-04", "bad_date"),  # was read to be another at 20:00 that day
        ("changed", "2026-03-05", "record_changed"),
        ("replanned", "2026-03-03", "bad_date"),
    ],
)
def test_a_count_without_a_time_of_day_stands_where_it_says_the_same_the_whole_day(
    tmp_path: Path, bin_id: str, counted_at: str, reason: str | None
) -> None:
    output = str(tmp_path / "audits")
    bins = [plan_row("dated", expected_as_of=at(2)), plan_row("undated"), plan_row("changed"), plan_row("replanned", 4)]
    bins.append(plan_row("midnight", expected_as_of=at(0)))
    commit_night(output, NIGHT, [plan_row("replanned")], run="f" * 12, started_at="2026-03-02T22:00:00+00:00")
    commit_night(output, NIGHT, bins, started_at="2026-03-03T02:00:00+00:00")
    commit_night(output, "2026-03-04", [], other_bins=[plan_row("changed", 5, expected_as_of=at(20, day=4))])
    assert take_in(output, f"{bin_id},{NIGHT},3,{counted_at},kim,,") == (reason is not None)
    if reason:
        (found,) = rejects(output)
        assert found["reason"] == reason
        assert ("expected a time of day" in found["detail"]) == (reason == "bad_date")


def test_a_mismatch_is_pending_until_a_second_count_agrees(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,kim,,") == 0
    assert "resolved: 0; pending: 4" in capsys.readouterr().out
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T09:00Z,lee,,", name="second.csv") == 0
    assert "resolved: 1; pending: 3" in capsys.readouterr().out


def test_one_count_taken_twice_does_not_confirm_itself(output: str) -> None:
    line = f"a,{NIGHT},1,2026-03-03T08:00Z,kim,,"
    assert take_in(output, line, line) == 1
    assert rejects(output)[0]["reason"] == "counted_twice"
    (night,) = read_history(output, "2026-03-03").in_force
    assert night.num_random_resolved == 0


@pytest.mark.parametrize("flags", [(), ("--time-zone", "Asia/Tokyo")])
@pytest.mark.parametrize("counter", ["kim", ""])
def test_a_sheet_that_comes_again_with_other_times_does_not_confirm_itself(
    output: str, flags: tuple[str, ...], counter: str
) -> None:
    lines = [
        f"{name},{NIGHT},{qty},2026-03-03 19:00:30,{counter},," for name, qty in zip("abd", (3, 1, 2), strict=True)
    ]
    assert take_in(output, *lines) == 0
    again = [line.replace(":30,", ",") for line in lines]
    assert take_in(output, *again, name="again.csv", flags=flags) == 1
    assert [(found["bin_id"], found["reason"]) for found in rejects(output)] == [
        (name, "counted_twice") for name in "abd"
    ]
    (night,) = read_history(output, "2026-03-03").in_force
    assert (night.num_random_resolved, night.num_priority_resolved, night.num_pending) == (1, 0, 3)
    assert take_in(output, f"b,{NIGHT},1,2026-03-03 19:00,{counter},true,", name="confirmed.csv", flags=flags) == 0
    assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == 2


def test_one_person_who_counts_twice_is_one_person(output: str) -> None:
    lines = [f"a,{NIGHT},1,2026-03-03T08:00Z,kim,,", f"a,{NIGHT},1,2026-03-03T09:00Z,kim,,"]
    assert take_in(output, *lines) == 1
    assert "another counter_id" in rejects(output)[0]["detail"]
    assert read_counted(output).num_rows == 1


def test_a_person_s_own_correction_replaces_what_they_counted(output: str) -> None:
    lines = [f"a,{NIGHT},{quantity},2026-03-03T0{hour}:00Z,kim,," for hour, quantity in ((8, 1), (9, 11))]
    assert take_in(output, *lines) == 0
    assert read_history(output, "2026-03-03").in_force[0].counted_qty[0] == 11
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T10:00Z,lee,,", name="lee.csv") == 0  # kim has taken that back
    assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == 0
    assert take_in(output, f"a,{NIGHT},11,2026-03-03T11:00Z,ana,,", name="ana.csv") == 0
    facts = read_history(output, "2026-03-03").last_counts.loc["a"]
    assert (facts["finding"], facts["found_qty"]) == ("wrong", 11)


def test_what_a_person_took_back_settles_nothing(output: str) -> None:
    lines = [f"a,{NIGHT},{quantity},2026-03-03T0{hour}:00Z,kim,," for quantity, hour in ((1, 7), (3, 8))]
    assert take_in(output, *lines, f"a,{NIGHT},1,2026-03-03T09:00Z,lee,,") == 0  # kim found what the record says since
    assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == 0
    # it may be the first sheet again with other times
    back = [f"b,{NIGHT},{quantity},2026-03-03T0{hour}:00Z,kim,," for quantity, hour in ((1, 6), (11, 7), (1, 8))]
    assert take_in(output, *back, name="back.csv") == 1
    assert "kim' has found 1 pieces already" in rejects(output)[0]["detail"]
    nameless = [f"d,{NIGHT},{quantity},2026-03-03T06:00Z,,," for quantity in (1, 2)]
    assert take_in(output, *nameless, name="nameless.csv") == 0


def test_of_two_counts_that_contradict_each_other_the_later_one_is_refused_wherever_it_stands(output: str) -> None:
    assert take_in(output, *(f"a,{NIGHT},{qty},2026-03-03T{hour}:00Z,,," for qty, hour in ((1, "10"), (3, "08")))) == 1
    assert read_counted(output)["counted_qty"].to_pylist() == [3]


def test_a_file_from_before_a_confirmation_may_come_again(output: str) -> None:
    line = f"a,{NIGHT},1,2026-03-03T08:00Z,kim,false,"
    for text in (line, line.replace("false", "true"), line):
        assert take_in(output, text) == 0
    assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == 1


def test_of_two_quantities_at_one_time_nobody_knows_which_corrects_the_other(output: str) -> None:
    lines = [f"a,{NIGHT},{quantity},2026-03-03T08:00Z,kim,," for quantity in (1, 11)]
    assert take_in(output, *lines) == 1
    assert "another quantity at the same time: a correction needs a later one" in rejects(output)[0]["detail"]


def test_a_sheet_that_comes_again_under_another_name_does_not_confirm_itself(output: str) -> None:
    sheet = [f"a,{NIGHT},1,2026-03-03T08:15:42Z,kim,,", f"b,{NIGHT},1,2026-03-03T08:16:10Z,kim,,"]
    assert take_in(output, *sheet) == 0
    assert take_in(output, *(line.replace("kim", "lee") for line in sheet), name="renamed.csv") == 1
    assert [found["bin_id"] for found in rejects(output)] == ["a", "b"]
    assert "the same sheet under another name?" in rejects(output)[0]["detail"]
    assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:15:42Z,lee,true,", name="confirmed.csv") == 0


def test_a_sheet_without_its_names_and_seconds_is_no_other_count(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:15:42Z,kim,,") == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03 08:15,,,", name="saved.csv") == 1
    assert rejects(output)[0]["reason"] == "counted_twice"
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T09:00Z,lee,,", name="second.csv") == 0
    assert read_history(output, "2026-03-03").last_counts.loc["a", "finding"] == "right"


def test_a_confirmation_that_is_taken_back_is_not_passed_over(output: str) -> None:
    line = f"a,{NIGHT},1,2026-03-03T08:00Z,kim,true,"
    assert take_in(output, line) == 0
    for empty in (line, line.replace("true", "")):
        assert take_in(output, empty, name="again.csv") == 0
    assert take_in(output, line.replace("true", "false"), name="withdrawn.csv") == 1
    assert "this count was confirmed before, and what was confirmed stays so" in rejects(output)[0]["detail"]


def test_a_count_may_come_again_once_it_is_confirmed(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,kim,,") == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,kim,true,") == 0
    history = read_history(output, "2026-03-03")
    assert history.in_force[0].num_random_resolved == 1
    assert history.last_counts.loc["a", "num_counted"] == 1


def test_what_was_learned_is_told(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T08:00Z,,,") == 0
    told = capsys.readouterr().out
    assert "no night has 90 %" in told and "record model (assumed)" in told
    assert take_in(output, *(f"{name},{NIGHT},3,2026-03-03T08:00Z,,," for name in "abc")) == 0
    told = capsys.readouterr().out
    assert "error rate: 0.0% (95 %" in told and "record model (learned)" in told
    assert "3 resolved random counts" in told


def test_random_bins_that_no_night_drew_are_not_awaited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit_night(str(tmp_path), NIGHT, [priority_row("a", 1)])
    assert take_in(str(tmp_path), f"a,{NIGHT},3,2026-03-03T08:00Z,,,") == 0
    assert "error rate: no night drew random bins\n" in capsys.readouterr().out


def test_times_without_an_offset_are_in_the_given_zone(output: str) -> None:
    assert (
        take_in(
            output,
            f"a;{NIGHT};3;2026-03-03 08:00;;;",
            header=HEADER.replace(",", ";"),
            flags=("--time-zone", "Asia/Tokyo"),
        )
        == 0
    )
    assert read_counted(output)["counted_at"].to_pylist() == [at(23, day=2)]
    for unknown in ("Nowhere/Land", "Europe", "../UTC"):
        assert take_in(output, f"b,{NIGHT},3,2026-03-03 08:00,,,", flags=("--time-zone", unknown)) == 2


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us", "UTC")])
def test_parquet_says_the_same_as_csv(output: str, tmp_path: Path, kind: pa.DataType) -> None:
    counts = pa.table(
        {
            "bin_id": pa.array(["a", "b", "c"]).dictionary_encode(),
            "audit_date": pa.array([datetime(2026, 3, 2, tzinfo=UTC)] * 3).cast(kind),
            "counted_qty": pa.array([3.0, float("nan"), 2.5]),
            "counted_at": pa.array([at(8)] * 3, pa.timestamp("ns", "Europe/Berlin")),
            "confirmed": pa.array([None, True, False]),
            "anything": pa.array([[1], [2], [3]]),
        }
    )
    pq.write_table(counts, tmp_path / "counts.parquet")
    assert main(["--output-uri", output, "--counts-uri", str(tmp_path / "counts.parquet")]) == 1
    (row,) = read_counted(output).to_pylist()
    assert (row["bin_id"], row["counted_qty"], row["counted_at"]) == ("a", 3, at(8))
    assert [(found["row"], found["reason"]) for found in rejects(output)] == [
        ("2", "missing_value"),
        ("3", "bad_quantity"),
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("counted_at", pa.array([2**62, 1772524800000000], pa.timestamp("us", "UTC"))),
        ("counted_at", pa.array([2**62, 1772524800000], pa.timestamp("ms", "UTC"))),
        ("audit_date", pa.array([2**30, 20514], pa.date32())),
        ("bin_id", pa.array([b"\xff", b"b"]).view(pa.string())),
    ],
)
def test_one_value_that_nobody_can_read_costs_its_row_and_no_other(
    output: str, tmp_path: Path, name: str, values: pa.Array
) -> None:
    columns = {
        "bin_id": ["a", "b"],
        "audit_date": [NIGHT] * 2,
        "counted_qty": [3, 3],
        "counted_at": ["2026-03-03T08:00Z"] * 2,
    }
    pq.write_table(pa.table({**columns, name: values}), tmp_path / "counts.parquet")
    assert main(["--output-uri", output, "--counts-uri", str(tmp_path / "counts.parquet")]) == 1
    assert read_counted(output)["bin_id"].to_pylist() == ["b"]
    (found,) = rejects(output)
    assert (found["row"], found["reason"]) == ("1", "malformed_row")
    assert name in found["detail"]


@pytest.mark.parametrize(
    "values", [pa.array([3], pa.duration("s")), pa.array([b"3"]), pa.array([[3]])], ids=["duration", "bytes", "list"]
)
def test_a_column_of_what_is_no_single_value_is_named(
    output: str, tmp_path: Path, values: pa.Array, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"bin_id": ["a"], "audit_date": [NIGHT], "counted_qty": values, "counted_at": ["2026-03-03T08:00Z"]}
    pq.write_table(pa.table(counts), tmp_path / "counts.parquet")
    assert main(["--output-uri", output, "--counts-uri", str(tmp_path / "counts.parquet")]) == 2
    assert "column counted_qty: expected single values, found " in capsys.readouterr().err


@pytest.mark.parametrize("damage", [None, b"{"])
def test_rejects_are_written_though_what_was_learned_can_not_be_said(
    output: str, damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    commit_night(output, "2026-03-03", [])
    uri = join(output, "runs", "2026-03-03-aaaaaaaaaaaa", "run.json")
    storage.delete([uri]) if damage is None else storage.write_bytes(uri, damage)
    lines = f"a,{NIGHT},3,2026-03-03T08:00Z,,,", f"nowhere,{NIGHT},3,2026-03-03T08:00Z,,,"
    assert take_in(output, *lines) == 1
    assert read_counted(output)["bin_id"].to_pylist() == ["a"]
    assert [found["bin_id"] for found in rejects(output)] == ["nowhere"]
    error = capsys.readouterr().err
    assert "1 unknown_bin" in error
    assert "the counts are taken in, but what the next audit will know can't be said" in error
    assert f"{uri}: " in error


@pytest.mark.parametrize(
    ("damage", "message"), [(None, "found nothing"), (b"{", "found no JSON"), (b"\xff", "found no JSON")]
)
def test_a_run_without_its_record_is_named(output: str, damage: bytes | None, message: str) -> None:
    run_id = f"{NIGHT}-aaaaaaaaaaaa"
    private = join(output, "runs", run_id)
    uri = join(private, "run.json")
    assert read_run(private)["run_id"] == run_id
    storage.delete([uri]) if damage is None else storage.write_bytes(uri, damage)
    with pytest.raises(InputError, match=rf"run\.json: expected a committed run's own record, {message}; restore it"):
        read_run(private)


def test_no_reject_is_a_formula_to_a_spreadsheet(output: str) -> None:
    assert take_in(output, f'"=HYPERLINK(""http://x"")",{NIGHT},+1+1,2026-03-03T08:00Z,@kim,,') == 1
    (found,) = rejects(output)
    assert found["bin_id"] == """'=HYPERLINK("http://x")"""
    assert found["counted_qty"] == "'+1+1" and found["counter_id"] == "'@kim"


def test_the_blind_list_filled_in_half_is_what_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "audits")
    bins = ["=A1", "\t@x", "b,2"]
    commit_night(output, NIGHT, [plan_row(name) for name in bins])
    blind = recount_csv([("Z", name) for name in bins], NIGHT).decode("utf-8-sig").splitlines()
    assert take_in(output, *blind[1:], header=blind[0]) == 2
    assert "3 rows without any" in capsys.readouterr().err
    filled = [line.replace(f"{NIGHT},", f"{NIGHT},3,2026-03-03T08:00Z", 1)[:-1] for line in blind[1:3]]
    assert take_in(output, *filled, blind[3], header=blind[0]) == 0
    assert "not filled in: 1" in capsys.readouterr().out
    assert sorted(read_counted(output)["bin_id"].to_pylist()) == ["\t@x", "=A1"]


def test_a_list_that_went_through_a_spreadsheet_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its empty cells at the ends of rows are gone, dates look as in the country, 00004 is a number, people are assigned."""
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row(name) for name in ("00004", "A-1", "007", "7", "00010")])
    lines = [
        "1;Z;4;02.03.2026;3;03.03.2026 8:15",
        f"2;Z;A-1;{NIGHT};3;2026-03-03 8:15;kim",
        f"3;Z;7;{NIGHT};3;2026-03-03 9:15;kim",
        f"4;Z;10;{NIGHT};;;kim",
        f"5;Z;007;{NIGHT}",
    ]
    header = "stop;zone;bin_id;audit_date;counted_qty;counted_at;counter_id;confirmed;reason_code"
    assert take_in(output, *lines, header=header) == 0
    assert "not filled in: 2" in capsys.readouterr().out
    taken = {row["bin_id"]: row["counted_at"].hour for row in read_counted(output).to_pylist()}
    assert taken == {"00004": 8, "A-1": 8, "7": 9}


@pytest.mark.parametrize(
    ("night", "counted_at"),
    [
        ("3/2/2026", "3/4/2026 8:15 PM"),  # 2 March in the United States, and the 4th
        ("02/03/2026", "04/03/2026 20:15"),  # in Britain, France, Italy and Spain
        ("2-3-2026", "4-3-2026 20:15:00"),  # in the Netherlands and Denmark
        ("2026/03/02", "2026/03/04 20:15"),  # in Japan
        ("3/2/2026 12:00 AM", "3/4/2026 8:15:00 pm"),
        ("3-2-2026", "3-4-2026 8:15 PM"),
        (NIGHT, "2026-03-04 20:15"),
    ],
)
def test_dates_are_read_in_the_order_by_which_the_night_is_a_committed_one(
    output: str, night: str, counted_at: str
) -> None:
    assert take_in(output, f"a,{night},3,{counted_at},,,") == 0
    (row,) = read_counted(output).to_pylist()
    assert (row["audit_date"], row["counted_at"]) == (NIGHT, datetime(2026, 3, 4, 20, 15, tzinfo=UTC))


def test_of_two_days_the_one_soon_after_the_night_is_meant(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},3,03/04/2026 8:15 PM,,,", f"b,{NIGHT},3,4/3/2026 20:15,,,") == 0
    assert read_counted(output)["counted_at"].to_pylist() == [datetime(2026, 3, 4, 20, 15, tzinfo=UTC)] * 2


def test_a_night_is_told_by_a_count_in_its_first_hours_far_east_where_utc_has_the_day_before(tmp_path: Path) -> None:
    output = str(tmp_path / "audits")
    commit_night(output, "2026-03-04", [plan_row("a")])
    assert take_in(output, "a,03/04/2026,3,03/04/2026 05:00,,,", flags=("--time-zone", "Asia/Tokyo")) == 0


def test_a_date_that_may_be_two_is_not_guessed(tmp_path: Path) -> None:
    output = str(tmp_path / "audits")
    for night in ("2026-02-03", NIGHT, "2026-03-03", "2026-03-04"):
        commit_night(output, night, [plan_row("a")])
    lines = (
        "a,03/02/2026,3,03/02/2026 8:15,,,",
        "a,03/03/2026,3,05/06/2026 8:15,,,",
        "a,03/05/2026,3,03/06/2026 8:15,,,",
        "a,04/03/2026,3,04/04/2026 8:15,,,",
    )
    assert take_in(output, *lines) == 1
    assert [(found["reason"], found["detail"].partition("found ")[2]) for found in rejects(output)] == [
        ("bad_date", "'03/02/2026', which is 2026-02-03 or 2026-03-02: both may be the committed night of this count"),
        ("bad_date", "'05/06/2026 8:15', which is 2026-05-06 or 2026-06-05"),
        (
            "bad_date",
            "'03/05/2026', which is 2026-03-05 or 2026-05-03: neither may be the committed night of this count",
        ),
        # a month after 4 March, and the day after 3 April, which is no night here
        (
            "bad_date",
            "'04/03/2026', which is 2026-03-04 or 2026-04-03: neither may be the committed night of this count",
        ),
    ]


def test_a_night_among_others_is_the_one_that_the_count_came_soon_after(output: str) -> None:
    """So that what was taken in once is known again when the other day has become a night too."""
    line = "a,3/2/2026,3,3/4/2026 8:15 PM,,,"
    assert take_in(output, line) == 0
    commit_night(output, "2026-02-03", [plan_row("a")])
    assert take_in(output, line) == 0
    assert read_counted(output)["audit_date"].to_pylist() == [NIGHT]


def test_a_second_count_weeks_later_still_tells_which_night_was_meant(output: str) -> None:
    assert take_in(output, "a,3/2/2026,3,3/20/2026 8:15 AM,,,") == 0
    assert read_counted(output)["audit_date"].to_pylist() == [NIGHT]


def test_a_bin_of_the_night_keeps_its_own_name(tmp_path: Path) -> None:
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row("007")], other_bins=[plan_row("7")])
    assert take_in(output, f"7,{NIGHT},3,2026-03-03T08:00Z,,,") == 1
    assert rejects(output)[0]["reason"] == "not_planned"


def test_a_bin_that_is_named_as_the_list_shows_another_keeps_its_own_name(tmp_path: Path) -> None:
    """To a spreadsheet -1 is a formula, and the list shows '-1."""
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row("-1"), plan_row("'-1")])
    assert take_in(output, f"'-1,{NIGHT},3,2026-03-03T08:00Z,,,") == 0
    assert read_counted(output)["bin_id"].to_pylist() == ["'-1"]


def test_bins_that_differ_in_leading_zeros_are_not_taken_for_one_another(tmp_path: Path) -> None:
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row("4"), plan_row("00004"), plan_row("00005")])
    blank = f"00005,{NIGHT},,,,,"
    lines = [f"{name},{NIGHT},3,2026-03-03T08:00Z,kim,," for name in ("4", "00004", "00005")]
    assert take_in(output, *(line.replace("0000", "") for line in lines)) == 1
    assert [(row["bin_id"], row["reason"]) for row in rejects(output)] == [("4", "unknown_bin"), ("4", "unknown_bin")]
    assert "differ from 4 in zeros only" in rejects(output)[0]["detail"]
    assert take_in(output, lines[0], blank, name="alone.csv") == 0
    assert take_in(output, *lines, name="as-text.csv") == 0
    assert sorted(read_counted(output)["bin_id"].to_pylist()) == ["00004", "00005", "4"]


def test_a_bin_whose_decimals_a_spreadsheet_cut_is_found_but_not_guessed(tmp_path: Path) -> None:
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row("1.1"), plan_row("1.10"), plan_row("2.50"), plan_row("007")])
    # a whole number with a zero behind its point is how a data frame writes it, and no sign that zeros were kept
    lines = [f"{name},{NIGHT},3,2026-03-03T08:00Z,kim,," for name in ("1.1", "1.1", "2.5", "7.0")]
    assert take_in(output, *lines) == 1
    assert [(row["bin_id"], row["reason"]) for row in rejects(output)] == [("1.1", "unknown_bin")] * 2
    assert sorted(read_counted(output)["bin_id"].to_pylist()) == ["007", "2.50"]


def test_bins_that_differ_in_a_zero_behind_the_point_are_told_apart_where_both_stand_in_the_file(
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "audits")
    commit_night(output, NIGHT, [plan_row("2"), plan_row("2.0")])
    assert take_in(output, f"2.0,{NIGHT},3,2026-03-03T08:00Z,kim,,") == 1
    lines = [f"{name},{NIGHT},3,2026-03-03T08:00Z,kim,," for name in ("2", "2.0")]
    assert take_in(output, *lines) == 0
    assert sorted(read_counted(output)["bin_id"].to_pylist()) == ["2", "2.0"]


def test_of_two_columns_that_nobody_reads_the_names_may_be_the_same(output: str, tmp_path: Path) -> None:
    cells = [["a"], [NIGHT], [at(8)], [3], ["x"], ["y"]]
    names = ["bin_id", "audit_date", "counted_at", "counted_qty", "note", "note"]
    uri = str(tmp_path / "counts.parquet")
    write_table(uri, pa.table([pa.array(cell) for cell in cells], names=names))
    assert main(["--output-uri", output, "--counts-uri", uri]) == 0


@pytest.mark.parametrize("name", ["Counter_ID", "CONFIRMED"])
def test_an_optional_column_in_another_letter_case_is_not_passed_over(
    output: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    header = HEADER.replace(name.lower(), name)
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T08:00Z,kim,,", header=header) == 2
    assert f"column '{name}': expected {name.lower()}; rename it" in capsys.readouterr().err


def test_a_parquet_file_may_hold_decimals(output: str, tmp_path: Path) -> None:
    counts = {"bin_id": ["a"], "audit_date": [NIGHT], "counted_at": [at(8)]}
    table = pa.table(counts).append_column("counted_qty", pa.array([Decimal("3.000")], pa.decimal128(12, 3)))
    uri = str(tmp_path / "counts.parquet")
    write_table(uri, table)
    assert main(["--output-uri", output, "--counts-uri", uri]) == 0
    assert read_counted(output)["counted_qty"].to_pylist() == [3]


def test_a_person_written_in_two_ways_is_one_person(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,Anna  B,,", f"d,{NIGHT},1,2026-03-03T08:00Z,007,,") == 0
    again = [f"a,{NIGHT},1,2026-03-03T09:00Z,anna b,,", f"d,{NIGHT},1,2026-03-03T09:00Z,7,,"]
    assert take_in(output, *again, name="again.csv") == 1
    assert {row["reason"] for row in rejects(output)} == {"counted_twice"}


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("7", "7.0"),
        ("0", "00"),
        ("J\u00f6rg", "Jo\u0308rg"),
        ("\uff17", "7"),
        ("@ann", "'@ann"),
        ("007", "'7"),
        ("ann", "\u200eann\u200b"),
    ],
)
def test_what_programs_make_of_a_name_is_no_second_person(first: str, again: str, output: str) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,{first},,") == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T09:00Z,{again},,", name="again.csv") == 1
    assert rejects(output)[0]["reason"] == "counted_twice"


@pytest.mark.parametrize("nobody", ["NULL", "null", "NaN", "nan", "None", "<NA>", "n/a", "'", "\u200b"])
def test_what_a_database_writes_for_no_name_is_nobody(output: str, nobody: str) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,{nobody},,") == 0
    assert read_counted(output)["counter_id"].to_pylist() == [None]
    assert take_in(output, f"b,{NIGHT},1,2026-03-03T08:00Z,Nan,,", name="somebody.csv") == 0
    assert set(read_counted(output)["counter_id"].to_pylist()) == {None, "nan"}


def test_a_count_may_come_again_once_it_is_known_whose_it_is(output: str) -> None:
    for counter in ("", "anna", ""):  # filled in later; and once more the first sheet
        assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,{counter},,", name="sheet.csv") == 0
    history = read_history(output, "2026-03-03")
    assert (history.in_force[0].num_random_resolved, history.last_counts.loc["a", "num_counted"]) == (0, 1)
    # she has a name now, so that another person can say that she erred
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T09:00Z,ben,,", name="second.csv") == 0
    assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == 1


def test_a_quotation_mark_that_is_not_closed_does_not_swallow_counts(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f'a,{NIGHT},1,2026-03-03T08:00Z,kim,,"damaged', f"b,{NIGHT},3.0,2026-03-03T08:00Z,kim"]
    assert take_in(output, *rows, f'c,{NIGHT},3,2026-03-03T08:00Z,kim,,box 5"') == 2
    assert "reason_code: expected one cell, found one that holds whole rows" in capsys.readouterr().err
    header = "bin_id,audit_date,reason_code,counted_qty,counted_at,counter_id"
    two = [f'a,{NIGHT},"damaged,1,2026-03-03T08:00Z,kim', f'b,{NIGHT},box 5",3,2026-03-03T08:00Z,kim']
    assert take_in(output, *two, header=header) == 2
    assert "reason_code: expected one cell, found one that holds whole rows" in capsys.readouterr().err
    assert read_counted(output).num_rows == 0
    assert take_in(output, f'a,{NIGHT},"wet,\ntorn, too",3,2026-03-03T08:00Z,kim', header=header) == 0


def test_a_confirmed_count_stays_confirmed_when_its_name_comes_later(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,,true,") == 0
    later = [(1, 8, "anna"), (5, 9, "ben"), (5, 10, "cara")]
    lines = [f"a,{NIGHT},{quantity},2026-03-03T{hour:02}:00Z,{who},," for quantity, hour, who in later]
    assert take_in(output, *lines, name="later.csv") == 1
    assert [row["counter_id"] for row in rejects(output)] == ["ben", "cara"]


def test_a_third_person_settles_what_two_disagree_about(output: str) -> None:
    counts = [(1, "kim"), (3, "lee"), (1, "ana")]
    for hour, (quantity, counter) in enumerate(counts, start=8):
        assert take_in(output, f"a,{NIGHT},{quantity},2026-03-03T{hour:02}:00Z,{counter},,", name=f"{hour}.csv") == 0
    nobody = f"b,{NIGHT},1,2026-03-03T08:00Z,kim,,", f"b,{NIGHT},3,2026-03-03T09:00Z,lee,,"
    assert take_in(output, *nobody, name="b.csv") == 0
    assert take_in(output, f"b,{NIGHT},1,2026-03-03T10:00Z,,,", name="nobody.csv") == 1  # nobody settles nothing
    (night,) = read_history(output, "2026-03-03").in_force
    found = dict(zip(night.planned["bin_id"].to_pylist(), night.counted_qty, strict=True))
    assert (found["a"], found["b"]) == (1, 3)
    assert night.num_random_resolved + night.num_priority_resolved == 2


@pytest.mark.parametrize("order", [("anna", "bob", "carl"), ("bob", "anna", "carl"), ("bob", "carl", "anna")])
def test_two_who_agree_are_believed_whenever_the_third_one_counted(output: str, order: tuple[str, ...]) -> None:
    found = {"anna": 3, "bob": 1, "carl": 1}
    lines = [f"a,{NIGHT},{found[name]},2026-03-03T0{8 + place}:00Z,{name},," for place, name in enumerate(order[:2])]
    assert take_in(output, *lines) == 0
    finding = read_history(output, "2026-03-04").last_counts.loc["a", "finding"]
    assert finding == ("right" if "anna" in order[:2] else "wrong")
    take_in(output, f"a,{NIGHT},{found[order[2]]},2026-03-03T10:00Z,{order[2]},,")
    facts = read_history(output, "2026-03-04").last_counts.loc["a"]
    assert (facts["finding"], facts["found_qty"]) == ("wrong", 1)


def test_what_two_have_settled_is_not_doubted_by_a_third(output: str) -> None:
    lines = [f"a,{NIGHT},1,2026-03-03T{hour}:00Z,{who},," for hour, who in (("08", "kim"), ("09", "lee"))]
    assert take_in(output, *lines, f"a,{NIGHT},2,2026-03-03T10:00Z,ana,,") == 1
    assert "the bin is resolved for the night 2026-03-02: 1 pieces" in rejects(output)[0]["detail"]
    assert read_counted(output).num_rows == 2


def test_who_confirms_what_two_have_settled_confirms_no_other_s_count(output: str) -> None:
    """At the same time as the first of them, by the same clock of a shift."""
    lines = [f"a,{NIGHT},1,2026-03-03T{hour}:00Z,{who},," for hour, who in (("08", "kim"), ("09", "lee"))]
    assert take_in(output, *lines) == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,ana,true,", name="confirmed.csv") == 1
    assert "the bin is resolved for the night 2026-03-02: 1 pieces" in rejects(output)[0]["detail"]


def test_two_who_agree_are_believed_though_two_others_did_not(output: str) -> None:
    found = {"anna": 3, "bob": 1, "dave": 2, "erin": 2}
    times = enumerate(found.items(), start=8)
    assert take_in(output, *(f"a,{NIGHT},{qty},2026-03-03T{hour:02}:00Z,{name},," for hour, (name, qty) in times)) == 0
    facts = read_history(output, "2026-03-04").last_counts.loc["a"]
    assert (facts["finding"], facts["found_qty"]) == ("wrong", 2)


def test_a_confirmed_mismatch_overrules_a_count_that_was_mistyped_as_the_record(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T08:00Z,anna,,") == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:30Z,anna,,", name="corrected.csv") == 1
    assert "3 pieces; with confirmed it is overruled" in rejects(output)[0]["detail"]
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:30Z,anna,true,", name="confirmed.csv") == 0
    history = read_history(output, "2026-03-03")
    assert (history.in_force[0].counted_qty[0], history.in_force[0].num_random_resolved) == (1, 1)
    assert history.last_counts.loc["a", ["finding", "found_qty"]].tolist() == ["wrong", 1]


def test_a_confirmed_typo_is_overruled_by_what_is_confirmed_later(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},30,2026-03-03T08:00Z,kim,true,") == 0
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T09:00Z,kim,,", name="corrected.csv") == 1
    assert "30 pieces; with confirmed it is overruled" in rejects(output)[0]["detail"]
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T09:00Z,kim,true,", name="confirmed.csv") == 0
    assert read_history(output, "2026-03-03").last_counts.loc["a", "finding"] == "right"


@pytest.mark.parametrize("found", [3, 1])
def test_a_count_of_a_resolved_bin_may_come_again_once_it_is_confirmed(output: str, found: int) -> None:
    lines = [f"a,{NIGHT},{found},2026-03-03T08:00Z,{who},," for who in ("kim", "lee")[: 1 if found == 3 else 2]]
    assert take_in(output, *lines) == 0
    lines[0] = lines[0].replace("kim,,", "kim,true,")
    for name in ("confirmed.csv", "again.csv"):
        assert take_in(output, *lines, name=name) == 0
    counts = read_counted(output).to_pylist()
    assert sorted((row["counter_id"], row["confirmed"]) for row in counts if row["confirmed"]) == [("kim", True)]
    later = lines[0].replace("08:00", "08:01")
    assert take_in(output, later, later, name="twice.csv") == 1


def test_a_count_of_a_resolved_bin_may_come_again_confirmed_without_its_name(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T08:00Z,kim,,") == 0
    for name in ("nameless.csv", "again.csv"):
        assert take_in(output, f"a,{NIGHT},3,2026-03-03T08:00Z,,true,", name=name) == 0
    assert read_history(output, "2026-03-03").last_counts.loc["a", "finding"] == "right"


def test_a_confirmed_count_is_not_overruled_by_one_from_before_it(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},3,2026-03-03T10:00Z,kim,true,") == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,anna,true,", name="earlier.csv") == 1
    assert rejects(output)[0]["detail"].endswith(
        "3 pieces; only what is confirmed and has a later counted_at overrules it"
    )


def test_a_confirmed_count_may_be_far_from_the_record(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},40170725,2026-03-03T08:00Z,kim,true,") == 0


def test_what_waits_for_a_second_count_is_named_and_listed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert take_in(output, f"a,{NIGHT},1,2026-03-03T08:00Z,kim,,", f"b,{NIGHT},3,2026-03-03T08:00Z,kim,,") == 0
    assert f"another person's count (second_counts.csv of jobs.report): 'a' of {NIGHT}\n" in capsys.readouterr().out
    waiting = read_history(output, "2026-03-03").second_counts
    assert [(bin_id, night) for _, bin_id, night in waiting] == [("a", NIGHT)]
    listed = list(csv.DictReader(io.StringIO(second_counts_csv(waiting).decode("utf-8-sig"))))
    assert [(row["stop"], row["bin_id"], row["audit_date"], row["counted_qty"]) for row in listed] == [
        ("1", "a", NIGHT, "")
    ]


@pytest.mark.s3
def test_counts_come_in_on_s3_as_they_do_locally(bucket: str) -> None:
    output = f"{bucket}/audits"
    commit_night(output, NIGHT, [plan_row(name) for name in "abc"], other_bins=[plan_row("z")])
    commit_night(output, NIGHT, [plan_row("e")], run="bbbbbbbbbbbb", other_bins=[plan_row("z")])
    lines = [f"{name},{NIGHT},3,2026-03-03T08:00Z,,," for name in "aez"]
    assert take_in(output, *lines) == 1
    assert take_in(output, *lines) == 1
    assert read_counted(output)["bin_id"].to_pylist() == ["a", "e"]
    assert rejects(output)[0]["reason"] == "not_planned"
    history = read_history(output, "2026-03-03")
    assert [night.num_random_resolved for night in history.in_force] == [1]
    assert [night.num_random_resolved for night in history.replaced] == [1]


@pytest.mark.parametrize("flag", ["false", "FALSE", "0", "no"])
def test_a_count_said_to_be_unconfirmed_waits_for_another_person_s(output: str, flag: str) -> None:
    for hour, (who, num_resolved) in enumerate((("kim", 0), ("lee", 1)), start=8):
        assert take_in(output, f"a,{NIGHT},1,2026-03-03T{hour:02}:00Z,{who},{flag},", name=f"{who}.csv") == 0
        assert read_history(output, "2026-03-03").in_force[0].num_random_resolved == num_resolved


def test_a_record_of_a_night_that_was_audited_later_was_read_by_its_day_s_end(output: str) -> None:
    commit_night(output, "2026-03-03", [], other_bins=[plan_row("b", 5)], started_at="2026-03-09T02:30:00+00:00")
    assert take_in(output, f"b,{NIGHT},5,2026-03-05T10:00Z,,,") == 1
    assert [found["reason"] for found in rejects(output)] == ["record_changed"]


@pytest.mark.parametrize(
    ("bin_id", "qty", "code"), [("empty", 1, 0), ("empty", 1001, 1), ("three", 1030, 0), ("three", 1031, 1)]
)
def test_only_a_count_of_a_thousand_more_than_ten_times_the_record_must_be_confirmed(
    tmp_path: Path, bin_id: str, qty: int, code: int
) -> None:
    uri = str(tmp_path / "audits")
    commit_night(uri, NIGHT, [plan_row("empty", 0), plan_row("three", 3)])
    assert take_in(uri, f"{bin_id},{NIGHT},{qty},2026-03-03T08:00Z,kim,,") == code


def test_a_record_of_unknown_age_in_a_zone_far_west_was_read_when_its_audit_began_in_the_evening(output: str) -> None:
    """In California the night of the 3rd is audited at 20:00, and sees what was corrected at 19:00 by the counts of the
    afternoon."""
    corrected = [plan_row("a", 1)]
    commit_night(output, "2026-03-03", [], other_bins=corrected, started_at="2026-03-04T04:00:00+00:00")
    flags = ("--time-zone", "America/Los_Angeles")
    assert take_in(output, f"a,{NIGHT},1,2026-03-03 17:30,kim,,", flags=flags) == 0
    assert take_in(output, f"a,{NIGHT},1,2026-03-03 20:30,lee,,", name="late.csv", flags=flags) == 1
    assert [found["reason"] for found in rejects(output)] == ["record_changed"]


@pytest.mark.parametrize(("again", "code"), [("the same", 1), ("another", 0)])
def test_a_record_is_read_no_later_for_being_audited_again(output: str, again: str, code: int) -> None:
    """Two pieces came, in the record and in the bin, the audit saw it at 2:30, and somebody counted at 10:00."""
    seen = [plan_row("b", 5)]
    for run, began, manifest in (("a" * 12, "02:30", "the same"), ("b" * 12, "15:00", again)):
        started_at = f"2026-03-03T{began}:00+00:00"
        commit_night(output, "2026-03-03", [], other_bins=seen, run=run, started_at=started_at, manifest=manifest)
    assert take_in(output, f"b,{NIGHT},5,2026-03-03T10:00Z,kim,,") == code


def test_a_record_that_changed_on_the_next_day_of_a_zone_far_east_had_changed_before_the_count(output: str) -> None:
    commit_night(output, "2026-03-04", [], other_bins=[plan_row("b", 5, expected_as_of=at(18))])
    assert take_in(output, f"b,{NIGHT},5,2026-03-03T20:00Z,,,") == 1
    assert [found["reason"] for found in rejects(output)] == ["record_changed"]


def test_a_clock_may_be_some_minutes_ahead() -> None:
    now = datetime(2026, 3, 3, 8, tzinfo=UTC)
    cells = {"bin_id": "a", "audit_date": NIGHT, "counted_qty": "3"}
    early, late = (CountsRow(1, {**cells, "counted_at": f"2026-03-03T08:{minute}Z"}) for minute in ("09", "11"))
    assert parse_row(early, {NIGHT}, ZoneInfo("UTC"), now).count.counted_qty == 3
    with pytest.raises(Reject, match="is yet to come"):
        parse_row(late, {NIGHT}, ZoneInfo("UTC"), now)


def test_a_row_that_ends_early_lacks_its_values_and_takes_no_other_with_it(output: str) -> None:
    assert take_in(output, f"a,{NIGHT},3", f"b,{NIGHT},3,2026-03-03T08:00Z") == 1
    assert [(found["bin_id"], found["reason"]) for found in rejects(output)] == [("a", "missing_value")]
    assert read_counted(output)["bin_id"].to_pylist() == ["b"]
