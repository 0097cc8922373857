import numpy as np
import pytest
from scipy.stats import binomtest

from model.estimators import (
    NightSample,
    choose_window,
    claimed_over_found,
    estimate_precision,
    estimate_share,
    estimate_total,
    wilson_interval,
)


def draw_night(random: np.random.Generator, num_random: int, num_bins: int = 5000, good: bool = True) -> tuple:
    """A sample without a priority list; its truth, and its outcome over all bins."""
    chance = random.beta(0.3, 5, num_bins)
    outcome = (random.random(num_bins) < chance).astype(float)
    prediction = chance if good else random.random(num_bins)
    rows = random.choice(num_bins, num_random, replace=False)
    ones = np.ones(num_random, dtype=bool)
    sample = NightSample(num_bins, prediction.sum(), outcome[rows], prediction[rows], ones, ~ones)
    return sample, outcome


def test_wilson_is_scipys() -> None:
    low, high = wilson_interval(7 / 120, 120)
    expected = binomtest(7, 120).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert wilson_interval(0.0, 50)[0] == 0
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_below_four_hundred_counts_the_plain_share_is_shown() -> None:
    sample, _ = draw_night(np.random.default_rng(0), 399)
    estimate = estimate_share([sample])
    assert estimate.estimator == "wilson"
    assert estimate.value == pytest.approx(sample.outcome.mean())
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(estimate.value, 399))
    assert estimate_share([draw_night(np.random.default_rng(0), 400)[0]]).estimator == "stratified_difference"


def test_thirty_small_nights_count_as_one_large_sample() -> None:
    random = np.random.default_rng(0)
    nights = [draw_night(random, 30)[0] for _ in range(30)]
    estimate = estimate_share(nights)
    assert estimate.num_random == 900
    assert estimate.estimator == "stratified_difference"
    assert estimate.high - estimate.low < 0.04


@pytest.mark.parametrize("good", [True, False])
def test_intervals_hold_the_truth_whatever_the_prediction(good: bool) -> None:
    random, hits, errors = np.random.default_rng(1), [], []
    for _ in range(400):
        sample, outcome = draw_night(random, 500, good=good)
        share, total = estimate_share([sample]), estimate_total([sample])
        hits.append((share.low <= outcome.mean() <= share.high, total.low <= outcome.sum() <= total.high))
        errors.append(share.value - outcome.mean())
    share_coverage, total_coverage = np.mean(hits, axis=0)
    assert 0.92 <= share_coverage <= 0.98
    assert 0.90 <= total_coverage <= 0.98  # 25 errors in 500 counts are skewed, which t knows nothing of
    assert abs(np.mean(errors)) < 0.003


def test_counting_every_bin_gives_the_truth_itself() -> None:
    sample, outcome = draw_night(np.random.default_rng(0), 5000)
    total = estimate_total([sample])
    assert (total.value, total.low, total.high) == pytest.approx((outcome.sum(),) * 3)


def test_a_priority_list_taken_as_a_sample_would_mislead_and_is_not() -> None:
    random = np.random.default_rng(2)
    outcome = np.r_[np.ones(500), np.zeros(9500)]
    drawn = random.choice(np.arange(300, 10_000), 500, replace=False)
    rows = np.r_[np.arange(300), drawn]
    is_random = np.arange(800) >= 300
    flat = np.full(800, 0.05)
    night = NightSample(10_000, 500.0, outcome[rows], flat, is_random, ~is_random)
    assert estimate_share([night]).value == pytest.approx(0.05, abs=0.012)
    assert outcome[rows].mean() > 0.35


def test_without_random_recounts_nothing_is_claimed() -> None:
    night = NightSample(100, 5.0, np.ones(10), np.ones(10), np.zeros(10, dtype=bool), np.ones(10, dtype=bool))
    for estimate in (estimate_share([night]), estimate_total([night]), estimate_share([])):
        assert estimate.estimator == "none"
        assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_a_night_enters_the_window_with_nine_tenths_of_its_random_bins_resolved() -> None:
    assert choose_window([30, 30, 0, 10], [27, 26, 0, 10]).tolist() == [True, False, False, True]
    assert choose_window([10] * 40, [10] * 40).tolist() == [False] * 10 + [True] * 30
    with pytest.raises(ValueError, match="more random bins"):
        choose_window([10], [11])


def test_promises_are_compared_with_what_was_found() -> None:
    assert claimed_over_found([0.5, 0.7], [1, 0]) == pytest.approx(1.2)
    assert np.isnan(claimed_over_found([0.5], [0]))
    precision = estimate_precision([1, 1, 0, 1])
    assert (precision.value, precision.num_priority) == (0.75, 4)
    assert precision.low < 0.75 < precision.high
    assert estimate_precision([]).estimator == "none"
