"""What is summed over a night, what its summary says of it, and when it may be committed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import audit
from jobs.config.audit import AuditConfig
from jobs.counting.belief import learn_belief, true_shares
from jobs.counting.history import read_history
from jobs.counting.plans import read_plan
from jobs.platform import storage
from jobs.platform.layout import committed_run, part_uri, part_uris, partition_uri
from jobs.platform.parquet import write_table
from jobs.stages import publish as publishing
from jobs.stages.conclude import Decisions, WrittenParts
from jobs.stages.night_lock import hold_night
from jobs.stages.publish import check_committed, publish_night
from jobs.stages.summary import MONEY, PREDICTED, _facts_of_night, _facts_of_whole, summarize
from jobs.stages.sums import sum_scopes
from schemas.errors import GateError
from schemas.recount import PLANNED_SCHEMA
from schemas.results import RESULTS_SCHEMA
from tests.planned_night import bundle_info, commit_night, counted_row, plan_row, take_in

NIGHT = "2026-03-02"
FACTS = {
    **{"run_id": f"{NIGHT}-bbbbbbbbbbbb", "record_model": "assumed", "estimator": "none"},
    **{"bundle_id": "b", "calibration_id": "c", "window_nights": 0},
    **dict.fromkeys(("num_random_window", "num_priority_window", "num_pending_window"), 0),
}


def results_of(*bins: dict[str, Any]) -> pa.Table:
    """Results rows that say no more than the test does."""
    given = {"run_id": "r", "image_uri": "", "num_skus": 1, "skus": [], "status": "scored", "num_counted": 0}
    given |= {"verdict": "ok", "bundle_id": "b", "calibration_id": "c", "expected_qty": 2, "camera_qty": 2}
    rows = [{**given, "bin_id": f"b{place}", **row} for place, row in enumerate(bins)]
    return pa.Table.from_pylist(rows, schema=RESULTS_SCHEMA)


def night_of(*bins: dict[str, Any]) -> WrittenParts:
    """A night summed over them."""
    results = results_of(*bins)
    sums = sum_scopes(results, np.zeros(results.num_rows, dtype=bool), 6)
    return WrittenParts(sums, PLANNED_SCHEMA.empty_table(), [])


def scopes(night: WrittenParts, currencies: list[str | None]) -> dict[str | None, dict[str, Any]]:
    """The summary's rows of the whole night (None) and of each zone."""
    facts_of = {("all", None): {"drift_alarm": True}, ("zone", "Z"): {"record_error_rate_used": 0.5}}
    rows = summarize(night.sums, FACTS, facts_of, currencies).to_pylist()
    return {row["scope_value"]: row for row in rows if row["scope"] in ("all", "zone")}


def test_shortage_and_surplus_of_one_bin_do_not_cancel_and_add_up_to_the_value_at_risk() -> None:
    # recorded 2: as likely 1 as 3; recorded 2: empty with probability 0.3
    night = night_of(
        {"expected_variance_qty": 0.0, "expected_abs_variance_qty": 0.6, "unit_value": 10.0, "value_at_risk": 6.0},
        {"expected_variance_qty": -0.6, "expected_abs_variance_qty": 0.6, "unit_value": 5.0, "value_at_risk": 3.0},
    )
    whole = scopes(night, ["EUR"])[None]
    assert (whole["shortage_value"], whole["overage_value"]) == pytest.approx((3.0 + 3.0, 3.0))
    assert whole["shortage_value"] + whole["overage_value"] == pytest.approx(whole["value_at_risk"])
    assert whole["gross_variance_predicted"] == pytest.approx(1.2)


def test_money_is_null_where_no_bin_has_a_unit_value() -> None:
    night = night_of({"zone": "valued", "unit_value": 2.0}, {"zone": "other"})
    found = scopes(night, ["EUR"])
    assert [found[name]["recorded_value"] for name in (None, "valued", "other")] == [4.0, 4.0, None]
    assert {found["other"][name] for name in MONEY} == {None}
    assert {scopes(night_of({}), [])[None][name] for name in MONEY} == {None}


def test_of_a_zone_without_an_assessed_bin_nothing_is_predicted() -> None:
    assessed = {"p_record_wrong": 0.2, "expected_variance_qty": 0.0, "expected_abs_variance_qty": 0.5}
    night = night_of(
        {"zone": "seen", "unit_value": 2.0, "value_at_risk": 1.0, **assessed},
        {"zone": "unseen", "unit_value": 2.0, "verdict": "not_assessed", "status": "missing_image"},
    )
    found = scopes(night, ["EUR"])
    assert {found["unseen"][name] for name in PREDICTED} == {None}
    assert (found["unseen"]["recorded_value"], found["unseen"]["recorded_units"]) == (4.0, 2)
    assert [found[name]["expected_wrong"] for name in (None, "seen")] == pytest.approx([0.2, 0.2])
    assert [found[name]["value_at_risk"] for name in (None, "seen")] == pytest.approx([1.0, 1.0])


def test_a_zone_without_a_name_is_none() -> None:
    assert night_of({"zone": ""}, {"zone": None}, {"zone": "Z"}).sums.loc["zone"].index.tolist() == ["Z"]


def test_a_zone_whose_one_priced_bin_was_not_assessed_has_no_value_at_risk() -> None:
    seen = {"zone": "z", "expected_variance_qty": -0.6, "expected_abs_variance_qty": 0.6}
    unseen = {"zone": "z", "unit_value": 2.0, "status": "unreadable_image", "verdict": "not_assessed"}
    zone = scopes(night_of(seen, unseen), ["EUR"])["z"]
    assert (zone["shortage_value"], zone["overage_value"], zone["value_at_risk"]) == (None, None, None)
    assert (zone["recorded_value"], zone["net_variance_predicted"]) == pytest.approx((4.0, -0.6))


def test_counts_differ_by_class_and_only_where_a_photo_was_scored() -> None:
    lost = {"status": "missing_image", "verdict": "not_assessed", "camera_qty": None}
    night = night_of({"expected_qty": 9, "camera_qty": 6}, {"expected_qty": 5, "camera_qty": 6}, lost)
    assert scopes(night, [])[None]["naive_mismatch_share"] == pytest.approx(0.5)


@pytest.mark.parametrize("currencies", [["EUR", "JPY"], [None, "EUR"]])
def test_several_currencies_are_not_added_up(currencies: list[str | None]) -> None:
    found = scopes(night_of(*({"zone": "Z", "unit_value": 2.0, "currency": name} for name in currencies)), currencies)
    assert {row[name] for row in found.values() for name in MONEY} == {None}


@pytest.mark.parametrize(("method", "temperature"), [("temperature", 2.5), ("vector", None), ("none", None)])
def test_the_summary_names_a_temperature_where_the_calibration_is_one(
    method: str, temperature: float | None, tmp_path: Any
) -> None:
    bundle = bundle_info()
    calibration = bundle.calibration.model_copy(update={"method": method, "weight": (np.eye(7) / 2.5).tolist()})
    tonight: Any = SimpleNamespace(run_id="r", bundle=bundle.model_copy(update={"calibration": calibration}))
    belief = learn_belief(read_history(str(tmp_path), NIGHT), bundle, true_shares(bundle.label_histogram))
    facts = _facts_of_night(tonight, belief, Decisions(0, None, {}, None, 0))  # type: ignore[arg-type]
    assert facts["temperature"] == pytest.approx(temperature)
    row = summarize(night_of({}).sums, facts, {}, []).to_pylist()[0]
    assert row["temperature"] == pytest.approx(temperature)


def facts_of_night(output: object, decisions: Decisions) -> dict[str, object]:
    bundle = bundle_info()
    tonight: Any = SimpleNamespace(run_id="r", bundle=bundle)
    belief = learn_belief(read_history(str(output), NIGHT), bundle, true_shares(bundle.label_histogram))
    return _facts_of_night(tonight, belief, decisions)


@pytest.mark.parametrize(
    ("thresholds", "alpha"), [({}, None), ({0.3: 0.0}, None), ({0.3: 0.0, 0.1: 0.2, 0.05: 0.1}, 0.1)]
)
def test_the_summary_names_the_largest_rate_that_certifies_anything(
    thresholds: dict[float, float], alpha: float | None, tmp_path: Path
) -> None:
    decisions = Decisions(0, None, thresholds, False, None)  # type: ignore[arg-type]
    assert facts_of_night(tmp_path, decisions)["alpha"] == alpha


@pytest.mark.parametrize(("has_scored_all", "price"), [(True, 4.0 * 2 * 0.5 / 2000 * 1000), (False, None)])
def test_images_have_a_price_where_this_try_scored_all_of_them(
    has_scored_all: bool, price: float | None, tmp_path: Path
) -> None:
    bundle = bundle_info()
    belief = learn_belief(read_history(str(tmp_path), NIGHT), bundle, true_shares(bundle.label_histogram))
    config, resources = SimpleNamespace(node_price=4.0), SimpleNamespace(num_nodes=2)
    tonight: Any = SimpleNamespace(config=config, resources=resources)
    progress: Any = SimpleNamespace(
        num_fresh=2000, has_scored_all=lambda: has_scored_all, images_per_second=lambda: 1.0
    )
    decisions = Decisions(0, None, {}, False, None)  # type: ignore[arg-type]
    facts = _facts_of_whole(tonight, belief, decisions, progress, seconds=1800.0)
    assert facts["price_per_1000_images"] == price


def test_the_drift_alarm_is_the_night_s_and_no_zone_s() -> None:
    found = scopes(night_of({"zone": "Z"}), [])
    assert (found[None]["drift_alarm"], found["Z"]["drift_alarm"]) == (True, None)
    assert (found[None]["record_error_rate_used"], found["Z"]["record_error_rate_used"]) == (None, 0.5)


def test_what_later_nights_read_is_there_when_a_night_is_committed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, commit = str(tmp_path), publishing._commit

    def die(*given: Any) -> None:
        commit(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "_commit", die)
    with pytest.raises(KeyboardInterrupt):
        publish(night_of({}), output, replaces=None)
    assert read_plan(output, str(FACTS["run_id"])).num_rows == 0
    assert storage.exists(f"{output}/views.sql") and storage.exists(f"{output}/counted/_schema.parquet")


@pytest.mark.parametrize("counted_run", ["aaaaaaaaaaaa", "000000000000"])
def test_counts_that_came_in_while_the_run_was_at_work_keep_the_night(tmp_path: Any, counted_run: str) -> None:
    output = str(tmp_path)
    in_force = commit_night(output, NIGHT, [plan_row("a")])
    counted_at = datetime(2026, 3, 3, tzinfo=UTC)
    take_in(output, counted_row("a", 3, NIGHT, counted_at, run_id=f"{NIGHT}-{counted_run}"))
    run_id = str(FACTS["run_id"])
    part = part_uri(output, "results", NIGHT, run_id, 0)
    night = replace(night_of({}), part_uris=[part])
    write_table(part, RESULTS_SCHEMA.empty_table())
    with pytest.raises(GateError, match=r"counts against a plan of 2026-03-02 have come in.*--replace-counted"):
        publish(night, output, replaces=in_force)
    assert committed_run(output, NIGHT) == in_force
    # the same command is refused at once from now on, and would take nothing away
    assert [part_uris(output, table, NIGHT, run_id) for table in ("results", "recount_plan")] == [[], []]
    write_table(part, RESULTS_SCHEMA.empty_table())
    publish(night, output, replaces=in_force, replace_counted=True)
    assert committed_run(output, NIGHT) == run_id
    check_committed(output, NIGHT, run_id, 0)
    with pytest.raises(GateError, match=r"committed by run .* with 0 of its 3 rows.*audit it again with --replace"):
        check_committed(output, NIGHT, run_id, 3)
    write_table(part, results_of({}, {}))
    with pytest.raises(GateError, match=r"with 2 of its 1 rows"):  # by a try that cut its parts otherwise
        check_committed(output, NIGHT, run_id, 1)
    check_committed(output, NIGHT, in_force, 3)  # which was replaced: its parts have gone, rightly


@pytest.mark.parametrize(
    ("num_staged", "message"), [(1, "1 rows for 2 bins were staged"), (2, "another run has taken")]
)
def test_nothing_is_written_where_the_stage_is_not_whole_or_the_night_is_lost(
    num_staged: int, message: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise GateError("another run has taken the night")

    def write_parts(*given: Any) -> None:
        raise AssertionError("written over the parts of whoever has the night")

    bundle = bundle_info()
    tonight: Any = SimpleNamespace(
        config=AuditConfig(manifest_uri="m", bundle_uri="b", output_uri=str(tmp_path)),
        run_id="r", audit_date=NIGHT, bundle=bundle, run_uri=str(tmp_path), output_uri=str(tmp_path),
        resources=SimpleNamespace(small_task_cpus=1), manifest=SimpleNamespace(num_rows=2),
    )  # fmt: skip
    history = read_history(str(tmp_path), NIGHT)
    belief = learn_belief(history, bundle, true_shares(bundle.label_histogram))
    monkeypatch.setattr(audit, "decide_night", lambda *given: Decisions(num_staged, None, {}, None, None))  # type: ignore[arg-type]
    monkeypatch.setattr(audit, "write_parts", write_parts)
    lock: Any = SimpleNamespace(check=lost)
    with pytest.raises(GateError, match=message):
        audit._conclude(tonight, belief, history.last_counts, lock)


def test_a_night_that_another_run_committed_after_the_last_look_at_the_lock_stays(tmp_path: Any) -> None:
    output = str(tmp_path)
    first = commit_night(output, NIGHT, [plan_row("a")])
    with pytest.raises(GateError, match=f"committed by run {first} while this one was at work"):
        publish(night_of({}), output, replaces=None)
    assert committed_run(output, NIGHT) == first


@pytest.mark.parametrize("moment", ["before its plan is written", "write_table", "_check_parts"])
def test_a_run_that_has_lost_the_night_commits_nothing_and_touches_no_part(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused, it may find that another process has taken the night with the same command and so with the same names."""
    output, run_id = str(tmp_path), str(FACTS["run_id"])
    in_force = commit_night(output, NIGHT, [plan_row("a")])
    parts = [part_uri(output, "results", NIGHT, run_id, number) for number in range(2)]
    for part in parts:
        write_table(part, RESULTS_SCHEMA.empty_table())
    lost = not hasattr(publishing, moment)

    def check() -> None:
        if lost:
            raise GateError("another run has taken the night")

    if not lost:
        step = getattr(publishing, moment)

        def pause(*given: Any) -> None:
            nonlocal lost
            step(*given)
            lost = True

        monkeypatch.setattr(publishing, moment, pause)
    lock: Any = SimpleNamespace(check=check, is_held=lambda: not lost)
    night = replace(night_of({}), part_uris=parts[:1])
    with pytest.raises(GateError, match="another run has taken the night"):
        publish_night(
            night,
            summarize(night.sums, FACTS, {}, []),
            output_uri=output,
            audit_date=NIGHT,
            run_id=run_id,
            replaces=in_force,
            replace_counted=True,
            lock=lock,
        )
    assert committed_run(output, NIGHT) == in_force
    if moment != "_check_parts":
        assert part_uris(output, "results", NIGHT, run_id) == parts
    if moment == "before its plan is written":
        assert part_uris(output, "recount_plan", NIGHT, run_id) == []


def test_a_night_is_on_disk_before_its_commit_and_that_before_what_was_staged_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run_id = str(tmp_path), str(FACTS["run_id"])
    staged, settled = f"{output}/runs/{run_id}/staged/0000000.parquet", []
    storage.write_bytes(staged, b"")
    monkeypatch.setattr(
        storage, "settle", lambda uri: settled.append((uri, committed_run(output, NIGHT), storage.exists(staged)))
    )
    publish(night_of({}), output, replaces=None)
    assert settled == [(output, None, True), (output, run_id, True)]
    assert not storage.exists(staged)


def test_a_commit_whose_answer_was_lost_is_a_commit(tmp_path: Any) -> None:
    publish(night_of({}), str(tmp_path), replaces=None)
    publish(night_of({}), str(tmp_path), replaces=None)
    assert committed_run(str(tmp_path), NIGHT) == FACTS["run_id"]


def publish(night: WrittenParts, output: str, *, replaces: str | None, replace_counted: bool = False) -> None:
    with hold_night(output, NIGHT, str(FACTS["run_id"])) as lock:
        publish_night(
            night,
            summarize(night.sums, FACTS, {}, []),
            output_uri=output,
            audit_date=NIGHT,
            run_id=str(FACTS["run_id"]),
            replaces=replaces,
            replace_counted=replace_counted,
            lock=lock,
        )


def test_a_summary_s_shares_and_lists_are_of_the_bins_that_they_name() -> None:
    night = night_of(
        {"recount": "priority", "verdict": "suspect", "p_record_wrong": 0.6, "abc_class": "A"},
        {"recount": "random", "p_record_wrong": 0.1, "abc_class": "A"},
        {"recount": "random", "p_record_wrong": 0.2, "abc_class": "B", "zone": "Z"},
        {"verdict": "not_assessed", "camera_qty": 5},  # scored; its stock has moved
        {"status": "missing_image", "verdict": "not_assessed", "camera_qty": None},
    )
    night.sums["num_outside"] = 1.0
    rows = {(r["scope"], r["scope_value"]): r for r in summarize(night.sums, FACTS, {}, []).to_pylist()}
    whole = rows["all", None]
    assert (whole["record_outside_set_share"], whole["coverage"]) == pytest.approx((1 / 3, 3 / 5))
    assert whole["naive_mismatch_share"] == pytest.approx(1 / 4)
    assert (whole["num_priority"], whole["num_random"], whole["num_suspect"]) == (1, 2, 1)
    assert whole["exp_wrong_in_list"] == pytest.approx(0.6)
    assert [rows["abc_class", name]["num_bins"] for name in "AB"] == [2, 1]


def test_a_commit_leaves_this_run_s_parts_and_plan_alone(tmp_path: Path) -> None:
    output, run_id = str(tmp_path), str(FACTS["run_id"])
    in_force = commit_night(output, NIGHT, [plan_row("a")])
    parts = [part_uri(output, "results", NIGHT, run_id, number) for number in range(2)]  # the second: of an earlier try
    for part in parts:
        write_table(part, RESULTS_SCHEMA.empty_table())
    publish(replace(night_of({}), part_uris=parts[:1]), output, replaces=in_force)
    for table, own in (("results", parts[0]), ("recount_plan", part_uri(output, "recount_plan", NIGHT, run_id, 0))):
        assert [entry.uri for entry in storage.list_objects(partition_uri(output, table, NIGHT))] == [own]
