import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from model.posterior import label_noise
from model.record_errors import DEFAULT_SIZES, assume_top_shares, recorded_to_true, true_to_recorded
from model.record_model import (
    RecordModel,
    assume_record_model,
    fit_record_model,
    recount_weights,
    scale_to_effective_size,
)
from tests.simulator import LARGE_WORLD, World, draw_records

SHARES = np.array([0.02, 0.08, 0.15, 0.18, 0.16, 0.12, 0.29])


def fit(expected: np.ndarray, counted: np.ndarray, **changed: object) -> RecordModel:
    size = len(expected)
    assumed = assume_record_model(SHARES)
    given = {
        "weights": np.ones(size),
        "is_random": np.ones(size, dtype=bool),
        "assumed": assumed,
        "zones": [None] * size,
        **changed,
    }
    return fit_record_model(expected, counted, **given)


def test_every_row_of_a_record_table_is_a_distribution() -> None:
    table = assume_record_model(SHARES).table()
    assert table.shape == (9, 7)
    assert np.allclose(table.sum(axis=1), 1)
    assert (table > 0).all()


def test_one_piece_missing_leaves_the_top_class_only_for_a_record_of_exactly_k() -> None:
    only_one_missing = (1 - 4e-9, 1e-9, 1e-9, 1e-9, 1e-9)
    table = recorded_to_true(0.05, only_one_missing, SHARES, (0.3, 0.2, 0.5))
    assert table[6, 5] == pytest.approx(0.05)
    assert table[7, 6] == pytest.approx(1)
    assert table[8, 6] == pytest.approx(1)


def test_an_error_of_the_record_is_weighed_by_how_common_the_true_quantity_is() -> None:
    rare = np.array([0.3, 0.3, 0.3, 0.001, 0.05, 0.049])
    table = true_to_recorded(0.05, DEFAULT_SIZES, rare, (0.9, 0.05, 0.05))
    assert 1 - table[3, 3] > 0.5  # a record of 3, where 3 is never stocked, is mistaken
    moved = recorded_to_true(0.05, DEFAULT_SIZES, rare, (0.9, 0.05, 0.05))
    assert 1 - moved[3, 3] == pytest.approx(0.05)


def test_stock_that_moved_far_has_left_half_of_the_bins_empty_and_ends_elsewhere_as_often_as_anywhere() -> None:
    moved = recorded_to_true(0.1, DEFAULT_SIZES, SHARES, (0.3, 0.2, 0.5))
    assert moved[3] == pytest.approx([0.01125, 0.012, 0.04, 0.9, 0.025, 0.008, 0.00375])


def test_a_record_that_is_far_off_says_nothing_as_often_as_any_other_count() -> None:
    alike = np.full(7, 1 / 7)
    mistaken = true_to_recorded(0.1, DEFAULT_SIZES, alike, (0.3, 0.2, 0.5))
    # of three nothing or K and more are far; of one, where two pieces fewer can't be, nothing is a piece off
    assert mistaken[0, 3] / mistaken[0, 1] == pytest.approx((0.15 / 2) / (0.25 / 0.92))


def test_where_hardly_any_bin_holds_so_much_hardly_any_error_leads_there() -> None:
    small = np.array([0.1, 0.2, 0.2, 0.2, 0.2, 0.0999, 0.0001])
    assert recorded_to_true(0.1, DEFAULT_SIZES, small, assume_top_shares(small))[5, 6] < 0.002


@pytest.mark.parametrize("recorded_to_true_world", [True, False])
def test_rate_sizes_and_direction_are_learned_from_random_recounts(recorded_to_true_world: bool) -> None:
    world = World(recorded_to_true=recorded_to_true_world, error_rate=0.08)
    expected, true = draw_records(world, 20_000, np.random.default_rng(0))
    learned = fit(expected, true, assumed=assume_record_model(world.quantity_shares))
    assert learned.error_rate == pytest.approx(0.08, abs=0.006)
    assert np.allclose(learned.sizes[:2], DEFAULT_SIZES[:2], atol=0.08)
    assert learned.recorded_to_true_weight == pytest.approx(float(recorded_to_true_world), abs=0.15)
    assert not learned.assumed


def test_the_tail_of_the_top_class_is_learned_from_the_records() -> None:
    expected, true = draw_records(LARGE_WORLD, 20_000, np.random.default_rng(0))
    in_top = expected[expected >= 6]
    shares = [(in_top == 6).mean(), (in_top == 7).mean(), (in_top > 7).mean()]
    assert np.allclose(fit(expected, true).top_shares, shares, atol=0.01)


def test_bulk_stock_that_is_a_few_pieces_off_says_nothing_of_small_bins_nor_of_its_class() -> None:
    random = np.random.default_rng(0)
    small, large = random.integers(1, 6, 2000), random.integers(50, 200, 1000)
    expected = np.concatenate([small, large])
    counted = np.concatenate([small - (random.random(2000) < 0.03), large - 10 * (random.random(1000) < 0.33)])
    learned = fit(expected, counted)
    assert learned.error_rate == pytest.approx(0.03, abs=0.008)
    assert learned.sizes[0] > 0.6 and learned.sizes[4] < 0.1
    assert learned.table()[8, :6].sum() < 0.001
    counted[2000:] = np.where(random.random(1000) < 0.2, 0, large)  # a fifth of it is gone
    emptied = fit(expected, counted)
    assert emptied.table()[8, :6].sum() == pytest.approx(0.2, abs=0.03)
    assert emptied.error_rate == learned.error_rate
    zoned = fit(expected, counted, zones=np.where(np.arange(3000) % 2, "A", "Z").tolist())
    assert zoned.zone_error_rates["A"] != zoned.error_rate
    assert zoned.table("A")[8, :6].sum() == pytest.approx(zoned.table()[8, :6].sum())
    noise, _ = label_noise(np.full(7, 100), 0.02, emptied)
    assert noise[0, 6] < 0.08, "labels are not taken to be worse than records are"
    assert label_noise(np.full(7, 100), 0.0, emptied)[0] == pytest.approx(np.eye(7))


def test_bulk_stock_says_nothing_of_the_way_in_which_small_bins_err() -> None:
    small, found = np.full(400, 3), np.repeat([2, 4, 3], [60, 10, 330])
    large = np.full(200, 50)
    there, gone = (fit(np.r_[small, large], np.r_[found, counted]) for counted in (large, np.zeros(200, int)))
    assert gone.recorded_to_true_weight == there.recorded_to_true_weight


def test_without_random_recounts_the_model_stays_assumed() -> None:
    expected, counted = np.array([3, 4, 5]), np.array([2, 4, 0])
    learned = fit(expected, counted, is_random=np.zeros(3, dtype=bool))
    assert learned == assume_record_model(SHARES)
    assert learned.assumed
    assert learned.num_random == 0


def test_weights_undo_a_priority_list_full_of_errors() -> None:
    random = np.random.default_rng(1)
    expected = np.full(1000, 4)
    is_random = np.arange(1000) < 300
    wrong = random.random(1000) < np.where(is_random, 0.05, 0.8)
    counted = expected - wrong
    weights = recount_weights(np.where(is_random, 0.003, 1.0), ~is_random)
    assert fit(expected, counted, weights=weights, is_random=is_random).error_rate == pytest.approx(0.05, abs=0.015)
    assert fit(expected, counted, is_random=is_random).error_rate > 0.4


def test_sizes_of_errors_count_by_weight() -> None:
    counted, weights = np.repeat([3, 2, 0], [500, 50, 50]), np.repeat([10.0, 10.0, 1.0], [500, 50, 50])
    worth = scale_to_effective_size(weights)
    sizes = 50 * np.array(DEFAULT_SIZES) + [worth[500:550].sum(), 0, 0, 0, worth[550:].sum()]
    assert fit(np.full(600, 3), counted, weights=weights).sizes == pytest.approx(sizes / sizes.sum())


def test_random_bins_in_reach_of_the_list_do_not_stand_for_others() -> None:
    assert recount_weights([0.1, 0.1, 1.0], [False, True, True]).tolist() == [10, 1, 1]


def test_effective_size_is_that_of_kish() -> None:
    assert scale_to_effective_size([1, 1, 1, 1]).sum() == pytest.approx(4)
    assert scale_to_effective_size([100, 1e-9, 1e-9]).sum() == pytest.approx(1)


def from_json(values: dict[str, Any]) -> RecordModel:
    """As a belief reads it."""
    return TypeAdapter(RecordModel).validate_python(json.loads(json.dumps(values)))


def test_a_record_model_survives_json_exactly() -> None:
    learned = fit(np.array([3, 4, 1000]), np.array([3, 2, 1000]))
    assert from_json(asdict(learned)) == learned


def test_bad_quantities_are_refused() -> None:
    with pytest.raises(ValueError, match="expected_qty must be 0 or more"):
        fit(np.array([-1, 2]), np.array([1, 2]))
    with pytest.raises(ValueError, match="counted_qty must be 0 or more"):
        fit(np.array([1, 2]), np.array([1, -2]))
    with pytest.raises(ValueError, match="one length"):
        fit(np.array([1, 2]), np.array([1]))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        recount_weights([0.0], [False])


def draw_zones(rates: dict[str, float], size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Recorded and counted quantities of so many bins of each zone."""
    random = np.random.default_rng(seed)
    parts = [(zone, draw_records(World(error_rate=rate), size, random)) for zone, rate in rates.items()]
    expected, true = (np.concatenate([records[side] for _, records in parts]) for side in (0, 1))
    return expected, true, [zone for zone, _ in parts for _ in range(size)]


def test_zones_that_differ_have_rates_of_their_own() -> None:
    expected, true, zones = draw_zones({"good": 0.01, "bad": 0.09}, 450, 0)
    learned = fit(expected, true, zones=zones)
    assert learned.zone_error_rates["good"] == pytest.approx(0.01, abs=0.012)
    assert learned.zone_error_rates["bad"] == pytest.approx(0.09, abs=0.03)
    assert learned.zone_error_rates["good"] < learned.error_rate < learned.zone_error_rates["bad"]
    assert learned.table("bad")[3, 3] < learned.table()[3, 3] < learned.table("good")[3, 3]
    assert np.array_equal(learned.table("elsewhere"), learned.table())
    assert from_json(asdict(learned)) == learned


def test_small_bins_are_laid_to_their_own_zones_beside_those_of_bulk_stock() -> None:
    expected = np.repeat([50, 3], [300, 400])
    counted = expected - np.isin(np.arange(700), np.arange(500, 560))
    rates = fit(expected, counted, zones=["bulk"] * 300 + ["good"] * 200 + ["bad"] * 200).zone_error_rates
    assert rates["bad"] > 3 * rates["good"] and "bulk" not in rates


def test_a_zone_with_small_nights_is_judged_by_its_own_counts() -> None:
    """Random bins of nights of a thousand beside those of nights of twenty thousand; nobody was sent to the last zone but
    for wrong records."""
    expected, true, zones = draw_zones({"large": 0.02, "small": 0.1, "listed": 0.5}, 600, 0)
    weights = np.repeat([20_000 / 30, 1_000 / 30, 1.0], 600)
    is_random = np.repeat([True, True, False], 600)
    learned = fit(expected, true, weights=weights, is_random=is_random, zones=zones)
    wrong = (expected != true).reshape(3, 600).mean(axis=1)
    assert learned.zone_error_rates["small"] == pytest.approx(wrong[1], abs=0.015)
    assert learned.zone_error_rates["large"] == pytest.approx(wrong[0], abs=0.01)
    assert "listed" not in learned.zone_error_rates
    # nor does one random bin make the list's precision the rate of its zone
    one = fit(expected, true, weights=weights, is_random=is_random | (np.arange(1800) == 1799), zones=zones)
    assert one.zone_error_rates["listed"] < one.error_rate + 0.03


def test_zones_that_are_alike_share_one_rate() -> None:
    few = {f"zone {number}": 0.05 for number in range(20)}
    rates = [rate for seed in range(5) for rate in fit_zones(few, 45, seed)]
    assert np.std(rates) < 0.01
    expected, true, zones = draw_zones({"only": 0.05}, 400, 1)
    assert fit(expected, true, zones=zones).zone_error_rates == {}
    assert fit(expected, true, zones=[None] * 400).zone_error_rates == {}
    # a few bins without a zone are a stratum too, and have none of their own
    assert set(fit(expected, true, zones=["only"] * 200 + [None] * 200).zone_error_rates) <= {"only"}


def fit_zones(rates: dict[str, float], size: int, seed: int) -> list[float]:
    expected, true, zones = draw_zones(rates, size, seed)
    learned = fit(expected, true, zones=zones)
    return [learned.zone_error_rates.get(zone, learned.error_rate) for zone in rates]


def test_a_model_that_was_frozen_before_zones_had_rates_still_loads() -> None:
    values = asdict(assume_record_model(SHARES))
    del values["zone_error_rates"]
    assert from_json(values) == assume_record_model(SHARES)


@pytest.mark.parametrize(("large", "small"), [((300, 15), (1, 1)), ((2000, 100), (1, 1)), ((300, 0), (1, 1))], ids=str)
def test_a_zone_with_one_count_is_not_judged_by_it(large: tuple[int, int], small: tuple[int, int]) -> None:
    counts = {"usual": large, "new": small}
    expected = np.full(large[0] + small[0], 3)
    counted = np.concatenate([3 - (np.arange(size) < wrong) for size, wrong in counts.values()])
    zones = [zone for zone, (size, _) in counts.items() for _ in range(size)]
    learned = fit(expected, counted, zones=zones)
    rates = [learned.zone_error_rates.get(zone, learned.error_rate) for zone in counts]
    assert rates[1] < learned.error_rate + 0.03
    assert 0 < rates[0] <= learned.error_rate * 1.05


def test_bulk_stock_begins_two_above_the_top_class_and_is_wrong_below_it() -> None:
    expected = np.array([3] * 900 + [7] * 100 + [8] * 500 + [50] * 500)
    counted = np.array([3] * 900 + [5] * 100 + [6] * 1000)
    learned = fit(expected, counted)
    assert learned.error_rate == pytest.approx((50 * 0.05 + 100) / (50 + 1000))
    assert learned.table()[8, :6].sum() < 0.001, "six is the class that a record of fifty is in"


def test_labels_of_a_noisier_training_take_no_more_of_the_bulk_stock_for_gone() -> None:
    model = replace(assume_record_model(SHARES), error_rate=0.03, large_error_rate=0.2)
    noisy, _ = label_noise(np.full(7, 100), 0.12, model)
    usual, _ = label_noise(np.full(7, 100), 0.03, model)
    assert noisy.min() >= 0 and noisy[0, 6] == pytest.approx(usual[0, 6], abs=0.05)


def test_the_priority_list_does_not_shape_the_top_class() -> None:
    expected = np.array([6] * 10 + [9] * 10)
    learned = fit(expected, expected, is_random=expected == 6)
    assert learned.top_shares[2] == pytest.approx(assume_record_model(SHARES).top_shares[2] * 5 / 15)


def test_one_count_that_only_moved_stock_explains_says_so_already() -> None:
    """Two are never stocked: found where three are recorded, they are what is left."""
    rare = np.array([0.2, 0.2, 1e-9, 0.2, 0.2, 0.1, 0.1])
    learned = fit(np.array([3]), np.array([2]), assumed=assume_record_model(rare))
    assert learned.recorded_to_true_weight == pytest.approx(0.75, abs=0.02)
