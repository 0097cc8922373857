import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from model.estimators import (
    NightSample,
    claimed_over_found,
    estimate_precision,
    estimate_share,
    estimate_total,
    is_resolved,
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


def test_a_camera_that_leaves_nothing_to_measure_its_misses_by_does_not_pass_for_a_perfect_one() -> None:
    """4.9 % wrong and known for certain, 0.1 % wrong and told by nothing: most samples of 420 hold none of those."""
    random, held = np.random.default_rng(3), 0
    for _ in range(200):
        nights = []
        for _ in range(14):
            known = random.random(30) < 0.049
            wrong = known | (random.random(30) < 0.001 / 0.951)
            ones = np.ones(30, dtype=bool)
            nights.append(NightSample(10_000, 490.0, wrong.astype(float), known.astype(float), ones, ~ones))
        estimate = estimate_share(nights)
        held += estimate.low <= 0.05 <= estimate.high
    assert held >= 190


def test_a_few_large_and_worse_nights_among_small_and_good_ones_widen_the_intervals() -> None:
    """Counts of small nights, alike in number, tell little of the large ones, which hold nearly all errors."""
    num_held = np.zeros(3, int)
    for seed in range(150):
        random = np.random.default_rng(seed)
        shares, nets, grosses, differences = [], [], [], []
        for num_bins, error_rate in [(3000, 0.08)] * 5 + [(300, 0.0)] * 25:
            wrong = random.random(num_bins) < error_rate
            difference = np.where(wrong, random.choice([-1, 1, -2, 2], num_bins, p=[0.45, 0.3, 0.15, 0.1]), 0.0)
            rows, ones = random.permutation(num_bins)[:30], np.ones(30, bool)
            shares.append(NightSample(num_bins, 0.05 * num_bins, wrong[rows] * 1.0, np.full(30, 0.05), ones, ~ones))
            nets.append(NightSample(num_bins, 0.0, difference[rows], np.zeros(30), ones, ~ones))
            grosses.append(NightSample(num_bins, 0.0, np.abs(difference[rows]), np.zeros(30), ones, ~ones))
            differences.append(difference)
        truth = np.concatenate(differences)
        found = [
            (estimate_share(shares), np.mean(truth != 0)),
            (estimate_total(nets), truth.sum() / 30),
            (estimate_total(grosses), np.abs(truth).sum() / 30),
        ]
        num_held += [estimate.low <= value <= estimate.high for estimate, value in found]
    assert num_held[0] >= 0.85 * 150 and num_held[1:].min() >= 0.92 * 150, num_held


@pytest.mark.parametrize(
    ("sizes", "rates"),
    [([300] * 28 + [3000] * 2, [0.02] * 28 + [0.3] * 2), ([300] * 30, [0.05] * 30)],
    ids=["a few large and worse ones", "alike"],
)
def test_a_few_counts_hold_the_share_of_nights_that_differ_in_size_and_quality(
    sizes: list[int], rates: list[float]
) -> None:
    random, held, ones = np.random.default_rng(0), [], np.ones(10, bool)
    for _ in range(1000):
        nights, num_wrong = [], 0
        for num_bins, rate in zip(sizes, rates, strict=True):
            wrong = random.random(num_bins) < rate
            num_wrong += int(wrong.sum())
            nights.append(NightSample(num_bins, 0.0, wrong[:10] * 1.0, np.zeros(10), ones, ~ones))
        share = estimate_share(nights)
        held.append(share.low <= num_wrong / sum(sizes) <= share.high)
        assert share.estimator == "wilson"
    assert np.mean(held) >= 0.94


def test_a_list_that_was_counted_stands_for_itself_and_the_random_bins_for_the_rest() -> None:
    """70 listed of 110 bins, 6 of them wrong; of 30 random ones 4 in reach of the list, 2 wrong among the others."""
    outcome = np.r_[np.ones(6), np.zeros(64), np.zeros(4), np.ones(2), np.zeros(24)]
    is_random, in_reach = np.arange(100) >= 70, np.arange(100) < 74
    share = estimate_share([NightSample(110, 8.0, outcome, np.full(100, 0.08), is_random, in_reach)])
    assert share.value == pytest.approx((6 + 36 * 2 / 26) / 110)
    low, high = wilson_interval(2 / 26, 26)
    assert (share.low, share.high) == pytest.approx(((6 + 36 * low) / 110, (6 + 36 * high) / 110))


def test_a_skipped_bin_of_a_night_that_is_all_planned_takes_no_other_night_s_list_away() -> None:
    outcome = np.r_[np.ones(6), np.zeros(64), np.zeros(4), np.ones(2), np.zeros(24)]
    is_random, in_reach = np.arange(100) >= 70, np.arange(100) < 74
    night = NightSample(110, 8.0, outcome, np.full(100, 0.08), is_random, in_reach)
    whole = NightSample(100, 8.0, np.ones(99), np.full(99, 0.08), np.arange(99) >= 69, np.ones(99, bool), num_absent=1)
    alone, both = estimate_share([night]), estimate_share([night, whole])
    assert both.value == pytest.approx((110 * alone.value + 100) / 210)
    assert both.high == pytest.approx((110 * alone.high + 100) / 210)
    assert estimate_share([whole]).low == estimate_share([whole]).high == 1.0
    # with predictions too a skipped bin counts as its prediction, and what the others were more than theirs
    large = [
        NightSample(
            1000, 100.0, np.r_[np.ones(20), np.zeros(180)], np.full(200, 0.1), np.ones(200, bool), np.zeros(200, bool)
        )
    ] * 3
    partly = NightSample(
        1000,
        300.0,
        np.r_[np.ones(270), np.zeros(630)],
        np.full(900, 0.3),
        np.arange(900) < 30,
        np.ones(900, bool),
        num_absent=100,
    )
    pooled = estimate_share([*large, partly])
    assert pooled.estimator == "stratified_difference"
    assert pooled.value == pytest.approx((3 * 100 + 300) / 4000)


@pytest.mark.parametrize(("num_nights", "estimator"), [(12, "wilson"), (14, "stratified_difference")])
def test_listed_bins_that_nobody_counted_do_not_pass_for_others(num_nights: int, estimator: str) -> None:
    """The list holds most errors, and 7 of its 70 bins are skipped each night."""
    random, errors = np.random.default_rng(0), []
    for _ in range(200):
        nights, truth = [], []
        for _ in range(num_nights):
            wrong = random.random(300) < np.where(np.arange(300) < 70, 0.3, 0.06)
            rows = np.r_[random.permutation(70)[:63], 70 + random.permutation(230)[:30]]
            prediction = np.where(rows < 70, 0.5, 0.06)  # the list claims too much
            is_random = np.arange(93) >= 63
            outcome = wrong[rows].astype(float)
            nights.append(NightSample(300, 48.8, outcome, prediction, is_random, ~is_random, num_absent=7))
            truth.append(wrong.mean())
        share = estimate_share(nights)
        errors.append(share.value - np.mean(truth))
        assert share.estimator == estimator
    assert abs(np.mean(errors)) < 0.001


def test_thirty_small_nights_count_as_one_large_sample() -> None:
    random = np.random.default_rng(0)
    nights = [draw_night(random, 30)[0] for _ in range(30)]
    estimate = estimate_share(nights)
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


def test_a_stock_that_the_plan_holds_whole_is_known_exactly() -> None:
    """A pilot zone: every bin is on the list, or random with a score above or below all of it."""
    outcome = np.r_[np.ones(6), np.zeros(94)]
    is_random = np.arange(100) >= 70
    for in_reach in (np.arange(100) < 90, np.ones(100, dtype=bool)):
        night = NightSample(100, 7.5, outcome, np.full(100, 0.075), is_random, in_reach)
        for nights in ([night], [night] * 20):
            share, total = estimate_share(nights), estimate_total(nights)
            assert (share.value, share.low, share.high) == pytest.approx((0.06,) * 3)
            assert (total.value, total.low, total.high) == pytest.approx((6,) * 3)
    # a night of which bins out of reach have nobody to stand for them is not known, nor are both together
    beyond = NightSample(1000, 75.0, outcome, np.full(100, 0.075), is_random, np.ones(100, dtype=bool))
    share = estimate_share([night, beyond])
    assert share.estimator == "wilson" and share.value < share.high
    outcome = np.r_[np.ones(10), np.zeros(490)]
    large = NightSample(500, 37.5, outcome, np.full(500, 0.075), np.ones(500, dtype=bool), np.arange(500) >= 400)
    share = estimate_share([large, beyond])
    assert share.estimator == "stratified_difference" and share.low < share.value == pytest.approx(0.02)
    assert estimate_total([large, beyond]).value == pytest.approx(10), "of one night"


def test_a_share_of_all_but_a_rounding_has_the_interval_of_all() -> None:
    ones = np.ones(420, dtype=bool)
    prediction = np.full(420, np.float32(0.05), np.float64)
    all_wrong = NightSample(1000, float(np.float32(50.0)), np.ones(420), prediction, ones, ~ones)
    share = estimate_share([all_wrong])
    assert (share.low, share.high) == pytest.approx(wilson_interval(1.0, 420), abs=1e-6)
    assert share.estimator == "stratified_difference"


def test_the_first_large_night_after_a_pilot_is_not_made_to_look_worse_than_its_counts() -> None:
    """630 random counts, of which 600 stand for a sixth of the bins and tell the predictions' error of the others little."""
    random, widths, held, ones = np.random.default_rng(0), [], 0, np.ones(30, dtype=bool)
    sizes = [500] * 20 + [50_000]
    for _ in range(200):
        nights = []
        for size in sizes:
            known = random.random(30) < 0.025
            wrong = known | (random.random(30) < 0.025)
            nights.append(NightSample(size, 0.025 * size, wrong.astype(float), known.astype(float), ones, ~ones))
        share = estimate_share(nights)
        sample = np.concatenate([night.outcome for night in nights])
        weight = np.repeat(sizes, 30)
        plain = wilson_interval(float(np.average(sample, weights=weight)), weight.sum() ** 2 / np.square(weight).sum())
        widths.append((share.high - share.low) / (plain[1] - plain[0]))
        held += share.low <= 0.025 + 0.975 * 0.025 <= share.high
    assert np.quantile(widths, 0.9) < 1.6
    assert held >= 185


@pytest.mark.parametrize("gross", [False, True])
@pytest.mark.parametrize(("num_random", "error_rate"), [(10, 0.05), (30, 0.02), (100, 0.05)])
def test_a_few_errors_make_a_wide_interval_of_pieces(num_random: int, error_rate: float, gross: bool) -> None:
    """Taken as they are, 30 counts without an error would give 0 (0 to 0)."""
    random, held = np.random.default_rng(3), []
    for _ in range(200):
        size = random.choice([-1, 1, -2, 2, -4, 4], 10_000, p=[0.4, 0.25, 0.12, 0.08, 0.08, 0.07])
        difference = np.where(random.random(10_000) < error_rate, np.abs(size) if gross else size, 0).astype(float)
        rows, ones = random.choice(10_000, num_random, replace=False), np.ones(num_random, dtype=bool)
        total = estimate_total([NightSample(10_000, 0.0, difference[rows], np.zeros(num_random), ones, ~ones)])
        held.append(total.low <= difference.sum() <= total.high)
    assert np.mean(held) >= 0.93


def test_predictions_help_only_where_their_error_is_known() -> None:
    """Few wrong records outside the list, and the pooled residuals know nothing of the rest."""
    random, held = np.random.default_rng(4), []
    for _ in range(300):
        chance = random.beta(0.05, 10, 5000)
        outcome = (random.random(5000) < chance).astype(float)
        rows, ones = random.choice(5000, 400, replace=False), np.ones(400, dtype=bool)
        share = estimate_share([NightSample(5000, chance.sum(), outcome[rows], chance[rows], ones, ~ones)])
        assert share.estimator == ("wilson" if outcome[rows].sum() < 5 else "stratified_difference")
        held.append(share.low <= outcome.mean() <= share.high)
    assert np.mean(held) >= 0.93


def test_predictions_that_are_far_off_in_a_few_bins_do_not_make_a_total_of_pieces() -> None:
    """Bins of bulk stock whose count the camera can't tell: 2 of 420 have a prediction of 90 pieces, and are right."""
    random = np.random.default_rng(0)
    nights = []
    for night in range(14):
        outcome, prediction = np.zeros(30), random.exponential(0.3, 30)
        if night < 5:
            outcome[0] = 1.0
        if night in (6, 7):
            prediction[1] = 90.0
        nothing = np.zeros(30, dtype=bool)
        nights.append(NightSample(10_000, 3000.0, outcome, prediction, ~nothing, nothing))
    estimate = estimate_total(nights)
    assert estimate.estimator == "expansion"
    assert estimate.value == pytest.approx(10_000 * 5 / 420)
    assert estimate.low < estimate.value < estimate.high < 1000


def test_predictions_that_tell_nearly_as_much_as_none_are_not_dropped_by_chance() -> None:
    outcome, ones = (np.arange(420) < 21) * 1.0, np.ones(420, dtype=bool)
    prediction = outcome + np.where(np.arange(420) % 2, 0.25, -0.25)
    nights = [NightSample(10_000, 500.0, outcome, prediction, ones, ~ones)]
    assert estimate_total(nights).estimator == "stratified_difference"
    assert outcome.var() < (outcome - prediction).var() < 2 * outcome.var()


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
    one = NightSample(100, 5.0, np.zeros(1), np.zeros(1), np.ones(1, dtype=bool), np.zeros(1, dtype=bool))
    for estimate in (estimate_share([night]), estimate_total([night]), estimate_share([]), estimate_total([one])):
        assert estimate.estimator == "none"
        assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_a_night_enters_the_window_with_nine_tenths_of_its_random_bins_resolved() -> None:
    assert [is_resolved(*night) for night in ((30, 27), (30, 26), (0, 0), (10, 10))] == [True, False, False, True]
    with pytest.raises(ValueError, match="at most the 10 planned"):
        is_resolved(10, 11)


def test_promises_are_compared_with_what_was_found() -> None:
    assert claimed_over_found([0.5, 0.7], [1, 0]) == pytest.approx(1.2)
    assert np.isnan(claimed_over_found([0.5], [0]))
    precision = estimate_precision([1, 1, 0, 1])
    assert precision.value == 0.75
    assert precision.low < 0.75 < precision.high
    assert estimate_precision([]).estimator == "none"


def test_a_camera_that_was_right_of_every_counted_bin_is_taken_to_have_missed_two_others() -> None:
    wrong, ones = np.arange(420) < 21, np.ones(420, dtype=bool)
    estimate = estimate_share([NightSample(10_000, 500.0, wrong * 1.0, wrong * 1.0, ones, ~ones)])
    squared_error = 2 * (1 - 420 / 10_000) / 420 / 419
    expected = wilson_interval(0.05, 0.05 * 0.95 / squared_error)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((expected[0], 0.05, expected[1]))


@pytest.mark.parametrize("largest", [1, 20])
def test_a_total_s_interval_is_that_of_a_plain_sample_with_two_more_errors_of_the_usual_or_the_largest_size(
    largest: int,
) -> None:
    outcome, ones = np.zeros(30), np.ones(30, dtype=bool)
    outcome[:3] = -1, 1, largest
    estimate = estimate_total([NightSample(300, 0.0, outcome, np.zeros(30), ones, ~ones)])
    more = 2 * max(2, largest) ** 2 / 29
    error = 300 * np.sqrt((1 - 30 / 300) / 30 * (outcome.var(ddof=1) + more))
    assert estimate.high - estimate.value == pytest.approx(stats.t.ppf(0.975, 29) * error)
