"""How good a counter is, on three scopes, each figure with a 95 % interval and beside the majority baseline.

numpy only. Probabilities are (n, K + 1); labels are classes 0..K of the record, the last meaning "K or more".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

SCOPES: dict[str, tuple[int, int | None]] = {"1..5": (1, 5), "0..5": (0, 5), "all": (0, None)}
"""Scope to (lowest, highest) label; None is the top class. Predictions are restricted to the scope's classes."""
NUM_RESAMPLES = 1000
NUM_CONFIDENCE_BINS = 15


def scope_rows(labels: np.ndarray, scope: str, top_class: int) -> tuple[np.ndarray, range]:
    """Which bins (mask, (n,)) and which classes belong to a scope. Below K = 6 a scope ends at the class below K,
    as the top class is no single count."""
    low, high = SCOPES[scope]
    last = top_class if high is None else min(high, top_class - 1)
    return (labels >= low) & (labels <= last), range(low, last + 1)


def restrict(probabilities: np.ndarray, classes: range) -> np.ndarray:
    """Probabilities given that the count is one of `classes`: (n, len(classes))."""
    kept = np.maximum(probabilities[:, classes.start : classes.stop], 1e-12)
    return kept / kept.sum(axis=1, keepdims=True)


def count_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """exact, within_one (shares), mae, rmse, bias (predicted minus label, in pieces) of n >= 1 bins."""
    error = predicted.astype(np.float64) - labels
    return {
        "exact": float((error == 0).mean()),
        "within_one": float((np.abs(error) <= 1).mean()),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "bias": float(error.mean()),
    }


def evaluate_scope(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    scope: str,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any] | None:
    """Metrics of one scope: {name: {"value", "low", "high"}} for exact, within_one, mae, rmse, bias and nll,
    `num_bins`, and `majority` (the same of always saying the scope's commonest label). None where it has no bins.

    All are of the argmax, but `mae_median`: of the median of the probabilities, the count that minimises it.
    Intervals: percentile bootstrap over groups (neighbouring bins hold the same products).
    """
    rows, classes = scope_rows(labels, scope, probabilities.shape[1] - 1)
    if not rows.any():
        return None
    restricted = restrict(probabilities[rows], classes)
    kept, kept_groups = labels[rows], groups[rows]
    counts = predict(restricted, classes)
    picked = restricted[np.arange(len(kept)), kept - classes.start]
    majority = np.bincount(kept).argmax()
    figures: dict[str, Any] = {"num_bins": int(rows.sum()), "classes": [classes.start, classes.stop - 1]}
    names = ("exact", "within_one", "mae", "rmse", "bias", "nll", "mae_median")

    def compute(chosen: np.ndarray) -> list[float]:
        at_mode = count_metrics(counts["mode"][chosen], kept[chosen])
        at_median = count_metrics(counts["median"][chosen], kept[chosen])
        nll = float(-np.log(picked[chosen]).mean())
        return [
            at_mode["exact"],
            at_mode["within_one"],
            at_mode["mae"],
            at_mode["rmse"],
            at_mode["bias"],
            nll,
            at_median["mae"],
        ]

    values = compute(np.arange(len(kept)))
    intervals = bootstrap_by_group(kept_groups, compute, seed=seed, num_resamples=num_resamples)
    for name, value, (low, high) in zip(names, values, intervals, strict=True):
        figures[name] = {"value": value, "low": low, "high": high}
    figures["majority"] = {"says": int(majority), **count_metrics(np.full(len(kept), majority), kept)}
    return figures


def predict(probabilities: np.ndarray, classes: range) -> dict[str, np.ndarray]:
    """`mode` (argmax) and `median` of each row, as counts: (n,) each."""
    cumulative = probabilities.cumsum(axis=1)
    return {
        "mode": probabilities.argmax(axis=1) + classes.start,
        "median": np.minimum((cumulative < 0.5).sum(axis=1), len(classes) - 1) + classes.start,
    }


def bootstrap_by_group(
    groups: np.ndarray, compute: Callable[[np.ndarray], list[float]], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> list[tuple[float, float]]:
    """95 % percentile intervals of `compute(row numbers)`, resampling whole groups; (nan, nan) for one group."""
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    members = np.split(order, starts[1:])
    if len(members) < 2:
        return [(float("nan"), float("nan"))] * len(compute(order))
    generator = np.random.default_rng(seed)
    draws = [
        compute(np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))]))
        for _ in range(num_resamples)
    ]
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def evaluate_counts(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """All scopes that have bins, and the calibration error: what goes into `BundleInfo.metrics` and metrics.json."""
    figures: dict[str, Any] = {
        scope: found
        for scope in SCOPES
        if (found := evaluate_scope(probabilities, labels, groups, scope, seed=seed)) is not None
    }
    figures["calibration_error"] = calibration_error(probabilities, labels, seed=seed)
    return figures


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Expected calibration error of the argmax over 15 equal-width bins (Naeini et al. 2015): `raw`; `noise_floor`,
    its mean were the probabilities exactly right (labels drawn from them, 200 times); `excess`, raw minus floor,
    at least 0."""
    raw = _binned_error(probabilities, labels)
    generator = np.random.default_rng(seed)
    cumulative = probabilities.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    floor = np.mean(
        [
            _binned_error(probabilities, (cumulative < generator.random((len(labels), 1))).sum(axis=1))
            for _ in range(200)
        ]
    )
    return {"raw": raw, "noise_floor": float(floor), "excess": max(0.0, raw - float(floor))}


def _binned_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    position = np.minimum((confidence * NUM_CONFIDENCE_BINS).astype(int), NUM_CONFIDENCE_BINS - 1)
    gap = np.bincount(position, weights=right - confidence, minlength=NUM_CONFIDENCE_BINS)
    return float(np.abs(gap).sum() / len(labels))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """The reliability diagram's points: per non-empty bin of confidence `confidence`, `accuracy`, `num_bins`."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    position = np.minimum((confidence * NUM_CONFIDENCE_BINS).astype(int), NUM_CONFIDENCE_BINS - 1)
    return [
        {
            "confidence": float(confidence[position == k].mean()),
            "accuracy": float(right[position == k].mean()),
            "num_bins": int((position == k).sum()),
        }
        for k in np.unique(position)
    ]


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(record, predicted) counts of bins, int64 (num_classes, num_classes)."""
    table = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table
