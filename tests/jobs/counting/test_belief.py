from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.config.audit import AuditConfig
from jobs.counting.belief import Belief, learn_belief, true_shares
from jobs.counting.history import History, read_history
from jobs.counting.samples import samples_in_force, worst_samples
from jobs.stages.knowledge import _believe, freeze_knowledge
from model.drift import Baseline
from model.estimators import WINDOW_NIGHTS, wilson_interval
from model.posterior import build_assessor, fit_noise_rate
from model.record_model import assume_record_model, fit_record_model
from schemas.bundle import LabelNoise
from schemas.summary import SUMMARY_SCHEMA
from tests.planned_night import BUNDLE_ID, bundle_info, commit_night, plan_row, priority_row, take_in
from tests.simulator import World, draw_bins, train_camera

TONIGHT = "2026-03-20"
SHARES = true_shares([100] * 7)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "audits")


def count(output: str, night: str, plan: list[dict[str, Any]], found: dict[str, int], confirmed: bool = True) -> None:
    """Takes in a count of each bin in `found`."""
    rows = [
        row
        | {
            "audit_date": night,
            "counted_qty": found[row["bin_id"]],
            "counted_at": datetime.fromisoformat(f"{night}T12:00").replace(tzinfo=UTC),
            "confirmed": confirmed,
            "run_id": f"{night}-aaaaaaaaaaaa",
        }
        for row in plan
        if row["bin_id"] in found
    ]
    take_in(output, *rows)


def right(plan: list[dict[str, Any]]) -> dict[str, int]:
    return {row["bin_id"]: row["expected_qty"] for row in plan}


def random_plan(size: int, **values: Any) -> list[dict[str, Any]]:
    return [plan_row(f"r{place:03d}", **values) for place in range(size)]


def history_of(output: str) -> History:
    return read_history(output, TONIGHT)


def test_without_recounts_the_record_model_is_assumed_and_nothing_is_claimed(output: str) -> None:
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.state == "assumed" and belief.record_model.error_rate == 0.05 and belief.noise_rate == 0.02
    assert belief.reference is None
    claims = asdict(belief.estimates)
    assert claims["estimator"] == "none"
    assert {name for name, value in claims.items() if value is not None} == {
        "estimator",
        "window_nights",
        "num_random_window",
        "num_priority_window",
        "num_pending_window",
    }


def test_priority_recounts_alone_claim_nothing_about_the_stock(output: str) -> None:
    plan = [priority_row(f"p{place}", place + 1) for place in range(40)]
    commit_night(output, "2026-03-02", plan, num_assessed=1000)
    count(output, "2026-03-02", plan, {row["bin_id"]: 0 for row in plan})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.state == "assumed" and belief.reference is None
    assert belief.estimates.error_rate is None and belief.estimates.net_variance_units is None
    assert belief.estimates.list_precision_window == 1.0, "that is a fact about the list"


def test_matches_that_come_in_first_do_not_pass_for_the_whole_sample(output: str) -> None:
    plan = random_plan(40)
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    found = right(plan) | {"r000": 1, "r001": 1, "r002": 1, "r003": 1, "r004": 1}
    matches = {name: qty for name, qty in found.items() if qty == 3}
    count(output, "2026-03-02", plan, matches)
    assert learn_belief(history_of(output), bundle_info(), SHARES).state == "assumed", "5 of 40 are pending"
    count(output, "2026-03-02", plan, {"r000": 1, "r001": 1}, confirmed=True)
    count(output, "2026-03-02", plan, {"r002": 1, "r003": 1, "r004": 1}, confirmed=False)
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.estimates.error_rate == pytest.approx(5 / 40), "an unconfirmed mismatch counts as it was found"
    assert belief.estimates.num_random_window == 37 and belief.estimates.num_pending_window == 3
    assert belief.reference is not None and belief.reference.num_counted == 37, "and certifies nothing"


def test_mismatches_that_wait_for_their_confirmation_do_not_flatter_the_stock(output: str) -> None:
    """No mismatch is ever confirmed: the night that found most stays outside the window."""
    for day in range(2, 11):
        plan, night = random_plan(40), f"2026-03-{day:02d}"
        commit_night(output, night, plan, num_assessed=400)
        wrong = {f"r{place:03d}": 1 for place in range(8 if day == 5 else 3)}
        count(output, night, plan, right(plan) | wrong, confirmed=False)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.window_nights == 8 and estimates.error_rate == pytest.approx(24 / 320)
    assert estimates.error_rate_high == pytest.approx(wilson_interval(32 / 360, 360)[1])


def test_mismatches_that_wait_for_their_confirmation_widen_what_is_said_of_pieces(output: str) -> None:
    for day, num_short in ((2, 1), (3, 1), (4, 30)):
        plan, night = random_plan(100), f"2026-03-{day:02d}"
        commit_night(output, night, plan, num_assessed=400)
        count(output, night, plan, right(plan) | {f"r{place:03d}": 1 for place in range(num_short)}, confirmed=False)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.window_nights == 2, "the third waits"
    assert estimates.net_variance_units == pytest.approx(-2 / 100 * 400)
    # all three nights: 64 pieces missing among 300 counted bins
    assert estimates.net_variance_units_low is not None and estimates.net_variance_units_low < -64 / 300 * 400
    assert estimates.gross_variance_units_high is not None and estimates.gross_variance_units_high > 64 / 300 * 400


def test_a_mismatch_that_nobody_confirmed_may_be_a_miscount(output: str) -> None:
    plan = random_plan(100)
    commit_night(output, "2026-03-02", plan, num_assessed=1000)
    waiting = {"r002": 1, "r003": 1}
    settled = {name: qty for name, qty in right(plan).items() if name not in waiting} | {"r000": 1, "r001": 1}
    count(output, "2026-03-02", plan, settled, confirmed=True)
    count(output, "2026-03-02", plan, waiting, confirmed=False)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.error_rate == pytest.approx(0.04)
    assert estimates.error_rate_low == pytest.approx(wilson_interval(0.02, 100)[0])


def test_a_mismatch_whose_record_moved_on_certifies_nothing_and_may_still_be_a_miscount(output: str) -> None:
    plan = random_plan(100)
    commit_night(output, "2026-03-02", plan, num_assessed=1000)
    found = right(plan) | {f"r{place:03d}": 1 for place in range(12)}
    count(output, "2026-03-02", plan, {name: qty for name, qty in found.items() if qty == 3})
    count(output, "2026-03-02", plan, {name: qty for name, qty in found.items() if qty == 1}, confirmed=False)
    before = learn_belief(history_of(output), bundle_info(), SHARES)
    assert before.reference is None and before.estimates.error_rate is None, "12 of 100 wait"
    commit_night(output, "2026-03-03", [plan_row("x")], other_bins=[plan_row(name, 7) for name in found])
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.estimates.error_rate == pytest.approx(0.12), "nobody can count them again"
    assert belief.estimates.error_rate_low == pytest.approx(wilson_interval(0.0, 100)[0])
    assert belief.reference is not None and belief.reference.num_counted == 88


def test_the_reference_holds_no_bin_of_the_list(output: str) -> None:
    plan = [*random_plan(20), *(priority_row(f"p{place}", place + 1) for place in range(10))]
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    count(output, "2026-03-02", plan, right(plan) | {f"p{place}": 1 for place in range(6)})
    reference = learn_belief(history_of(output), bundle_info(), SHARES).reference
    assert reference is not None
    assert (reference.num_counted, len(reference.right_scores)) == (20, 20)


def test_random_bins_that_nobody_counted_are_right_ones_to_certificates(output: str) -> None:
    """Three bins at the end of the walk, which the camera doubts most, are skipped."""
    far = [plan_row(f"far{place}", probabilities=[0.9, *[0.1 / 6] * 6]) for place in range(3)]
    known = plan_row("far, but known to be wrong", probabilities=far[0]["probabilities"], reason="counted_wrong")
    plan = [*random_plan(37), *far, known]
    commit_night(output, "2026-03-02", plan, num_assessed=300)
    count(output, "2026-03-02", plan, {name: qty for name, qty in right(plan).items() if not name.startswith("far")})
    reference = learn_belief(history_of(output), bundle_info(), SHARES).reference
    assert reference is not None
    assert (reference.num_counted, len(reference.right_scores)) == (40, 40)
    assert max(reference.right_scores) > 10 * np.median(reference.right_scores)


def test_zones_that_differ_are_learned_and_referred_to_apart(output: str) -> None:
    plan = [plan_row(f"{zone}{place:03d}", zone=zone) for zone in ("bad", "good") for place in range(200)]
    commit_night(output, "2026-03-02", plan, num_assessed=4000)
    count(output, "2026-03-02", plan, right(plan) | {f"bad{place:03d}": 2 for place in range(40)})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    rates = belief.record_model.zone_error_rates
    assert rates["bad"] > 3 * rates["good"]
    assert belief.reference is not None and len(set(belief.reference.right_scores)) == 2


def test_drift_is_measured_against_the_bundle_s_own_nights(output: str) -> None:
    for day in range(1, 13):
        bundle_id = "another" if day < 4 else BUNDLE_ID
        commit_night(
            output,
            f"2026-03-{day:02d}",
            [plan_row("a")],
            num_assessed=1000,
            outside=0.2 if day < 4 else 0.1,
            bundle_id=bundle_id,
        )
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.drift_baseline == Baseline(pytest.approx(0.1), pytest.approx(0.0), 7000, 7)
    assert Belief.from_dict(json.loads(json.dumps(belief.to_dict()))).drift_baseline == belief.drift_baseline
    assert learn_belief(history_of(output), bundle_info("another"), SHARES).drift_baseline is None, "of three nights"


@pytest.mark.parametrize("days", [1, 5, 14])
def test_drift_is_measured_against_the_last_nights_however_seldom_there_is_one(output: str, days: int) -> None:
    for number in range(40, 0, -1):
        night = date.fromisoformat(TONIGHT) - timedelta(days=days * number)
        outside = 0.2 if number > WINDOW_NIGHTS else 0.1
        commit_night(output, night.isoformat(), [plan_row("a")], num_assessed=1000, outside=outside)
    history = history_of(output)
    assert len(history.in_force) == WINDOW_NIGHTS // days, "older recounts are of other records"
    belief = learn_belief(history, bundle_info(), SHARES)
    assert belief.drift_baseline == Baseline(pytest.approx(0.1), pytest.approx(0.0), 7000, 7)


def test_a_baseline_knows_that_bins_of_a_warehouse_are_alike(output: str) -> None:
    for day in range(1, 8):
        commit_night(output, f"2026-03-{day:02d}", [plan_row("a")], num_assessed=1000, outside=0.1 + 0.02 * (day % 2))
    info = bundle_info()
    alike = info.model_copy(update={"num_independent": info.num_calibration // 4})
    assert (info.design_effect, alike.design_effect) == (1.0, pytest.approx(4, abs=0.1))
    usual, less = (learn_belief(history_of(output), each, SHARES).drift_baseline for each in (info, alike))
    assert usual is not None and less is not None and usual.variance > less.variance == 0


def test_no_night_is_said_to_be_better_than_what_people_found_of_its_lists(output: str) -> None:
    plan = [*random_plan(30), *(priority_row(f"p{place}", place + 1) for place in range(10))]
    found = right(plan) | {f"p{place}": 43 for place in range(5)}
    for night in ("2026-03-02", "2026-03-03"):
        commit_night(output, night, plan, num_assessed=400)
        count(output, night, plan, found, confirmed=True)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.gross_variance_units == estimates.gross_variance_units_low == 5 * 40
    assert estimates.gross_variance_units_high is not None and estimates.gross_variance_units_high >= 5 * 40
    assert (estimates.error_rate, estimates.error_rate_low, estimates.ira) == pytest.approx(
        (5 / 400, 5 / 400, 395 / 400)
    )
    assert estimates.error_rate_high == pytest.approx((5 + 390 * wilson_interval(0.0, 60)[1]) / 400)
    assert estimates.estimator == "wilson"


def test_no_night_is_said_to_be_worse_than_the_bins_that_nobody_found_right(output: str) -> None:
    """A pilot zone of 101 bins, one of which nobody counted and one was found wrong."""
    plan = [*random_plan(30), *(priority_row(f"p{place}", place + 1) for place in range(70))]
    commit_night(output, "2026-03-02", plan, num_assessed=101)
    count(output, "2026-03-02", plan, right(plan) | {"r000": 1}, confirmed=True)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert (estimates.error_rate_low, estimates.error_rate_high) == pytest.approx((1 / 101, 2 / 101))
    assert estimates.error_rate == pytest.approx(31 / 30 / 101)


def test_random_bins_that_nobody_counted_may_all_be_wrong(output: str) -> None:
    plan = random_plan(100)
    commit_night(output, "2026-03-02", plan, num_assessed=1000)
    count(output, "2026-03-02", plan, {name: qty for name, qty in right(plan).items() if name >= "r005"})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.error_rate == 0
    assert estimates.error_rate_high == pytest.approx(wilson_interval(0.05, 100)[1])


def test_random_bins_that_nobody_counted_may_all_be_right(output: str) -> None:
    """The corner that people skip is the tidy one; a bin that they skip as known to be wrong is no right one."""
    plan = [*random_plan(100), plan_row("known", reason="counted_wrong")]
    commit_night(output, "2026-03-02", plan, num_assessed=1000)
    found = right(plan) | {f"r{place:03d}": 1 for place in range(70, 100)}
    count(output, "2026-03-02", plan, {name: qty for name, qty in found.items() if name >= "r005"})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.error_rate == pytest.approx(30 / 95)
    assert estimates.error_rate_low == pytest.approx(wilson_interval(0.3, 100)[0])


def test_bins_that_nobody_counted_may_lack_or_hold_pieces(output: str) -> None:
    plan = random_plan(100)
    for night in ("2026-03-02", "2026-03-03"):
        commit_night(output, night, plan, num_assessed=1000)
    count(output, "2026-03-02", plan, right(plan))
    count(output, "2026-03-03", plan, {name: qty for name, qty in right(plan).items() if name >= "r010"})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    count(output, "2026-03-03", plan, {name: qty for name, qty in right(plan).items() if name < "r010"})
    whole = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    # in the second of two nights the ten stand for 100 bins, of 2 pieces each
    for name in ("net_variance_units_low", "net_variance_units_high", "gross_variance_units_high"):
        assert abs(getattr(estimates, name)) - abs(getattr(whole, name)) == pytest.approx(2 * 100 / 2, rel=0.1)
    assert estimates.gross_variance_units_low == whole.gross_variance_units_low == 0


def test_a_list_that_was_not_counted_to_its_end_may_be_wrong_in_the_rest(output: str) -> None:
    plan = [
        *random_plan(30, inclusion_probability=0.075),
        *(priority_row(f"p{place:02d}", place) for place in range(20)),
    ]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    seen = {name: qty for name, qty in right(plan).items() if name < "p18"}  # and so the random ones
    count(output, "2026-03-02", plan, {**seen, **{name: qty for name, qty in right(plan).items() if name >= "r"}})
    (sample,) = worst_samples(history_of(output))
    assert sample.wrong.sum() == 2 and len(sample.wrong) == 50


def test_listed_bins_that_nobody_counted_are_as_the_others_of_the_list(output: str) -> None:
    plan = [*random_plan(30), *(priority_row(f"p{place:02d}", place) for place in range(20))]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    found = right(plan) | {f"p{place:02d}": 1 for place in range(9)}
    count(output, "2026-03-02", plan, {name: qty for name, qty in found.items() if name < "p18" or name >= "r"})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.error_rate == pytest.approx(20 * 9 / 18 / 400)
    assert estimates.error_rate_low == pytest.approx(9 / 400)


def test_counts_without_an_error_do_not_say_that_no_piece_is_missing(output: str) -> None:
    plan = [plan_row(f"r{place:03d}", inclusion_probability=0.1, unit_value=10.0) for place in range(100)]
    commit_night(output, "2026-03-02", plan, num_assessed=1000)
    count(output, "2026-03-02", plan, right(plan))
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.net_variance_units == 0
    assert estimates.net_variance_units_low is not None and estimates.net_variance_units_low < -40
    assert estimates.net_variance_units_high is not None and estimates.net_variance_units_high > 40
    assert estimates.net_variance_value_high == pytest.approx(10 * estimates.net_variance_units_high)


def test_the_frozen_belief_comes_back_equal_from_json(output: str) -> None:
    plan = [*random_plan(30), priority_row("p", 1, unit_value=2.5)]
    commit_night(output, "2026-03-02", plan, num_assessed=300)
    count(output, "2026-03-02", plan, right(plan) | {"r003": 2, "p": 1})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    again = Belief.from_dict(json.loads(json.dumps(belief.to_dict(), allow_nan=False)))
    assert again.to_dict() == belief.to_dict()
    assert belief.reference is not None and again.reference is not None
    assert np.array_equal(again.reference.right_scores, belief.reference.right_scores)
    assert again.record_model == belief.record_model and again.estimates == belief.estimates


def test_a_belief_of_another_version_still_loads(output: str) -> None:
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    old = belief.to_dict()
    del old["record_model"]["zone_error_rates"], old["drift_baseline"]
    old["estimates"]["a_figure_of_then"] = 0.1
    assert Belief.from_dict(old) == belief


def test_what_a_belief_says_fits_the_summary(output: str) -> None:
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert set(asdict(belief.estimates)) <= set(SUMMARY_SCHEMA.names)


def test_the_priority_list_kept_its_promises_or_not(output: str) -> None:
    plan = [*random_plan(10), *(priority_row(f"p{place}", place + 1, unit_value=2.0) for place in range(10))]
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    count(output, "2026-03-02", plan, right(plan) | {"p0": 1, "p1": 4, "p2": 0})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.list_precision_window == pytest.approx(0.3)
    assert estimates.claimed_over_found == pytest.approx(10 * 0.6 / 3)
    assert estimates.found_value_window == pytest.approx(2.0 * (2 + 1 + 3))
    assert estimates.num_priority_window == 10


def test_a_claim_about_many_pieces_is_held_against_what_it_claims(output: str) -> None:
    """p_record_wrong of a record of K or more says "fewer than K": 11 where 12 are recorded is not what it claimed."""
    listed = [priority_row(f"p{place}", place + 1, 12, p_record_wrong=0.3) for place in range(10)]
    plan = [*random_plan(10), *listed]
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    found = {f"p{place}": 4 if place < 3 else 11 for place in range(10)}
    count(output, "2026-03-02", plan, right(plan) | found)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.list_precision_window == 1.0
    assert estimates.claimed_over_found == pytest.approx(1.0)


def test_a_list_that_nobody_counted_does_not_shift_the_estimate(output: str) -> None:
    """Its bins are not a stratum counted in full then, and the random bins stand for them too."""
    plan = [
        *random_plan(20),
        *(plan_row(f"h{place}", p_record_wrong=0.9) for place in range(20)),
        *(priority_row(f"p{place}", place + 1) for place in range(50)),
    ]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    found = right(plan[:40]) | {f"h{place}": 0 for place in range(20)}
    count(output, "2026-03-02", plan, found)
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.estimates.error_rate == pytest.approx(0.5)
    assert belief.record_model.error_rate > 0.2
    assert belief.estimates.list_precision_window is None


def test_a_record_off_by_a_piece_within_the_top_class_is_a_right_one_for_certificates(output: str) -> None:
    """Where 7 were counted for 8, nobody counts again: the camera can't tell, and what is certified is the class."""
    plan = random_plan(20, expected_qty=8, p_record_wrong=0.02) + [plan_row(f"s{place:03d}") for place in range(20)]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    count(output, "2026-03-02", plan, right(plan) | {"r000": 7, "r001": 6, "s000": 1}, confirmed=False)
    reference = learn_belief(history_of(output), bundle_info(), SHARES).reference
    assert reference is not None
    assert (reference.num_counted, len(reference.right_scores)) == (39, 39), "s000 may be a miscount"


def test_the_reference_holds_only_bins_that_this_bundle_scored(output: str) -> None:
    for night, bundle_id in (("2026-03-01", "another"), ("2026-03-02", BUNDLE_ID)):
        plan = random_plan(20, bundle_id=bundle_id)
        commit_night(output, night, plan, num_assessed=200)
        count(output, night, plan, right(plan) | {"r000": 1})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.reference is not None
    assert (belief.reference.num_counted, len(belief.reference.right_scores)) == (20, 19)
    assert belief.estimates.num_random_window == 40, "an estimate of the records needs no camera"
    assert learn_belief(history_of(output), bundle_info("a third"), SHARES).reference is None


def test_reference_scores_are_those_of_tonights_assessor_in_the_results_precision(output: str) -> None:
    plan = random_plan(20, p_record_wrong=0.5)
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    count(output, "2026-03-02", plan, right(plan))
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.reference is not None
    scores = np.array(belief.reference.right_scores)
    assert (scores < 0.2).all(), "not the 0.5 that the night claimed"
    assert np.array_equal(scores, scores.astype(np.float32))


def test_bins_kept_off_the_list_are_a_reference_too(output: str) -> None:
    """Without them, the false alarms that people have seen through would be certified once their counts are too old."""
    plan = [*random_plan(19), plan_row("known", reason="counted"), plan_row("waiting", reason="counted_wrong")]
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    count(output, "2026-03-02", plan, right(plan) | {"waiting": 0, "r000": 1})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.reference is not None
    # but for the one that waits for its correction, and is no candidate
    assert (belief.reference.num_counted, len(belief.reference.right_scores)) == (20, 19)
    assert belief.estimates.num_random_window == 21


def test_the_calibration_id_names_record_model_noise_and_bundle(output: str) -> None:
    first = learn_belief(history_of(output), bundle_info(), SHARES)
    assert learn_belief(history_of(output), bundle_info(), SHARES).calibration_id == first.calibration_id
    assert learn_belief(history_of(output), bundle_info("other"), SHARES).calibration_id != first.calibration_id
    noisier = bundle_info().model_copy(update={"label_noise": LabelNoise(rate=0.03, assumed=True)})
    assert learn_belief(history_of(output), noisier, SHARES).calibration_id != first.calibration_id
    plan = random_plan(20)
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    count(output, "2026-03-02", plan, right(plan))
    assert learn_belief(history_of(output), bundle_info(), SHARES).calibration_id != first.calibration_id


def test_counts_of_a_replaced_plan_teach_until_its_successor_is_counted(output: str) -> None:
    old, new = random_plan(20), [plan_row(f"n{place}") for place in range(20)]
    commit_night(output, "2026-03-02", old, num_assessed=200)
    commit_night(output, "2026-03-02", new, num_assessed=200, run="bbbbbbbbbbbb")
    count(output, "2026-03-02", old, {row["bin_id"]: 2 for row in old})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.state == "learned" and belief.record_model.error_rate > 0.2
    assert belief.estimates.error_rate is None, "the figures of the night are those of the plan in force"
    count(output, "2026-03-02", new, right(new))
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert belief.record_model.num_recounts == 20 and belief.record_model.error_rate < 0.05


def test_weights_keep_the_error_rate_where_it_is(output: str) -> None:
    """Four nights of 50 random and 50 priority recounts at 5 % wrong, where the list is 60 % wrong."""
    rng = np.random.default_rng(5)
    for day in range(1, 5):
        night = f"2026-03-{day:02d}"
        plan = [
            *random_plan(50, inclusion_probability=50 / 2000, p_record_wrong=0.04),
            *(priority_row(f"p{place:02d}", place + 1) for place in range(50)),
        ]
        commit_night(output, night, plan, num_assessed=2000, other_bins=[plan_row("x")] * 1900)
        wrong = dict.fromkeys([f"p{place:02d}" for place in range(30)], 2)
        wrong |= {f"r{place:03d}": 4 for place in rng.choice(50, 2, replace=False)}
        count(output, night, plan, right(plan) | wrong)
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    assert 0.03 < belief.record_model.error_rate < 0.08
    assert belief.estimates.error_rate is not None and belief.estimates.error_rate_low is not None
    assert belief.estimates.error_rate_low < 0.05 < (belief.estimates.error_rate_high or 0)
    assert belief.estimates.list_precision_window == pytest.approx(0.6)
    assert belief.estimates.window_nights == 4


def test_calibration_is_judged_by_classes_and_accuracy_by_pieces(output: str) -> None:
    """A record of 9 where 7 are there is wrong, but "fewer than 6 are there" was rightly denied."""
    plan = random_plan(40, expected_qty=9, p_record_wrong=0.01, camera_qty=4)
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    count(output, "2026-03-02", plan, right(plan) | {f"r{place:03d}": 7 for place in range(20)})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.error_rate == pytest.approx(0.5)
    assert estimates.ece_window == pytest.approx(0, abs=0.01)
    assert estimates.naive_precision_window == pytest.approx(0.5)


def test_claims_that_counts_belie_are_an_error_of_calibration(output: str) -> None:
    plan = random_plan(40, p_record_wrong=0.5)
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    count(output, "2026-03-02", plan, right(plan))
    error = learn_belief(history_of(output), bundle_info(), SHARES).estimates.ece_window
    assert error is not None and 0.3 < error < 0.5


def test_pieces_and_money_are_estimated_net_and_gross_with_their_intervals(output: str) -> None:
    plan = random_plan(40, unit_value=5.0, currency="EUR")
    plan += [plan_row("without a value")]
    commit_night(output, "2026-03-02", plan, num_assessed=410)
    count(output, "2026-03-02", plan, right(plan) | {"r000": 1, "r001": 4, "r002": 2, "without a value": 0})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.net_variance_units == pytest.approx(10 * (-2 + 1 - 1 - 3))
    assert estimates.gross_variance_units == pytest.approx(10 * (2 + 1 + 1 + 3))
    assert estimates.net_variance_value == pytest.approx(10 * 5 * (-2 + 1 - 1))
    for name in ("gross_variance_units", "net_variance_value"):
        low, value, high = (getattr(estimates, f"{name}{end}") for end in ("_low", "", "_high"))
        assert low < value < high


def test_with_many_counts_the_night_s_predictions_carry_the_money(output: str) -> None:
    """Below 400 random counts nothing of the summary's totals is used; here all counts are as predicted."""
    values = {"unit_value": 2.0, "expected_variance_qty": -1.0, "expected_abs_variance_qty": 1.0}
    plan = random_plan(420, **values)
    others = [plan_row(f"x{place}", **values) for place in range(580)]
    commit_night(output, "2026-03-02", plan, other_bins=others)
    count(output, "2026-03-02", plan, {row["bin_id"]: 2 for row in plan})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.estimator == "stratified_difference"
    assert estimates.net_variance_value == pytest.approx(-2000)
    assert estimates.gross_variance_units == pytest.approx(1000)
    assert estimates.net_variance_value_low is not None and -2030 < estimates.net_variance_value_low < -2000
    assert estimates.gross_variance_units_high is not None and 1000 < estimates.gross_variance_units_high < 1015


def test_with_many_counts_the_night_s_predictions_carry_accuracy_and_pieces(output: str) -> None:
    plan = random_plan(420, p_record_wrong=0.05, expected_variance_qty=-0.1)
    others = [plan_row(f"x{place}", p_record_wrong=0.25, expected_variance_qty=-0.5) for place in range(580)]
    commit_night(output, "2026-03-02", plan, other_bins=others)
    count(output, "2026-03-02", plan, right(plan) | {f"r{place:03d}": 2 for place in range(42)})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.estimator == "stratified_difference"
    # claimed of 1,000: 21 + 145; of the counted ones 0.05 each more were wrong
    assert estimates.error_rate == pytest.approx(0.166 + 0.05)
    assert estimates.ira == pytest.approx(1 - 0.216)
    assert estimates.net_variance_units == pytest.approx(-42 - 290)


def test_of_a_list_the_bins_that_were_resolved_are_said_to_be(output: str) -> None:
    plan = [*random_plan(10), *(priority_row(f"p{place:02d}", place + 1) for place in range(20))]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    count(output, "2026-03-02", plan, {name: qty for name, qty in right(plan).items() if name != "p19"})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert (estimates.list_precision_window, estimates.num_priority_window) == (0, 19)


def test_a_list_that_is_counted_in_part_has_no_precision_yet(output: str) -> None:
    plan = [*random_plan(10), *(priority_row(f"p{place:02d}", place + 1, unit_value=2.0) for place in range(20))]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    count(output, "2026-03-02", plan, {name: qty for name, qty in right(plan).items() if name < "p17" or name >= "r"})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert (estimates.list_precision_window, estimates.found_value_window) == (None, None)
    assert (estimates.num_priority_window, estimates.num_random_window) == (0, 10)


def test_label_noise_is_learned_from_what_this_bundle_scored_by_weight(output: str) -> None:
    other = random_plan(40, bundle_id="another")
    commit_night(output, "2026-03-01", other, num_assessed=400)
    count(output, "2026-03-01", other, {row["bin_id"]: 1 for row in other})
    plan = [*random_plan(40), *(priority_row(f"p{place:02d}", place + 1) for place in range(20))]
    commit_night(output, "2026-03-02", plan, num_assessed=400)
    found = right(plan) | {f"p{place:02d}": 1 for place in range(12)}
    count(output, "2026-03-02", plan, found)
    belief, info = learn_belief(history_of(output), bundle_info(), SHARES), bundle_info()
    expected = fit_noise_rate(
        np.array([row["probabilities"] for row in plan]),
        np.array([row["expected_qty"] for row in plan]),
        np.array([found[row["bin_id"]] for row in plan]),
        np.array([1 / row["inclusion_probability"] for row in plan]),
        info.label_histogram,
        belief.record_model,
        info.label_noise.rate,
    )
    assert belief.noise_rate == pytest.approx(expected, rel=1e-5)
    assert belief.noise_rate != info.label_noise.rate


def test_an_uncounted_random_bin_has_its_own_price_and_not_that_of_a_list_of_the_dearest(output: str) -> None:
    plan = random_plan(40, unit_value=2.0, currency="EUR")
    listed = [priority_row(f"p{place}", place + 1, unit_value=200.0, currency="EUR") for place in range(10)]
    commit_night(output, "2026-03-02", plan + listed, num_assessed=1000)
    found = right(plan)
    del found["r000"]
    count(output, "2026-03-02", plan, found)
    before = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    counted = right(listed)
    del counted["p3"]
    count(output, "2026-03-02", listed, counted)
    without_one = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    count(output, "2026-03-02", listed, right(listed))
    after = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert before.net_variance_value_high is not None and after.net_variance_value_high is not None
    assert 100 < after.net_variance_value_high < 1.1 * before.net_variance_value_high
    assert without_one.net_variance_value_high == pytest.approx(after.net_variance_value_high + 2 * 200, rel=0.01)


def test_where_no_bin_with_a_price_was_counted_nothing_is_said_of_money(output: str) -> None:
    plan = random_plan(40)
    commit_night(output, "2026-03-02", plan, other_bins=[plan_row("priced", unit_value=5.0, currency="EUR")])
    count(output, "2026-03-02", plan, right(plan))
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.net_variance_units == 0
    assert (estimates.net_variance_value, estimates.net_variance_value_low, estimates.net_variance_value_high) == (
        None,
        None,
        None,
    )


@pytest.mark.parametrize("currencies", [("EUR", "JPY"), ("EUR", None)])
def test_money_in_several_currencies_is_not_added_up(output: str, currencies: tuple[str | None, str | None]) -> None:
    for night, currency in zip(("2026-03-01", "2026-03-02"), currencies, strict=True):
        listed = [priority_row(f"p{place}", place + 1, unit_value=2.0, currency=currency) for place in range(10)]
        plan = [*random_plan(20, unit_value=2.0, currency=currency), *listed]
        commit_night(output, night, plan, num_assessed=200)
        count(output, night, plan, right(plan) | {"p0": 1, "r000": 1})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert (estimates.found_value_window, estimates.net_variance_value) == (None, None)
    assert estimates.net_variance_units is not None and estimates.list_precision_window == pytest.approx(0.1)


def test_a_night_in_another_currency_that_waits_for_confirmations_leaves_no_sum_of_money(output: str) -> None:
    """Its bins count in the ends of the interval."""
    for night, currency, found in (("2026-03-02", "EUR", {}), ("2026-03-03", "JPY", {"r000": 1, "r001": 1, "r002": 1})):
        plan = random_plan(20, unit_value=2.0, currency=currency)
        commit_night(output, night, plan, num_assessed=200)
        count(output, night, plan, right(plan) | found, confirmed=False)
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert estimates.window_nights == 1 and estimates.net_variance_value is None


def test_a_night_of_several_currencies_leaves_no_mean_of_the_others(output: str) -> None:
    for night, currencies in (("2026-03-02", ["EUR"]), ("2026-03-03", ["EUR", "USD"])):
        plan = [
            row | {"currency": currencies[place % len(currencies)]}
            for place, row in enumerate(random_plan(20, unit_value=2.0))
        ]
        commit_night(output, night, plan, num_assessed=200)
        count(output, night, plan, right(plan) | {"r000": 1})
    estimates = learn_belief(history_of(output), bundle_info(), SHARES).estimates
    assert (estimates.window_nights, estimates.net_variance_value) == (2, None)


@pytest.mark.parametrize("settings", [{"random_share": 0.0}, {"recount_budget": 0}], ids=str)
def test_a_night_without_random_bins_ranks_by_what_was_learned_and_claims_nothing(
    output: str, settings: dict[str, Any]
) -> None:
    plan = [*random_plan(30, unit_value=1.0), *(priority_row(f"p{place}", place + 1) for place in range(10))]
    commit_night(output, "2026-03-02", plan, num_assessed=300)
    count(output, "2026-03-02", plan, right(plan) | {"r003": 2, "p0": 1})
    belief = learn_belief(history_of(output), bundle_info(), SHARES)
    config = AuditConfig(manifest_uri="m", bundle_uri="b", output_uri=output)
    assert _believe(config, history_of(output), bundle_info(), SHARES).to_dict() == belief.to_dict()
    silent = _believe(config.model_copy(update=settings), history_of(output), bundle_info(), SHARES)
    assert belief.reference is not None and silent.reference is None
    assert silent.record_model == belief.record_model and silent.calibration_id == belief.calibration_id
    claims, before = asdict(silent.estimates), asdict(belief.estimates)
    assert claims["estimator"] == "none"
    withdrawn = {name for name, value in claims.items() if value is None and before[name] is not None}
    ends = ("", "_low", "_high")
    assert withdrawn == {"ira"} | {
        f"{name}{end}"
        for name in ("error_rate", "net_variance_units", "gross_variance_units", "net_variance_value")
        for end in ends
    }
    assert claims["list_precision_window"] == pytest.approx(0.1), "that is a fact about the list"


def test_what_a_mistaken_record_meant_is_told_by_tonights_quantities_and_not_by_those_of_training() -> None:
    """A network trained on one warehouse's quantities audits another, which mostly holds one or two pieces a bin."""
    random = np.random.default_rng(0)
    trained = World(recorded_to_true=False)
    camera = train_camera(trained, random)
    tonight = replace(trained, quantity_shares=(0.03, 0.45, 0.25, 0.13, 0.08, 0.06))
    claimed, found, precision = [], [], []
    for _ in range(6):
        bins, audits = draw_bins(camera, tonight, 10_000, random), draw_bins(camera, tonight, 1_000, random)
        for records in (camera.label_histogram, np.bincount(bins.expected_qty, minlength=6)):
            everybody = np.ones(1_000)
            counts = audits.expected_qty, audits.true_qty, everybody, everybody > 0
            model = fit_record_model(*counts, assume_record_model(true_shares(records)), [None] * 1_000)
            p_wrong = build_assessor(camera.label_histogram, 0.05, model).assess(bins.probabilities, bins.expected_qty)
            first = np.argsort(-p_wrong["p_record_wrong"].astype(float))[:500]
            claimed.append(p_wrong["p_record_wrong"].sum())
            precision.append(bins.wrong[first].mean())
        found.append(bins.wrong.sum())
    of_training, of_tonight = np.mean(np.reshape(precision, (6, 2)), axis=0)
    assert of_tonight > of_training + 0.03
    by_training, by_tonight = np.abs(np.mean(np.reshape(claimed, (6, 2)), axis=0) - np.mean(found))
    assert by_tonight < 0.75 * by_training


def test_a_run_that_goes_on_believes_and_knows_what_it_froze_when_it_began(output: str) -> None:
    plan, known = random_plan(20), []
    commit_night(output, "2026-03-02", plan, num_assessed=200)
    tonight: Any = SimpleNamespace(
        config=AuditConfig(manifest_uri="m", bundle_uri="b", output_uri=output),
        output_uri=output,
        audit_date=TONIGHT,
        run_id="r",
        run_uri=f"{output}/runs/r",
        replaces=None,
        bundle=bundle_info(),
        precision="fp32",
        resources=SimpleNamespace(device="cpu", batch_size=8),
        allowed_roots=("/photos",),
        manifest=SimpleNamespace(uri="m", num_rows=1, fingerprint="f", class_histogram=lambda top_class: [100] * 7),
    )
    for _ in range(2):
        frozen, last_counts = freeze_knowledge(tonight)
        known.append((Belief.from_dict(frozen["belief"]).state, len(last_counts)))
        count(output, "2026-03-02", plan, right(plan))  # between the crash and the restart
    assert known == [("assumed", 0)] * 2


def test_a_random_bin_that_scores_like_a_counted_list_stands_for_itself_alone(output: str) -> None:
    plan = [
        *random_plan(20),
        *(plan_row(f"h{place}", p_record_wrong=0.9) for place in range(2)),
        *(priority_row(f"p{place}", place + 1) for place in range(10)),
    ]
    commit_night(output, "2026-03-02", plan, num_assessed=220)
    count(output, "2026-03-02", plan, right(plan) | {"h0": 1, "h1": 1})
    (sample,) = samples_in_force(history_of(output))
    weight = dict(zip((row["bin_id"] for row in plan), sample.weight, strict=True))
    assert (weight["h0"], weight["p0"], weight["r000"]) == (1, 1, pytest.approx(10))


def test_labels_that_are_said_to_be_right_stay_so(output: str) -> None:
    plan = random_plan(40)
    commit_night(output, "2026-03-01", plan, num_assessed=400)
    count(output, "2026-03-01", plan, right(plan) | {"r000": 1})
    exact = bundle_info().model_copy(update={"label_noise": LabelNoise(rate=0.0, assumed=False)})
    assert learn_belief(history_of(output), exact, SHARES).noise_rate == 0.0
