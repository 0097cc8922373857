"""Certificates: bins whose record is declared wrong with a promised false share.

Conformal selection (Jin & Candes 2023, arXiv 2210.01408). n bins were drawn at random and counted, or are taken for right; q is p_record_wrong:

    p_j = (1 + #{random bins whose record was right and q_i >= q_j}) / (n + 1)

then Benjamini-Hochberg at alpha. The expected false share is at most alpha for any score q, however badly
calibrated, if tonight's bins and the random ones are exchangeable. It is an average over nights. p takes only
n + 1 values, so Benjamini-Hochberg runs on their histogram: pass 1 adds up `p_value_histogram` over shards,
`certificate_thresholds` reads the sum, pass 2 asks `certified_at` per shard.

Rules: fewer than MIN_RANDOM random bins, no certificates (where few of their counts are missing, their records stand in for
them, which only makes p larger); fewer than m / (alpha (n + 1)) of m bins are never certified, because no p-value is that
small; on a drift alarm all certificates are suspended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.record_errors import Floats

MIN_RANDOM = 200
"""Random bins without which nothing is certified. The promise is kept by few of them too, but in a way that is of no use:
nothing is certified on most nights, and on the others a mass of bins, most of them right. Of those certified at 0.3 / 0.5
on the nights that certify any, so many were right in simulated nights of 10,000 bins, 5 % of them wrong: .79 / .78 with 30
random bins, .56 / .59 with 100, .43 / .53 with 200, .41 / .51 with 300, .38 / .50 with 400, .39 / .53 with 900."""


@dataclass(frozen=True)
class ReferenceScores:
    """Ascending scores of the randomly drawn bins whose record was right, and how many there are in all; those that nobody
    counted are among both.

    Scores are compared in single precision, as results hold them: both passes see the same ties.
    """

    right_scores: tuple[float, ...]
    num_counted: int


def build_reference(
    scores: ArrayLike, expected_qty: ArrayLike, counted_qty: ArrayLike, top_class: int
) -> ReferenceScores:
    """Reference from bins drawn *at random*: arrays (n,), scores by the same assessor as tonight's.

    Right means the classes agree (K or more is one class). Raises ValueError where a count or score is missing:
    leaving out bins that are not counted yet would leave out some kinds of them; say that they are right.
    """
    score = np.asarray(scores, dtype=np.float32)
    counted = np.asarray(counted_qty, dtype=np.float64)
    expected = np.asarray(expected_qty)
    if not score.shape == counted.shape == expected.shape or score.ndim != 1:
        raise ValueError("scores, expected_qty and counted_qty must have one length")
    if not (np.all(np.isfinite(score)) and np.all(np.isfinite(counted)) and np.all(counted >= 0)):
        raise ValueError("certificates need a score and a counted_qty of 0 or more for every random bin")
    right = np.minimum(counted, top_class) == np.minimum(expected, top_class)
    return ReferenceScores(tuple(np.sort(score[right]).tolist()), len(score))


def conformal_p_values(scores: ArrayLike, reference: ReferenceScores) -> Floats:
    """p-values (m,) of tonight's scores (m,); NaN stays NaN (not assessed). Ties count against us."""
    score = np.asarray(scores, dtype=np.float32)
    at_least = _count_at_least(score, reference)
    return np.where(np.isnan(score), np.nan, (1.0 + at_least) / (reference.num_counted + 1))


def p_value_histogram(scores: ArrayLike, reference: ReferenceScores) -> NDArray[np.int64]:
    """How many of the scores (m,) have p = (1 + k) / (n + 1), for k = 0..n; NaN left out. Shards add up."""
    score = np.asarray(scores, dtype=np.float32)
    at_least = _count_at_least(score[~np.isnan(score)], reference)
    return np.bincount(at_least, minlength=reference.num_counted + 1).astype(np.int64)


def bh_threshold(histogram: ArrayLike, alpha: float) -> float:
    """Largest p-value certified by Benjamini-Hochberg (1995) at `alpha`; 0.0 where none is.

    `histogram` (n + 1,) as `p_value_histogram`: equal to sorting all p-values, at constant size. Raises
    ValueError for an alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha lies between 0 and 1, found {alpha}")
    counts = np.asarray(histogram, dtype=np.int64)
    p_values = np.arange(1, len(counts) + 1) / len(counts)
    passing = np.flatnonzero((p_values * counts.sum() <= alpha * np.cumsum(counts)) & (counts > 0))
    return float(p_values[passing[-1]]) if passing.size else 0.0


def certificate_thresholds(histogram: ArrayLike, alphas: Sequence[float], drift_alarm: bool) -> dict[float, float]:
    """p-value threshold of each configured alpha, all 0.0 (nothing certified) while the drift alarm is on and below MIN_RANDOM
    random bins, of which the histogram has one entry more."""
    none = drift_alarm or len(np.asarray(histogram)) <= MIN_RANDOM
    return {alpha: 0.0 if none else bh_threshold(histogram, alpha) for alpha in sorted(alphas)}


def certified_at(p_values: ArrayLike, thresholds: dict[float, float]) -> Floats:
    """Smallest alpha (m,) at which each bin is certified, NaN where at none. p-values in double precision."""
    p_value = np.asarray(p_values, dtype=np.float64)
    level = np.full(p_value.shape, np.nan)
    for alpha in sorted(thresholds, reverse=True):
        level[p_value <= thresholds[alpha]] = alpha
    return level


def _count_at_least(score: NDArray[np.float32], reference: ReferenceScores) -> NDArray[np.intp]:
    right_scores = np.asarray(reference.right_scores, dtype=np.float32)
    return len(right_scores) - np.searchsorted(right_scores, score, side="left")
