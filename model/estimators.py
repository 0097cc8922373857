"""What may be said about all bins, from the few that were counted; always with an interval.

Stratified difference estimator (survey sampling's difference estimator; prediction-powered inference with
lambda = 1, Angelopoulos et al. 2023, arXiv 2301.09633). With A the bins in reach of a night's priority list (all
counted), B the rest, S the random sample in B, Y the counted outcome and f its prediction:

    total = sum_A Y + sum_B f + N_B mean_S(Y - f)

Unbiased for any f. Below 400 pooled random counts, or where they found fewer than 5 wrong records in B, no prediction
(f = 0) is shorter and safer, and shown instead; also where its interval is clearly the shorter one (of totals, its variance
less than half, and the sample's mean is taken for A too). A night's random bins in reach of the list belong to A; by
symmetry the others are a simple random sample of B. Where A is all there is, the total is known.

Nights are pooled over a window (the operation is taken as steady). A bin not yet counted, or with an unconfirmed
mismatch, is pending and never absent: matches arrive at once and mismatches wait, so leaving them out would drive
every error rate to 0. A night enters only with 90 % of its random bins resolved, and within it an unconfirmed
mismatch must be passed on as it was first counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from model.record_errors import Floats

CONFIDENCE = 0.95
MIN_DIFFERENCE_COUNTS = 400
MIN_WRONG = 5
"""Wrong records in the random sample, with fewer of which it says too little of the predictions' error."""
ERROR_PIECES = 2.0
"""Root mean square of the default error sizes, in pieces."""
MIN_RESOLVED_SHARE = 0.9
WINDOW_NIGHTS = 30
"""Of recounts as many days, whatever nights of them were audited; of what a camera shows as many audited nights."""


@dataclass(frozen=True)
class NightSample:
    """One night in one scope. `num_assessed` N and `prediction_total` (sum of f over all N) come from pass 1;
    the arrays (m,) are its recounts: outcome Y, prediction f, `is_random`, and `in_reach`
    (`recount_plan.find_reach`)."""

    num_assessed: int
    prediction_total: float
    outcome: Floats
    prediction: Floats
    is_random: NDArray[np.bool_]
    in_reach: NDArray[np.bool_]
    error_size: float = ERROR_PIECES
    """How large one more error could be, in the outcome's unit (root mean square); for totals, as a share's is 1."""
    num_absent: int = 0
    """Bins in reach that nobody counted; those counted in reach stand for them, as no other bin is as likely wrong."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `estimator` is stratified_difference, wilson, expansion or none (all NaN)."""

    value: float
    low: float
    high: float
    estimator: str


def wilson_interval(share: float, sample_size: float) -> tuple[float, float]:
    """Wilson's (1927) 95 % score interval of a share seen in `sample_size` draws, which need not be whole."""
    if sample_size <= 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    shrink = 1 + z * z / sample_size
    centre = (share + z * z / (2 * sample_size)) / shrink
    half = z / shrink * np.sqrt(share * (1 - share) / sample_size + z * z / (4 * sample_size**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def is_resolved(num_planned: int, num_resolved: int) -> bool:
    """Whether bins were planned and at least 90 % of them are resolved. Raises ValueError for more resolved than
    planned."""
    if num_resolved > num_planned:
        raise ValueError(f"expected at most the {num_planned} planned bins to be resolved, found {num_resolved}")
    return num_planned > 0 and num_resolved >= MIN_RESOLVED_SHARE * num_planned


def estimate_share(nights: Sequence[NightSample]) -> Estimate:
    """Share of bins with outcome 1 (a wrong record) over the pooled nights; prediction is p_record_wrong.

    Interval: Wilson on the effective sample n_eff = share (1 - share) / se^2, so a rare share never leaves [0, 1]. Without
    predictions it is of the share out of the lists' reach, and n_eff at most Kish's of the counts' weights (that alone held
    the truth 89 % of the time where 2 of 30 nights hold ten times as many bins and 15 times as many errors a bin, both
    97 %; simulated). With predictions se^2 is that of the residuals, and at least that of two wrong records that none told of. A
    sharp camera leaves no residuals in the sample to measure by, and where it misses 0.1 to 0.3 % of the bins the interval
    held the truth half of the time without the two (simulated; with them always).
    """
    nights = [replace(night, error_size=1.0) for night in nights]
    if _count_random(nights) == 0:
        return Estimate(np.nan, np.nan, np.nan, "none")
    plain = _pool_with_lists(nights)
    pool = _pool_as_fits(nights, plain)
    share, low, high = _share_of(pool)
    if pool.use_prediction and not pool.is_census:
        plain_share = _share_of(plain)
        # beside the first large night after many small ones the two weigh more than all that was counted
        if np.sqrt(2) * (plain_share[2] - plain_share[1]) < high - low:
            return Estimate(*plain_share, "wilson")
    name = "stratified_difference" if pool.use_prediction else "wilson"
    return Estimate(share, low, high, name)


def estimate_total(nights: Sequence[NightSample]) -> Estimate:
    """Total of an outcome (pieces or money, net or gross) in one night, averaged over the pooled nights.

    Outcome counted - expected with prediction expected_variance_qty for net, the absolute values for gross; both
    times unit_value for money. Interval: Student's t on the pooled residuals, as if two more errors had been found, one of
    each sign, of `error_size` or of the size of the largest found: 30 counts without an error would give 0 to 0 else, and
    with a few errors the interval held the truth half of the time (simulated; with the two at least 94 % of the time for
    10 counts and more, error rates of 0.5 to 10 % and errors of at most 4 pieces, pieces and money; at least 90 % where
    half of the errors empty bins of up to 20 pieces, from 6 nights of 30 counts on). Needs two random recounts.
    """
    if _count_random(nights) < 2:
        return Estimate(np.nan, np.nan, np.nan, "none")
    plain = _pool(_without_lists(nights), use_prediction=False)
    pool = _pool_as_fits(nights, plain)
    # predictions of pieces can be far off in the few bins that hold many, and then add more noise than they take away;
    # of two that are nearly alike, to take the one that looks the better would be a choice by chance
    is_noisy = 2 * plain.squared_error / plain.num_nights**2 < pool.squared_error / pool.num_nights**2
    if is_noisy and not pool.is_census:
        pool = plain
    value, error = pool.total / pool.num_nights, float(np.sqrt(pool.squared_error)) / pool.num_nights
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, max(pool.effective_size - 1, 1))) * error
    name = "stratified_difference" if pool.use_prediction else "expansion"
    return Estimate(value, value - half, value + half, name)


def estimate_precision(wrong: ArrayLike) -> Estimate:
    """Share of counted priority bins (m,) whose record was wrong, with Wilson's interval: promises kept."""
    outcome = np.asarray(wrong, dtype=np.float64)
    if outcome.size == 0:
        return Estimate(np.nan, np.nan, np.nan, "none")
    share = float(outcome.mean())
    return Estimate(share, *wilson_interval(share, outcome.size), "wilson")


def claimed_over_found(claimed: ArrayLike, found: ArrayLike) -> float:
    """What the priority list promised over what was found in it (wrong records, or money); NaN where nothing was.

    Above 1 is the winner's curse: the list is made of the largest estimates.
    """
    total = float(np.sum(found))
    return float(np.sum(claimed)) / total if total > 0 else float("nan")


def _count_random(nights: Sequence[NightSample]) -> int:
    return sum(int(np.sum(night.is_random)) for night in nights)


@dataclass(frozen=True)
class _Pool:
    """The nights together: `total` of the outcome, of which `known_total` was counted in reach of the lists; its `variance`
    (residuals about their common mean, each for the bins that it stands for: large nights may be worse than small ones;
    finite populations), and what they rest on. `num_rest` of the `num_bins` are out of reach of the lists. `variance_of_more`:
    what two more errors would add to it. `num_wrong`: outcomes other than 0 in the random sample."""

    total: float
    known_total: float
    variance: float
    variance_of_more: float
    effective_size: float
    num_wrong: int
    num_bins: int
    num_rest: int
    num_nights: int
    use_prediction: bool
    is_census: bool
    """Every bin was counted."""

    @property
    def squared_error(self) -> float:
        return self.variance + self.variance_of_more


def _share_of(pool: _Pool) -> tuple[float, float, float]:
    """The share of outcomes 1, and the ends of its interval."""
    share = float(np.clip(pool.total / pool.num_bins, 0, 1))
    if pool.is_census or (not pool.use_prediction and not pool.num_rest):
        return share, share, share
    size = pool.effective_size
    if pool.use_prediction:
        squared_error = max(pool.variance, pool.variance_of_more) / pool.num_bins**2
        # from all or none: by their last bits these would be a size of next to nothing
        half_a_bin = 0.5 / pool.num_bins
        if half_a_bin < share < 1 - half_a_bin and squared_error > 0:
            size = share * (1 - share) / squared_error
        return share, *wilson_interval(share, size)
    rest = (pool.total - pool.known_total) / pool.num_rest
    if 0 < rest < 1 and pool.variance > 0:
        # where a few large nights are worse than many small ones, all counts tell less than as many of nights alike
        size = min(size, rest * (1 - rest) * pool.num_rest**2 / pool.variance)
    low, high = ((pool.known_total + pool.num_rest * end) / pool.num_bins for end in wilson_interval(rest, size))
    return share, low, high


def _pool_as_fits(nights: Sequence[NightSample], plain: _Pool) -> _Pool:
    """With the predictions' help where everything was counted, or enough to know their error by; else `plain`."""
    pool = _pool(nights, use_prediction=True)
    enough = _count_random(nights) >= MIN_DIFFERENCE_COUNTS and pool.num_wrong >= MIN_WRONG
    return pool if pool.is_census or enough else plain


def _pool_with_lists(nights: Sequence[NightSample]) -> _Pool:
    """Without predictions: the lists as they were counted, the random sample for the rest; or for all, where a night has
    none out of its list's reach."""
    pool = _pool(nights, use_prediction=False)
    num_sampled = sum(bool(np.any(night.is_random)) for night in nights)
    return pool if pool.num_nights == num_sampled else _pool(_without_lists(nights), use_prediction=False)


def _without_lists(nights: Sequence[NightSample]) -> list[NightSample]:
    """Their random recounts alone, as a sample of all bins."""
    return [replace(night, in_reach=np.zeros_like(night.in_reach), num_absent=0) for night in nights]


def _pool(nights: Sequence[NightSample], use_prediction: bool) -> _Pool:
    totals, residuals, outcomes, multipliers, parts, num_bins, num_rest, known_total = [], [], [], [], [], 0, 0, 0.0
    num_sampled = sum(bool(np.any(night.is_random)) for night in nights)
    for night in nights:
        census = night.in_reach
        sample = night.is_random & ~census
        size, rest = int(sample.sum()), night.num_assessed - int(census.sum()) - night.num_absent
        if not np.any(night.is_random) or (rest > 0 and not size):
            continue  # nothing stands for the bins out of reach
        prediction = night.prediction if use_prediction else np.zeros(len(night.outcome))
        residual = (night.outcome - prediction)[sample]
        base = float(night.outcome[census].sum())
        if night.num_absent:
            base += night.num_absent * float((night.outcome - prediction)[census].mean())
        known_total += base
        if use_prediction and (size or night.num_absent):
            base += night.prediction_total - float(night.prediction[census].sum())
        if size:
            base += rest * float(residual.mean())
            residuals.append(residual)
            outcomes.append(night.outcome[sample])
            multipliers.append(np.full(size, rest / size))
            parts.append(np.full(size, rest * (rest - size) / size**2))
        totals.append(base)
        num_bins += night.num_assessed
        num_rest += rest
    pooled, outcome = np.concatenate([np.zeros(0), *residuals]), np.concatenate([np.zeros(0), *outcomes])
    found = outcome[outcome != 0]
    squares = [night.error_size**2 for night in nights] + ([float(np.square(found).max())] if found.size else [])
    weight, part = np.concatenate([np.zeros(0), *multipliers]), np.concatenate([np.zeros(0), *parts])
    effective_size = float(weight.sum() ** 2 / np.square(weight).sum()) if weight.size else 0.0
    variance = variance_of_one = 0.0
    if pooled.size > 1:
        part *= effective_size / (effective_size - 1)  # for the mean that is taken from them (Bessel)
        variance = float((part * np.square(pooled - np.average(pooled, weights=weight))).sum())
        variance_of_one = float(np.average(part, weights=weight))  # an error is as likely in any bin
    return _Pool(
        total=float(np.sum(totals)),
        known_total=known_total,
        variance=variance,
        variance_of_more=2 * max(squares) * variance_of_one,
        effective_size=effective_size,
        num_wrong=found.size,
        num_bins=num_bins,
        num_rest=num_rest,
        num_nights=len(totals),
        use_prediction=use_prediction,
        is_census=not part.any() and not any(night.num_absent for night in nights) and len(totals) == num_sampled > 0,
    )
