from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.counting.counted import has_counts, read_counted
from jobs.counting.history import read_history
from jobs.counting.last_counts import freeze_last_counts
from jobs.counting.records import lines_of
from jobs.platform import storage
from jobs.platform.layout import FROZEN, committed_run, list_nights, summary_uri
from jobs.platform.parquet import parquet_bytes
from schemas.errors import InputError
from schemas.recount import COUNTED_SCHEMA
from schemas.summary import SUMMARY_SCHEMA
from tests.planned_night import commit_night, counted_row, mark_run, plan_row, priority_row, take_in, write_run

START = datetime(2026, 3, 3, 8, tzinfo=UTC)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "audits")


def counted(bin_id: str, qty: int, night: str = "2026-03-02", *, hours: float = 0, **values: Any) -> dict[str, Any]:
    """A row of `counted`, made so many hours after the morning of 3 March."""
    return counted_row(bin_id, qty, night, START + timedelta(hours=hours), **values)


def test_what_is_planned_and_not_counted_is_pending(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row(name) for name in "abcd"] + [priority_row("p", 1)], num_assessed=50)
    take_in(
        output,
        counted("a", 3),
        counted("b", 2),
        counted("c", 2, counter_id="kim"),
        counted("c", 2, hours=1, counter_id="lee"),
    )
    (night,) = read_history(output, "2026-03-03").in_force
    found = dict(
        zip(night.planned["bin_id"].to_pylist(), zip(night.counted_qty, night.resolved, strict=True), strict=True)
    )
    assert found["a"] == (3, True) and found["b"] == (2, False) and found["c"] == (2, True)
    assert np.isnan(found["d"][0]) and not found["d"][1]
    assert (night.num_random_planned, night.num_random_resolved) == (4, 2)
    assert (night.num_priority_planned, night.num_priority_resolved, night.num_pending) == (1, 0, 3)
    assert night.whole_night.num_assessed == 50


def test_a_mismatch_whose_record_has_changed_stands_as_it_was_counted(output: str) -> None:
    """`jobs.recount` would refuse the second count that it waits for."""
    commit_night(output, "2026-03-02", [plan_row(name) for name in ("corrected", "moved", "same", "gone", "later")])
    take_in(output, *(counted(name, 2) for name in ("corrected", "moved", "same", "gone")))
    assert len(read_history(output, "2026-03-03").second_counts) == 4
    others = [plan_row("corrected", 2), plan_row("moved", 5), plan_row("later", 9)]
    commit_night(output, "2026-03-03", [plan_row("same")], other_bins=others)
    history = read_history(output, "2026-03-04")
    (night, _) = history.in_force
    assert night.planned["bin_id"].to_pylist() == ["corrected", "moved", "same", "gone", "later"]
    assert night.resolved.tolist() == [True, True, False, False, False]
    assert night.counted_qty[:4].tolist() == [2, 2, 2, 2]
    assert history.second_counts == [(None, "same", "2026-03-02"), (None, "gone", "2026-03-02")]


def test_a_record_has_changed_whichever_later_night_saw_it(output: str) -> None:
    """Nights that photograph a part of the warehouse, and a record that comes back to what it said."""
    commit_night(output, "2026-03-02", [plan_row("away"), plan_row("back")])
    take_in(output, counted("away", 2), counted("back", 2))
    commit_night(output, "2026-03-03", [plan_row("x")], other_bins=[plan_row("away", 2), plan_row("back", 2)])
    commit_night(output, "2026-03-04", [plan_row("x")], other_bins=[plan_row("back", 3)])
    assert read_history(output, "2026-03-05").second_counts == []


def test_nights_whose_results_were_deleted_say_nothing_of_a_record(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row("a")])
    take_in(output, counted("a", 2))
    commit_night(output, "2026-03-03", [plan_row("x")], other_bins=[plan_row("a", 2)])
    shutil.rmtree(Path(output) / "results/audit_date=2026-03-03")
    assert read_history(output, "2026-03-05").second_counts == [(None, "a", "2026-03-02")]
    commit_night(output, "2026-03-04", [plan_row("x")], other_bins=[plan_row("a", 2)])
    assert read_history(output, "2026-03-05").second_counts == []


def test_only_a_mismatch_that_somebody_is_asked_to_count_again_waits(output: str) -> None:
    """The plan that asked for it may have been replaced: then the bin may stand on the next list."""
    commit_night(output, "2026-03-02", [plan_row("old"), plan_row("both")])
    take_in(output, counted("old", 2), counted("both", 2))
    assert set(read_history(output, "2026-03-03").last_counts["finding"]) == {"waiting"}
    commit_night(output, "2026-03-02", [plan_row("both")], run="bbbbbbbbbbbb")
    last = read_history(output, "2026-03-03").last_counts
    assert last["finding"].dropna().to_dict() == {"both": "waiting"}
    assert set(last.index) == {"both", "old"}


def test_only_nights_before_the_given_one_and_inside_the_window_are_read(output: str) -> None:
    nights = ["2026-01-30", "2026-01-31", "2026-03-01", "2026-03-02"]
    for night in nights:
        commit_night(output, night, [plan_row("a")])
        take_in(output, counted("a", 3, night))
    history = read_history(output, "2026-03-02")
    assert [night.audit_date for night in history.in_force] == ["2026-01-31", "2026-03-01"]
    assert history.last_counts.loc["a", "night"] == "2026-03-01"
    assert history.last_counts.loc["a", "num_counted"] == 3, "what is known of a bin has no window"


def test_nothing_is_known_before_the_first_night(output: str) -> None:
    history = read_history(output, "2026-03-02")
    assert history.in_force == () and len(history.last_counts) == 0


def test_a_replaced_plan_stays_apart_from_the_one_in_force(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row("a"), plan_row("b")])
    commit_night(output, "2026-03-02", [plan_row("b"), plan_row("c", 5)], run="bbbbbbbbbbbb")
    write_run(output, "2026-03-02-cccccccccccc", [plan_row("a")])
    take_in(output, counted("a", 3), counted("b", 3), counted("c", 3))
    history = read_history(output, "2026-03-03")
    assert [night.run_id[-1] for night in history.in_force] == ["b"]
    assert [night.run_id[-1] for night in history.replaced] == ["a"]
    # b was asked for by both; c was counted when the record said 3, which says nothing about a record of 5
    assert [night.num_random_resolved for night in (*history.in_force, *history.replaced)] == [1, 2]
    with pytest.raises(ValueError, match="replaced"):
        history.replaced[0].whole_night  # noqa: B018


def test_a_run_that_died_right_after_its_commit_is_in_force(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row("a")], marked=False)
    assert len(read_history(output, "2026-03-03").in_force) == 1


def test_a_night_that_was_set_aside_by_hand_is_none(output: str, caplog: pytest.LogCaptureFixture) -> None:
    commit_night(output, "2026-03-01", [plan_row("a")])
    take_in(output, counted("a", 3, "2026-03-01"))
    summary = storage.read_bytes(summary_uri(output, "2026-03-01"))
    aside = [
        *("audit_date=2026-02-27.withdrawn", "audit_date=2026-02-27 copy", "audit_date=2026-03-01.bak", "backup"),
        *("old/audit_date=2026-02-27", "audit_date=2026-02-30", "audit_date=20260227", "2026-02-27"),
    ]
    for folder in aside:
        storage.write_bytes(f"{output}/summary/{folder}/summary.parquet", summary)
    assert list_nights(output) == ["2026-03-01"]
    assert [night.audit_date for night in read_history(output, "2026-03-02").in_force] == ["2026-03-01"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(aside), "once each"
    assert all(any(f"/summary/{folder}/summary.parquet: passed over" in line for line in told) for folder in aside)


def test_a_summary_that_a_power_cut_left_empty_is_named_with_what_to_do(output: str) -> None:
    commit_night(output, "2026-03-01", [plan_row("a")])
    storage.write_bytes(summary_uri(output, "2026-03-01"), b"")
    told = r"summary\.parquet: expected a Parquet file.*the night 2026-03-01 is not committed: delete the file and run that"
    with pytest.raises(InputError, match=told):
        committed_run(output, "2026-03-01")
    with pytest.raises(InputError, match=told):
        read_history(output, "2026-03-02")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "summary/audit_date=2026-03-02/summary.parquet",
            SUMMARY_SCHEMA.empty_table(),
            "the summary of a committed night",
        ),
        ("summary/audit_date=2026-03-02/summary.parquet", pa.table({"a": [1]}), "the summary of a committed night"),
        ("runs/2026-03-02-aaaaaaaaaaaa/plan.parquet", pa.table({"bin_id": ["a"]}), "the plan of a committed run"),
        ("runs/2026-03-02-aaaaaaaaaaaa/run.json", b"{}", "a committed run's own record, found other JSON"),
        ("runs/2026-03-02-aaaaaaaaaaaa/run.json", b"[]", "a committed run's own record, found other JSON"),
    ],
    ids=["no rows", "no run_id", "another plan", "no settings", "a list"],
)
def test_what_a_committed_night_rests_on_is_named_where_it_is_something_else(
    output: str, name: str, data: bytes | pa.Table, said: str
) -> None:
    commit_night(output, "2026-03-02", [plan_row("a")])
    take_in(output, counted("a", 3))
    storage.write_bytes(f"{output}/{name}", data if isinstance(data, bytes) else parquet_bytes(data))
    with pytest.raises(InputError, match=f"{name}: expected {said}.*; restore it"):
        read_history(output, "2026-03-03")


def test_a_committed_run_without_its_plan_is_said_to_be_broken(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row("a")])
    mark_run(output, "2026-03-02-dddddddddddd")
    with pytest.raises(InputError, match=r"dddddddddddd/plan\.parquet.*expected the plan"):
        read_history(output, "2026-03-03")


def test_the_last_count_of_a_bin_says_whether_its_record_was_right(output: str) -> None:
    take_in(
        output,
        counted("right", 3),
        counted("wrong", 2, confirmed=True),
        counted("doubt", 3, "2026-02-20", hours=-240),
        counted("doubt", 2, hours=5),
    )
    last = read_history(output, "2026-03-03").last_counts
    assert last["finding"].dropna().to_dict() == {"right": "right", "wrong": "wrong"}, "no plan asked for doubt"
    assert last["last_counted_qty"].to_dict() == {"doubt": 2, "right": 3, "wrong": 2}
    assert last.loc["doubt", "last_counted_at"] == pd.Timestamp(START + timedelta(hours=5))
    assert (last["expected_qty"] == 3).all() and last.loc["doubt", "num_counted"] == 2


def test_the_last_count_is_the_one_that_was_made_last_whichever_night_it_is_about(output: str) -> None:
    take_in(output, counted("a", 2), counted("a", 3, "2026-02-20", hours=30))
    last = read_history(output, "2026-03-06").last_counts.loc["a"]
    assert last[["night", "last_counted_qty"]].tolist() == ["2026-02-20", 3]


def test_what_was_recorded_is_what_the_last_count_is_about_in_whatever_order_counts_came_in(output: str) -> None:
    """Of two plans of a night, between which the record came to name another SKU."""
    lines = {name: [{"sku": name, "name": None, "quantity": 3}] for name in "AB"}
    for name in "AB":
        hours = [5 * (number % 2 == (name == "B")) for number in range(4)]
        take_in(output, *(counted(f"b{number}", 3, hours=hours[number], skus=lines[name]) for number in range(4)))
    last = read_history(output, "2026-03-03").last_counts
    assert last["lines"].tolist() == [lines_of(lines[name]) for name in "ABAB"]


def test_a_bin_wrong_again_after_a_correction_is_a_repeat_offender(output: str) -> None:
    take_in(
        output,
        counted("again", 2, "2026-03-01", hours=-24, confirmed=True),
        counted("again", 1, expected_qty=2, confirmed=True),
        counted("same", 2, "2026-03-01", hours=-24, confirmed=True),
        counted("same", 2, confirmed=True),
        counted("once", 2, "2026-03-01", hours=-24, confirmed=True),
        counted("once", 2, expected_qty=2),
    )
    history = read_history(output, "2026-03-03")
    assert history.last_counts["num_wrong"].to_dict() == {"again": 2, "same": 1, "once": 1}
    assert history.repeat_offenders.index.to_list() == ["again"]


def test_a_count_that_two_processes_took_in_is_one_count(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row("a")])
    take_in(output, counted("a", 2))
    take_in(output, counted("a", 2), counted("b", 3))
    history = read_history(output, "2026-03-03")
    assert history.in_force[0].num_random_resolved == 0
    assert history.last_counts.loc["a", "num_counted"] == 1
    take_in(output, counted("a", 3, hours=1))
    assert read_history(output, "2026-03-03").last_counts.loc["a", "num_counted"] == 2


def test_random_bins_that_score_like_the_list_are_in_reach(output: str) -> None:
    plan = [
        plan_row("low", p_record_wrong=0.1, unit_value=100.0),
        plan_row("high", p_record_wrong=0.7, unit_value=1.0),
        plan_row("kept off", p_record_wrong=0.9, reason="counted"),
        priority_row("listed", 1, p_record_wrong=0.6, unit_value=50.0),
    ]
    commit_night(output, "2026-03-01", plan)
    valued = [row | {"unit_value": row["unit_value"] or 0.0} for row in plan]
    commit_night(output, "2026-03-02", valued, objective="value")
    by_probability, by_value = read_history(output, "2026-03-03").in_force
    assert by_probability.in_reach.tolist() == [False, True, False, True]
    assert by_value.in_reach.tolist() == [True, False, False, True]


def test_a_night_has_counts_once_one_has_come_in_against_any_of_its_plans(output: str) -> None:
    assert not has_counts(output, "2026-03-02")
    take_in(output, counted("a", 3, run_id="2026-03-02-of-a-replaced-run"))
    assert has_counts(output, "2026-03-02")
    assert not has_counts(output, "2026-03-01")


def test_what_lies_in_a_folder_among_the_counts_is_none_of_them(output: str) -> None:
    take_in(output, counted("a", 2))
    (uri,) = Path(output, "counted").glob("*.parquet")
    (uri.parent / "before").mkdir()
    shutil.copy(uri, uri.parent / "before" / "copy.parquet")
    assert read_counted(output).num_rows == 1


def test_adding_changes_nothing_that_is_there(output: str) -> None:
    take_in(output, counted("a", 3))
    first = read_counted(output)
    take_in(output, counted("b", 3))
    take_in(output, counted("b", 3))
    table = read_counted(output)
    assert table.num_rows == 2
    assert first.to_pylist()[0] in table.to_pylist()


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        (
            pa.table({"bin_id": ["b"], "audit_date": ["2026-03-02"], "counted_qty": [3]}),
            "counted_at: expected timestamp",
        ),
        (
            pa.Table.from_pylist([{"bin_id": "b"}], schema=pa.schema([f.with_nullable(True) for f in COUNTED_SCHEMA])),
            "counted_at: expected a value in every row",
        ),
    ],
    ids=["other columns", "nulls"],
)
@pytest.mark.parametrize("columns", [None, ["audit_date"]])
def test_a_table_that_somebody_put_among_the_counts_is_named(
    output: str, foreign: pa.Table, said: str, columns: list[str] | None
) -> None:
    take_in(output, counted("a", 3))
    storage.write_bytes(f"{output}/counted/by_hand.parquet", parquet_bytes(foreign))
    with pytest.raises(
        InputError, match=rf"by_hand\.parquet: expected counts that jobs\.recount.*{said}.*; move it away"
    ):
        read_counted(output, columns)


def test_what_was_known_when_a_run_began_stays_known_to_its_next_try(output: str, tmp_path: Path) -> None:
    commit_night(output, "2026-03-02", [plan_row("a"), plan_row("b")])
    nothing = freeze_last_counts(str(tmp_path / "other"), read_history(output, "2026-03-03").last_counts)
    assert len(nothing) == 0
    take_in(output, counted("a", 3))
    first = read_history(output, "2026-03-03").last_counts
    pd.testing.assert_frame_equal(freeze_last_counts(str(tmp_path / "run"), first), first)
    take_in(output, counted("b", 3))
    later = read_history(output, "2026-03-03").last_counts
    assert len(later) == 2
    pd.testing.assert_frame_equal(freeze_last_counts(str(tmp_path / "run"), later), first)
    assert len(freeze_last_counts(str(tmp_path / "other"), later)) == 0
    frozen = tmp_path / "run" / FROZEN / "last_counts.parquet"
    table = pq.read_table(frozen)
    pq.write_table(table.append_column("dropped", table["night"]), frozen)  # by an older release
    pd.testing.assert_frame_equal(freeze_last_counts(str(tmp_path / "run"), later), first)
    frozen.write_bytes(b"")  # by a power cut
    pd.testing.assert_frame_equal(freeze_last_counts(str(tmp_path / "run"), later), later)


def test_what_an_earlier_night_recorded_does_not_settle_a_later_mismatch(output: str) -> None:
    commit_night(output, "2026-03-02", [plan_row("a")])
    commit_night(output, "2026-03-03", [plan_row("x")], other_bins=[plan_row("a", 5)])
    commit_night(output, "2026-03-04", [plan_row("a", 4)])
    take_in(output, counted("a", 2), counted("a", 1, "2026-03-04", hours=48, expected_qty=4))
    history = read_history(output, "2026-03-05")
    assert [plan.resolved.tolist() for plan in history.in_force] == [[True], [False], [False]]
    assert history.second_counts == [(None, "a", "2026-03-04")]
