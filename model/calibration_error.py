"""Expected calibration error, and how much of it is only binning."""

import numpy as np
from numpy.typing import ArrayLike

NUM_BINS = 15


def expected_calibration_error(probability: ArrayLike, outcome: ArrayLike, bins: int = NUM_BINS) -> float:
    """Mean over equal-width intervals of abs(mean probability - share of outcomes), weighted by size (Guo et al. 2017).

    `probability` (n,) in [0, 1] that `outcome` (n,) is 1; NaN for nothing.
    """
    claimed = np.asarray(probability, dtype=np.float64)
    happened = np.asarray(outcome, dtype=np.float64)
    if claimed.size == 0:
        return float("nan")
    place = np.minimum((claimed * bins).astype(np.intp), bins - 1)
    gap = np.bincount(place, weights=claimed - happened, minlength=bins)
    return float(np.abs(gap).sum() / claimed.size)


def calibration_error_floor(probability: ArrayLike, bins: int = NUM_BINS, draws: int = 200, seed: int = 0) -> float:
    """Mean expected calibration error of outcomes drawn from `probability` (n,) itself: what perfection would show.

    On 1,500 photos that is .025-.038 by binning alone; subtract it, and show the raw value beside it.
    """
    claimed = np.asarray(probability, dtype=np.float64)
    random = np.random.default_rng(seed)
    errors = [expected_calibration_error(claimed, random.random(claimed.size) < claimed, bins) for _ in range(draws)]
    return float(np.mean(errors))
