"""All figures of an evaluation, from the predictions of its bins: what metrics.json holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import chisquare

from jobs.evaluating.doubt import measure_doubt
from jobs.evaluating.predictions import Predictions
from model.calibration import at_mix, shift_of_mix
from model.metrics import calibration_error, confusion, evaluate_counts, reliability, with_intervals
from model.prediction_sets import build_prediction_sets
from schemas.bundle import BundleInfo


def measure(predictions: Predictions, info: BundleInfo, *, seed: int) -> dict[str, Any]:
    """Plain JSON values; null where a figure does not exist (an interval of a single group).

    `metrics` (per scope: exact, within_one, mae, rmse, bias, nll with intervals, and `majority`), `calibration`, `own_mix`,
    `per_class`, `confusion` (rows the record, columns the camera), `prediction_sets`, `doubt`.
    """
    probabilities = predictions.probabilities
    labels = np.minimum(predictions.expected_qty, info.top_class).astype(np.int64)
    metrics = evaluate_counts(probabilities, labels, predictions.groups, seed=seed)
    calibration = metrics.pop("calibration_error")
    table = confusion(probabilities.argmax(axis=1), labels, info.num_classes)
    sets = build_prediction_sets(probabilities, labels, info.prediction_set_threshold)
    # of the sets that planners see, in which the most probable count always is
    covered = sets.has_record | (probabilities.argmax(axis=1) == labels)
    return {
        "num_bins": len(predictions),
        "num_groups": len(np.unique(predictions.groups)),
        "num_ungrouped": int((predictions.groups == predictions.bin_ids).sum()),
        "metrics": metrics,
        "calibration": {**calibration, "reliability": reliability(probabilities, labels)},
        "own_mix": _at_own_mix(probabilities, labels, predictions.groups, info, seed),
        "per_class": [_class_row(info, k, predictions, labels, table, covered, seed) for k in range(info.num_classes)],
        "confusion": {"classes": info.classes, "table": table.tolist()},
        "prediction_sets": {
            **with_intervals(
                ("coverage", "mean_size"),
                np.column_stack([covered, sets.size]),
                predictions.groups,
                seed=seed,
            ),
            "sizes": np.bincount(sets.size, minlength=info.num_classes + 1)[1:].tolist(),
        },
        "doubt": measure_doubt(probabilities, predictions.expected_qty, predictions.groups, info, seed=seed),
    }


def _at_own_mix(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, info: BundleInfo, seed: int
) -> dict[str, Any]:
    """The probabilities have training's class mix, which an audit divides out where it doubts records. `difference`: the
    share of these bins that would have to be of another class for the two mixes to be one, and `p_value`, by which chance
    makes as large a one (Pearson's chi-squared test); `nll` and `calibration_error` (above its noise floor) with these
    bins' own mix instead."""
    here = np.bincount(labels, minlength=info.num_classes) / len(labels)
    training = np.asarray(info.label_histogram) + 1
    training = training / training.sum()
    shifted = at_mix(probabilities.astype(np.float64), shift_of_mix(labels, info.label_histogram))
    lost = -np.log(np.maximum(shifted[np.arange(len(labels)), labels], 1e-12))
    return {
        "difference": float(np.abs(here - training).sum() / 2),
        "p_value": float(chisquare(len(labels) * here, len(labels) * training).pvalue),
        **with_intervals(("nll",), lost[:, None], groups, seed=seed),
        "calibration_error": calibration_error(shifted, labels, seed=seed)["excess"],
    }


CLASS_FIGURES = ("exact", "within_one", "mae", "bias", "mean_p_record", "set_coverage")


def _class_row(
    info: BundleInfo,
    k: int,
    predictions: Predictions,
    labels: np.ndarray,
    table: np.ndarray,
    covered: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Of the bins recorded as class k: how many, and with intervals how they were counted (argmax over all classes) and
    set coverage. `precision`: share right of the bins counted as k."""
    rows = labels == k
    row: dict[str, Any] = {
        "class": info.classes[k],
        "num_bins": int(rows.sum()),
    }
    row["precision"] = float(table[k, k] / table[:, k].sum()) if table[:, k].any() else None
    if not rows.any():
        return row | {name: dict.fromkeys(("value", "low", "high")) for name in CLASS_FIGURES}
    probabilities = predictions.probabilities[rows]
    error = probabilities.argmax(axis=1) - k
    values = np.column_stack([error == 0, np.abs(error) <= 1, np.abs(error), error, probabilities[:, k], covered[rows]])
    return row | with_intervals(CLASS_FIGURES, values, predictions.groups[rows], seed=seed)
