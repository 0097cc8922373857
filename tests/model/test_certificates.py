import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from model.certificates import (
    ReferenceScores,
    bh_threshold,
    build_reference,
    certificate_thresholds,
    certified_at,
    conformal_p_values,
    p_value_histogram,
)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]))
def test_the_histogram_certifies_exactly_the_bins_that_scipy_does(seed: int, alpha: float) -> None:
    random = np.random.default_rng(seed)
    digits = int(random.integers(1, 4))  # few digits make ties
    right = np.sort(np.round(random.beta(1, 6, random.integers(0, 60)), digits))
    reference = ReferenceScores(right, len(right) + int(random.integers(0, 10)))
    scores = np.round(np.concatenate([random.beta(1, 6, 100), random.beta(6, 1, 20)]), digits)
    p_values = conformal_p_values(scores, reference)
    threshold = bh_threshold(p_value_histogram(scores, reference), alpha)
    expected = false_discovery_control(p_values, method="bh") <= alpha + 1e-12
    assert (p_values <= threshold).tolist() == expected.tolist()


def test_p_values_count_the_right_bins_that_look_at_least_as_wrong() -> None:
    reference = ReferenceScores(np.array([0.1, 0.4, 0.4, 0.8]), 9)
    p_values = conformal_p_values([0.9, 0.8, 0.4, 0.05, np.nan], reference)
    assert np.allclose(p_values[:4], [0.1, 0.2, 0.4, 0.5])
    assert np.isnan(p_values[4])
    assert p_value_histogram([0.9, 0.8, 0.4, 0.05, np.nan], reference).tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0, 0]


def test_histograms_of_shards_add_up() -> None:
    random = np.random.default_rng(0)
    scores, reference = random.random(1000), ReferenceScores(np.sort(random.random(50)), 60)
    whole = p_value_histogram(scores, reference)
    parts = sum(p_value_histogram(part, reference) for part in np.array_split(scores, 7))
    assert whole.tolist() == parts.tolist()
    assert whole.sum() == 1000


def test_both_passes_agree_although_scores_are_stored_in_single_precision() -> None:
    scores = np.random.default_rng(0).random(1000)
    reference = build_reference(scores[:100], np.zeros(100), np.zeros(100), 6)
    stored = scores.astype(np.float32)
    assert p_value_histogram(scores, reference).tolist() == p_value_histogram(stored, reference).tolist()
    assert conformal_p_values(scores, reference).tolist() == conformal_p_values(stored, reference).tolist()


def test_nothing_is_certified_below_the_resolution_limit() -> None:
    reference = ReferenceScores(np.full(99, 0.5), 99)  # smallest p-value 0.01: 1000 / (0.2 * 100) at least
    for outstanding, certified in ((49, 0), (50, 50)):
        scores = np.where(np.arange(1000) < outstanding, 0.9, 0.1)
        threshold = bh_threshold(p_value_histogram(scores, reference), 0.2)
        assert (conformal_p_values(scores, reference) <= threshold).sum() == certified


def test_a_bin_is_certified_at_the_smallest_alpha_that_holds() -> None:
    levels = certified_at([0.001, 0.01, 0.2, np.nan], {0.1: 0.001, 0.3: 0.01})
    assert levels[:2].tolist() == [0.1, 0.3]
    assert np.isnan(levels[2:]).all()


def test_drift_suspends_every_certificate() -> None:
    counts = np.array([100, *[0] * 198, 900, 0])
    least = 1 / 201
    assert certificate_thresholds(counts, (0.3, 0.1), drift_alarm=False) == {0.1: least, 0.3: least}
    assert certificate_thresholds(counts, (0.3, 0.1), drift_alarm=True) == {0.1: 0.0, 0.3: 0.0}
    assert np.isnan(certified_at([0.01], {0.1: 0.0})).all()


def test_nothing_is_certified_by_few_random_bins() -> None:
    for num_random, threshold in ((199, 0.0), (200, 1 / 201)):
        counts = np.array([100, *[0] * (num_random - 1), 900])
        assert certificate_thresholds(counts, (0.3,), drift_alarm=False) == {0.3: threshold}


def test_without_counted_bins_nothing_is_certified() -> None:
    reference = build_reference([], [], [], 6)
    assert bh_threshold(p_value_histogram(np.ones(50), reference), 0.5) == 0.0
    assert bh_threshold(np.zeros(10, dtype=int), 0.5) == 0.0


@pytest.mark.parametrize("missing", [np.nan, -1.0])
def test_a_random_bin_without_its_count_is_refused(missing: float) -> None:
    with pytest.raises(ValueError, match="counted_qty of 0 or more for every random bin"):
        build_reference([0.1, 0.2], [3, 3], [3.0, missing], 6)


def test_records_and_counts_agree_by_class() -> None:
    reference = build_reference([0.1, 0.2, 0.3, 0.4], [9, 3, 6, 5], [12, 3, 5, 6], 6)
    assert reference.right_scores == pytest.approx([0.1, 0.2])
    assert reference.num_counted == 4


@pytest.mark.parametrize("alpha", [0, 1, -0.1])
def test_an_alpha_outside_zero_and_one_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        bh_threshold([1, 2], alpha)
