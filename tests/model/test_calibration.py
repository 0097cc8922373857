"""Calibration finds what was distorted, and its 90 % sets cover 90 %."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from model.calibration import (
    apply_calibration,
    assign_folds,
    at_mix,
    calibrate,
    fit_calibration,
    independent_bins,
    lac_quantile,
    negative_log_likelihood,
    set_threshold,
    shift_of_mix,
)
from schemas.bundle import Method

MIX = np.ones(7)  # of the worlds below


def world(n: int, seed: int, distort: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that a known affine map of the true log probabilities distorts, labels drawn from the truth, groups."""
    generator = np.random.default_rng(seed)
    true_logits = log_softmax(generator.normal(0, 1.5, (n, 7)), axis=1)
    cumulative = np.exp(true_logits).cumsum(axis=1)
    labels = np.minimum((cumulative < generator.random((n, 1))).sum(axis=1), 6)
    if distort == "temperature":
        logits = true_logits * 2.5
    elif distort == "vector":
        logits = true_logits * 1.3 + np.array([1.5, 0, -1, 0.5, 0, -0.5, 1])
    else:
        logits = true_logits @ (np.eye(7) + np.diag(np.full(6, 0.7), 1))
    return logits, labels, np.array([f"g{i % 40}" for i in range(n)])


@pytest.mark.parametrize("distort", ["temperature", "vector", "matrix"])
def test_the_method_that_undoes_the_distortion_wins_on_held_out_bins(distort: str) -> None:
    fitted = calibrate(*world(3000, 1, distort), MIX)
    nll = fitted.calibration.held_out_nll
    assert nll[fitted.calibration.method] == min(nll.values())
    if distort != "temperature":
        assert fitted.calibration.method == distort
        assert nll["temperature"] - nll[distort] > 0.01
    logits, labels, _ = world(20_000, 2, distort)
    calibrated = negative_log_likelihood(apply_calibration(logits, fitted.calibration), labels)
    raw = negative_log_likelihood(softmax(logits, axis=1), labels)
    truth, labels_again, _ = world(20_000, 2, "temperature")
    assert np.array_equal(labels, labels_again)
    best = negative_log_likelihood(softmax(truth / 2.5, axis=1), labels)
    assert calibrated < best + 0.04 < raw


def test_few_bins_do_not_overfit_the_matrix() -> None:
    logits, labels, _ = world(150, 3, "temperature")
    fitted = fit_calibration(logits, labels, "matrix", 0.0)
    others, other_labels, _ = world(20_000, 4, "temperature")
    temperature = fit_calibration(logits, labels, "temperature", 0.0)
    excess = negative_log_likelihood(apply_calibration(others, fitted), other_labels) - negative_log_likelihood(
        apply_calibration(others, temperature), other_labels
    )
    assert excess < 0.05


def test_the_90_percent_set_covers_90_percent_of_new_bins() -> None:
    fitted = calibrate(*world(2000, 5, "vector"), MIX)
    logits, labels, _ = world(20_000, 6, "vector")
    probabilities = apply_calibration(logits, fitted.calibration)
    inside = probabilities[np.arange(len(labels)), labels] >= 1 - fitted.prediction_set_threshold
    assert inside.mean() == pytest.approx(0.9, abs=0.02)
    assert fitted.record_outside_set_share == pytest.approx(0.1, abs=0.03)


def test_too_few_bins_give_the_whole_set() -> None:
    assert lac_quantile(np.full(8, 0.5)) == 1.0
    assert lac_quantile(np.arange(9) / 10) == 0.8


def test_bins_of_one_group_share_a_fold_and_every_fold_is_used() -> None:
    groups = np.array([f"g{i // 7}" for i in range(210)])
    folds = assign_folds(groups)
    assert set(folds) == set(range(5))
    for group in set(groups):
        assert len(set(folds[groups == group])) == 1
    shuffled = np.random.default_rng(0).permutation(210)
    assert np.array_equal(assign_folds(groups[shuffled]), folds[shuffled])


def test_one_group_cannot_be_cross_fitted() -> None:
    with pytest.raises(ValueError, match="at least 2 groups"):
        calibrate(np.zeros((10, 7)), np.zeros(10, int), np.array(["a"] * 10), MIX)


def test_a_row_is_calibrated_the_same_in_any_company() -> None:
    logits, labels, _ = world(500, 7, "matrix")
    calibration = fit_calibration(logits, labels, "matrix", 0.0)
    together = apply_calibration(logits, calibration)
    alone = np.concatenate([apply_calibration(logits[i : i + 1], calibration) for i in range(500)])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("method", ["temperature", "vector", "matrix"])
def test_a_method_is_judged_on_bins_that_its_fits_have_not_seen(method: str) -> None:
    logits, labels, groups = world(150, 3, "temperature")
    fitted = fit_calibration(logits, labels, method, 0.0)  # type: ignore[arg-type]
    own = negative_log_likelihood(apply_calibration(logits, fitted), labels)
    assert calibrate(logits, labels, groups, np.bincount(labels, minlength=7)).calibration.held_out_nll[method] > own


@pytest.mark.parametrize("method", ["temperature", "vector", "matrix"])
def test_held_out_bins_that_lack_a_class_leave_training_s_mix_in_the_probabilities(method: Method) -> None:
    logits, labels, _ = world(6000, 8, "vector")
    kept = np.random.default_rng(9).random(6000) < np.where(labels == 0, 0.2, 1.0)
    shift = shift_of_mix(labels[kept], np.bincount(labels, minlength=7))
    found = apply_calibration(logits, fit_calibration(logits[kept], labels[kept], method, shift))
    assert found.mean(axis=0) == pytest.approx(np.bincount(labels) / 6000, rel=0.2)


def test_calibration_keeps_training_s_mix() -> None:
    logits, labels, groups = world(6000, 8, "vector")
    kept = np.random.default_rng(9).random(6000) < np.where(labels == 0, 0.2, 1.0)
    fitted = calibrate(logits[kept], labels[kept], groups[kept], np.bincount(labels, minlength=7))
    assert apply_calibration(logits, fitted.calibration)[:, 0].mean() == pytest.approx((labels == 0).mean(), rel=0.2)
    # of its own folds too, by which the sets are judged
    assert fitted.held_out_probabilities[:, 0].mean() > 1.5 * (labels[kept] == 0).mean()


def test_one_temperature_has_a_bias_for_each_class() -> None:
    logits, labels, _ = world(6000, 8, "temperature")
    shifted = logits + np.array([1.0, 0, 0, 0, 0, 0, 0])  # as soft targets do to a rare class beside a common one
    fitted = fit_calibration(shifted, labels, "temperature", 0.0)
    assert apply_calibration(shifted, fitted).mean(axis=0) == pytest.approx(np.bincount(labels) / 6000, rel=0.05)
    assert fitted.weight[0][0] == pytest.approx(1 / 2.5, rel=0.1)


def test_bins_of_a_group_that_are_alike_tell_as_much_as_fewer_that_are_not() -> None:
    generator = np.random.default_rng(4)
    groups = np.arange(2000) // 100
    assert independent_bins(generator.random(2000) < 0.1, groups) > 1000
    # two groups in ten are outside as a whole
    assert independent_bins(np.isin(groups % 10, [0, 1]), groups) == pytest.approx(20, abs=2)
    assert independent_bins(np.zeros(2000, bool), groups) == 2000


def test_biases_do_not_learn_what_is_common_among_the_held_out_bins() -> None:
    labels, logits = np.repeat([0, 1, 2, 3], [140, 20, 20, 20]), np.zeros((200, 4))
    shift = shift_of_mix(labels, [700] * 4)
    for method in ("temperature", "vector", "matrix"):
        fitted = fit_calibration(logits, labels, method, shift)  # type: ignore[arg-type]
        found = negative_log_likelihood(apply_calibration(logits, fitted), labels)
        assert found == pytest.approx(np.log(4), rel=0.005), method


def test_methods_are_judged_at_the_mix_of_the_held_out_bins() -> None:
    random = np.random.default_rng(0)
    labels, histogram = random.choice(3, 300, p=[0.7, 0.2, 0.1]), np.array([100, 200, 700])
    logits = random.normal(size=(300, 3)) + 2 * np.eye(3)[labels]
    fitted = calibrate(logits, labels, np.arange(300).astype(str), histogram)
    here = at_mix(softmax(logits, axis=1), shift_of_mix(labels, histogram))
    assert fitted.calibration.held_out_nll["none"] == pytest.approx(negative_log_likelihood(here, labels))


def test_a_fold_with_too_few_others_is_judged_by_the_threshold_of_all() -> None:
    right = np.linspace(0.9, 0.5, 25)
    folds = np.array([1] * 5 + [0] * 20)
    threshold, outside = set_threshold(np.stack([right, 1 - right], axis=1), np.zeros(25, int), folds)
    assert threshold < 0.5 and outside.tolist() == [False] * 24 + [True]


def test_a_bin_is_judged_by_the_threshold_of_the_other_folds() -> None:
    right = np.r_[np.linspace(0.9, 0.8, 20), np.linspace(0.4, 0.3, 20)]
    _, outside = set_threshold(np.stack([right, 1 - right], axis=1), np.zeros(40, int), np.repeat([0, 1], 20))
    assert outside.tolist() == [False] * 20 + [True] * 20


def test_a_calibration_says_how_many_independent_bins_it_rests_on() -> None:
    logits, labels, groups = world(2000, 5, "vector")
    odd = np.isin(groups, [f"g{number}" for number in range(4)])  # groups whose records are all wrong
    labels[odd] = logits[odd].argmin(axis=1)
    fitted = calibrate(logits, labels, groups, MIX)
    assert fitted.num_calibration == 2000 and 20 < fitted.num_independent < 200


def test_the_matrix_is_as_free_as_the_vector_to_scale_each_class() -> None:
    logits, labels, _ = world(400, 1, "temperature")
    scaled = logits * np.array([1.0, 1, 1, 2, 1, 1, 1])
    vector, matrix = (
        np.array(fit_calibration(scaled, labels, method, 0.0).weight).diagonal() for method in ("vector", "matrix")
    )
    assert matrix == pytest.approx(vector, rel=0.1)


def test_bins_of_groups_that_differ_are_worth_fewer_by_the_variance_between_those() -> None:
    outside, groups = np.zeros(12), np.repeat(["a", "b", "c"], 4)
    outside[[0, 1, 8]] = 1
    assert independent_bins(outside, groups) == 9
