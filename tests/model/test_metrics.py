"""Figures of a counter: scopes, intervals and calibration error."""

from __future__ import annotations

import numpy as np
import pytest

from model import metrics
from model.metrics import (
    bootstrap_by_group,
    calibration_error,
    confusion,
    count_metrics,
    evaluate_counts,
    evaluate_scope,
    format_interval,
    scope_name,
)


def onehot(counts: list[int], share: float = 0.9) -> np.ndarray:
    probabilities = np.full((len(counts), 7), (1 - share) / 6)
    probabilities[np.arange(len(counts)), counts] = share
    return probabilities


def test_count_metrics_by_hand() -> None:
    figures = count_metrics(np.array([1, 2, 5, 3]), np.array([1, 3, 3, 3]))
    assert figures["exact"] == 0.5
    assert figures["within_one"] == 0.75
    assert figures["mae"] == 0.75
    assert figures["rmse"] == pytest.approx(np.sqrt(5 / 4))
    assert figures["bias"] == pytest.approx(0.25)


def test_predictions_are_restricted_to_the_scope() -> None:
    """A bin of 5 that looks like 6 or more, and like 5 before 4, counts as 5 in scope 1..5."""
    probabilities = np.array([[0, 0, 0, 0, 0.1, 0.2, 0.7], [0.8, 0.15, 0.05, 0, 0, 0, 0]])
    labels, groups = np.array([5, 1]), np.array(["a", "b"])
    scope = evaluate_scope(probabilities, labels, groups, "1..5")
    assert scope is not None
    assert scope["exact"]["value"] == 1.0
    assert scope["mae_median"]["value"] == 0.0
    assert scope["nll"]["value"] == pytest.approx(-(np.log(0.2 / 0.3) + np.log(0.15 / 0.2)) / 2)
    everything = evaluate_scope(probabilities, labels, groups, "all")
    assert everything is not None
    assert everything["exact"]["value"] == 0.0


def test_the_median_count_has_a_mean_error_of_its_own() -> None:
    """The likeliest count is 1, and the median 2."""
    probabilities = np.array([[0, 0.4, 0.3, 0.3, 0, 0, 0]] * 2)
    scope = evaluate_scope(probabilities, np.array([2, 2]), np.array(["a", "b"]), "all")
    assert scope is not None
    assert (scope["mae"]["value"], scope["mae_median"]["value"]) == (1, 0)


def test_scopes_take_their_bins_only() -> None:
    labels = np.array([0, 1, 5, 6, 6])
    figures = evaluate_counts(onehot([0, 1, 5, 6, 0]), labels, np.array(list("abcde")))
    assert figures["1..5"]["num_bins"] == 2
    assert figures["0..5"]["num_bins"] == 3
    assert figures["all"]["num_bins"] == 5
    assert figures["all"]["exact"]["value"] == 0.8
    assert figures["all"]["bias"]["value"] == pytest.approx(-6 / 5), "says too few"
    assert figures["all"]["majority"]["says"] == 6
    assert figures["all"]["majority"]["exact"] == 0.4
    assert figures["all"]["majority"]["bias"] == pytest.approx((6 + 5 + 1) / 5), "says too many"
    # the shares of 0, 1, 5, 6 are .2, .2, .2, .4 and the median is 5
    assert figures["all"]["majority"]["nll"] == pytest.approx(-(3 * 0.2 * np.log(0.2) + 0.4 * np.log(0.4)))
    assert figures["all"]["majority"]["mae_median"] == pytest.approx((5 + 4 + 0 + 1 + 1) / 5)


def test_an_empty_scope_is_absent() -> None:
    assert evaluate_scope(onehot([6]), np.array([6]), np.array(["a"]), "1..5") is None


def test_a_scope_of_one_class_is_absent() -> None:
    figures = evaluate_counts(onehot([0, 1, 2, 1])[:, :3], np.array([0, 1, 2, 2]), np.array(list("abcd")))
    assert list(figures) == ["0..1", "all", "calibration_error"]


def test_scopes_are_named_by_the_classes_that_they_have() -> None:
    assert [scope_name(scope, 6) for scope in ("1..5", "0..5", "all")] == ["1..5", "0..5", "all"]
    assert [scope_name(scope, 9) for scope in ("1..5", "0..5", "all")] == ["1..5", "0..5", "all"]
    figures = evaluate_counts(onehot([0, 1, 2, 3, 4])[:, :5], np.array([0, 1, 2, 3, 4]), np.array(list("abcde")))
    assert list(figures) == ["1..3", "0..3", "all", "calibration_error"]
    assert figures["1..3"]["classes"] == [1, 3]
    assert figures["1..3"]["num_bins"] == 3


def test_bins_of_one_group_have_figures_without_intervals() -> None:
    scope = evaluate_scope(onehot([1, 2, 4]), np.array([1, 2, 3]), np.array(["a", "a", "a"]), "1..5")
    assert scope is not None
    for name in ("exact", "mae", "rmse"):
        assert scope[name]["value"] is not None
        assert scope[name]["low"] is scope[name]["high"] is None


def test_what_is_right_of_every_bin_has_no_interval_of_no_width() -> None:
    labels = np.array([1, 2, 3] * 4)
    scope = evaluate_scope(onehot(labels.tolist()), labels, np.repeat(["a", "b", "c", "d"], 3), "1..5")
    assert scope is not None
    assert scope["exact"] == {"value": 1.0, "low": None, "high": None}
    assert scope["mae"] == {"value": 0.0, "low": None, "high": None}


def test_intervals_widen_when_bins_of_a_group_agree() -> None:
    generator = np.random.default_rng(1)
    values = generator.random(400) < 0.4
    (low,), (high,) = bootstrap_by_group(np.array([f"g{i}" for i in range(400)]), values[:, None], seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 400), rel=0.15)
    values = np.repeat(generator.random(20) < 0.4, 20)
    (low_b,), (high_b,) = bootstrap_by_group(np.array([f"g{i // 20}" for i in range(400)]), values[:, None], seed=0)
    assert high_b - low_b > 3 * (high - low)


def test_intervals_from_a_few_groups_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 400)
    generator = np.random.default_rng(4)
    for num_groups in (3, 5):
        groups, held = np.repeat(np.arange(num_groups), 100), 0
        for seed in range(300):
            values = (generator.random(len(groups)) < 0.4)[:, None]
            (low,), (high,) = bootstrap_by_group(groups, values, seed=seed)
            held += low <= 0.4 <= high
        assert held >= 0.88 * 300  # the percentiles alone: 75 and 80 %


def test_groups_of_unequal_size_are_resampled_whole() -> None:
    groups = np.repeat(["a", "b", "c"], [2, 50, 948])
    values = (np.repeat([0.0, 1.0, 0.2], [2, 50, 948]) + np.tile([-9, 9], 500))[:, None]
    (low,), (high,) = bootstrap_by_group(groups, values, seed=0)
    # by hand: three draws of three groups; all of "a" has chance 1/27 > 2.5 %, all of "b" likewise
    mean, stretch = 0.2396, 4.302653 / 1.959964 * np.sqrt(3 / 2)
    assert (low, high) == pytest.approx((mean + stretch * (0 - mean), mean + stretch * (1 - mean)))


def test_the_calibration_error_of_a_perfect_camera_is_its_noise_floor() -> None:
    generator = np.random.default_rng(2)
    probabilities = generator.dirichlet(np.full(7, 0.6), 1500)
    labels = (probabilities.cumsum(axis=1) < generator.random((1500, 1))).sum(axis=1)
    figures = calibration_error(probabilities, labels)
    assert 0.015 < figures["raw"] < 0.05
    assert figures["excess"] < 0.012
    assert figures["noise_floor"] < figures["noise_high"] < 2 * figures["noise_floor"]
    assert figures["raw"] < figures["noise_high"]
    sharper = probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True)
    worse = calibration_error(sharper, labels)
    assert worse["excess"] > 0.1 and worse["raw"] > worse["noise_high"]


def test_confusion_counts_records_by_row() -> None:
    table = confusion(np.array([1, 1, 2]), np.array([1, 2, 2]), 3)
    assert table.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_a_figure_of_one_group_is_printed_without_interval() -> None:
    assert format_interval({"value": 0.4, "low": None, "high": None}, ".1%") == "40.0%"
    assert format_interval({"value": 0.4, "low": 0.3, "high": 0.5}, ".1%") == "40.0% (30.0% to 50.0%)"
