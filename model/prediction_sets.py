"""Prediction sets for the count: the quantities the camera alone cannot rule out.

Split conformal with the LAC score s = 1 - p(true class | photo) (Sadinle, Lei & Wasserman 2019): the set
{k : 1 - p(k | photo) <= t} holds the true class with probability >= coverage when tonight's bins and the
calibration bins are exchangeable. Calibrated on recorded labels it covers the *record*; with few wrong labels
that errs on the wide side. It is for the planner's eyes and the drift meter, never a flag.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SET_COVERAGE = 0.9


@dataclass(frozen=True)
class PredictionSets:
    """Smallest and largest member, number of members, and whether the record's class reaches the threshold, all (n,).

    A set never is empty: where no class reaches the threshold the most probable one stands alone. That one is for
    the planner's eyes: `has_record` goes by the threshold alone, as the calibration that drift is measured against.
    """

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    size: NDArray[np.int32]
    has_record: NDArray[np.bool_]


def lac_quantile(scores: ArrayLike) -> float:
    """Threshold t: the ceil((n + 1) SET_COVERAGE)-th smallest of the scores 1 - p(label) of n held-out bins; 1 where they
    are too few."""
    score = np.sort(scores)
    rank = int(np.ceil((len(score) + 1) * SET_COVERAGE))
    return float(score[rank - 1]) if rank <= len(score) else 1.0


def build_prediction_sets(probabilities: ArrayLike, expected_qty: ArrayLike, threshold: float) -> PredictionSets:
    """Sets of `probabilities` (n, K + 1) at `threshold`; `expected_qty` (n,) unclipped, K or more is class K."""
    probability = np.asarray(probabilities)
    classes = probability.shape[1]
    # compared as 1 - p <= t in double precision, exactly as the threshold was fitted
    member = 1 - probability.astype(np.float64) <= threshold
    rows = np.arange(len(probability))
    # read before the most probable class is let in: a camera that is right 95 times in 100 would hide half of its share
    has_record = member[rows, np.minimum(np.asarray(expected_qty), classes - 1)]
    member[rows, probability.argmax(axis=1)] = True
    low = member.argmax(axis=1)
    high = classes - 1 - member[:, ::-1].argmax(axis=1)
    return PredictionSets(low.astype(np.int32), high.astype(np.int32), member.sum(axis=1).astype(np.int32), has_record)
