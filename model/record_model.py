"""The record model: what is really in a bin, given only what the record says.

    P(true | recorded) = lambda * P_recorded_to_true + (1 - lambda) * P_true_to_recorded

Both directions are built from the same learned sizes (`record_errors`). Which one is at work decides the
ranking, so lambda is learned, and one half until there are recounts. Everything is estimated from recounts
weighted by 1 / inclusion probability: unweighted, the priority list (which is full of errors by design) drives
the error rate from 5 % to 50 % within days. Without random recounts the model is `assumed`.

References: DeHoratius, Mersereau & Schrage 2008 (a distribution for every record); Horvitz & Thompson 1952.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.record_errors import (
    DEFAULT_SIZES,
    Floats,
    assume_top_shares,
    record_rows,
    recorded_to_true,
    size_index,
    true_to_recorded,
)

PRIOR_ERROR_RATE = 0.05
# how many bins counted at random the prior error rate is worth
PRIOR_ERROR_COUNTS = 50.0
# how many wrong records the default size pattern is worth
PRIOR_SIZE_COUNTS = 50.0
# how many bins in the top class its assumed shares are worth
PRIOR_TOP_COUNTS = 5.0
_DIRECTION_GRID = (np.arange(40) + 0.5) / 40


@dataclass(frozen=True)
class RecordModel:
    """A frozen, JSON-serialisable record model.

    `error_rate`: share of records wrong (of those below K + 2). `sizes`: shares of d = true - recorded at -1, +1, -2, +2
    and further, among the wrong. `recorded_to_true_weight`: lambda. `class_shares` (K + 1): how common each quantity is;
    `top_shares`: within the top class, how common K, K + 1 and more are.
    `assumed`: no random recount stands behind it.
    """

    error_rate: float
    sizes: tuple[float, ...]
    recorded_to_true_weight: float
    class_shares: tuple[float, ...]
    top_shares: tuple[float, ...]
    num_recounts: int
    num_random: int
    assumed: bool
    zone_error_rates: dict[str, float] = field(default_factory=dict)
    """Of the zones that were counted in at random, drawn towards `error_rate`; elsewhere, and without a zone, that one
    holds."""
    large_error_rate: float | None = None
    """Share of the records of K + 2 and more of which fewer than K are there, in every zone; None: as `error_rate` and
    `sizes` have it. Ninety for a hundred is no error to the classes, and says little of what a record of three is worth."""

    @property
    def top_class(self) -> int:
        return len(self.class_shares) - 1

    def error_rate_in(self, zone: str | None) -> float:
        """Of the records of a zone."""
        return self.zone_error_rates.get(zone or "", self.error_rate)

    def table(self, zone: str | None = None) -> Floats:
        """P(true class | record) in a zone, or in any, shape (K + 3, K + 1); rows as `record_errors.record_rows`."""
        weight, rate = self.recorded_to_true_weight, self.error_rate_in(zone)
        moved = recorded_to_true(rate, self.sizes, self.class_shares, self.top_shares)
        mistaken = true_to_recorded(rate, self.sizes, self.class_shares, self.top_shares)
        table: Floats = weight * moved + (1 - weight) * mistaken
        if self.large_error_rate is not None and rate > 0:
            fewer = table[-1, : self.top_class]
            table[-1] = np.append(fewer * (self.large_error_rate / fewer.sum()), 1 - self.large_error_rate)
        return table

    def class_table(self) -> Floats:
        """P(true class | recorded class), shape (K + 1, K + 1)."""
        table, top = self.table(), self.top_class
        return np.vstack([table[:top], np.array(self.top_shares) @ table[top:]])


def assume_record_model(class_shares: ArrayLike) -> RecordModel:
    """The record model before any random recount: PRIOR_ERROR_RATE, default sizes, both directions half and half.
    `class_shares` (K + 1,): true shares, of any sum."""
    shares = np.asarray(class_shares, dtype=np.float64)
    shares = shares / shares.sum()
    return RecordModel(
        error_rate=PRIOR_ERROR_RATE,
        sizes=DEFAULT_SIZES,
        recorded_to_true_weight=0.5,
        class_shares=tuple(shares.tolist()),
        top_shares=tuple(assume_top_shares(shares).tolist()),
        num_recounts=0,
        num_random=0,
        assumed=True,
    )


def recount_weights(inclusion_probability: ArrayLike, in_reach: ArrayLike) -> Floats:
    """Weights (n,) of one or several nights' recounts: 1 in the priority list's reach, else 1 / inclusion probability.

    `in_reach` (n,) bool, as `recount_plan.find_reach`: the bin was certain to be counted, as a priority or as a
    random bin. Without it the random bins would stand for the priority list a second time. Raises ValueError for
    probabilities outside (0, 1].
    """
    probability = np.asarray(inclusion_probability, dtype=np.float64)
    if probability.size and (probability.min() <= 0 or probability.max() > 1):
        raise ValueError("an inclusion probability lies in (0, 1]")
    return np.where(np.asarray(in_reach, dtype=bool), 1.0, 1.0 / probability)


def scale_to_effective_size(weights: ArrayLike) -> Floats:
    """Weights (n,) scaled to sum to Kish's effective sample size (sum w)^2 / sum w^2: what the data are worth."""
    weight = np.asarray(weights, dtype=np.float64)
    if weight.size == 0:
        return weight
    return weight * (weight.sum() / np.square(weight).sum())


def fit_record_model(
    expected_qty: ArrayLike,
    counted_qty: ArrayLike,
    weights: ArrayLike,
    is_random: ArrayLike,
    assumed: RecordModel,
    zones: Sequence[str | None],
) -> RecordModel:
    """Learn the record model from recounts (all arrays (n,); quantities exact and unclipped), drawn towards the `assumed` one.

    With its error rate e0, error_rate = (n0 e0 + sum w [counted != expected]) / (n0 + sum w) over the records below K + 2, and
    of each of the `zones` (n,) that differ; sizes: Dirichlet-smoothed weighted counts of the same; large_error_rate:
    (n0 e + sum w [counted < K]) / (n0 + sum w) over the others, with the share e that those two have for them;
    lambda: posterior mean on a grid of the weighted likelihood of the counted classes of the records below K + 2. The weights
    (`recount_weights`) are scaled to the effective sample size first. Without a random recount `assumed` comes back:
    priority recounts alone say nothing about the rest.
    Raises ValueError for negative quantities or lengths that differ.
    """
    expected = np.asarray(expected_qty)
    counted = np.asarray(counted_qty)
    random = np.asarray(is_random, dtype=bool)
    raw_weights = np.asarray(weights, dtype=np.float64)
    if not expected.shape == counted.shape == random.shape == raw_weights.shape:
        raise ValueError("expected_qty, counted_qty, weights and is_random must have one length")
    if not random.any():
        return assumed
    if counted.min() < 0:
        raise ValueError(f"counted_qty must be 0 or more, found {counted.min()}")
    weight = scale_to_effective_size(raw_weights)
    top = assumed.top_class
    is_large = expected >= top + 2
    wrong = (counted != expected) & ~is_large
    error_rate = _shrink(assumed.error_rate, weight[wrong], weight[~is_large])
    sizes = np.array(DEFAULT_SIZES) * PRIOR_SIZE_COUNTS
    np.add.at(sizes, size_index(counted[wrong].astype(np.int64) - expected[wrong]), weight[wrong])
    # the top class is shaped by records, which are known for every bin, so each random bin counts in full
    top_shares = np.array(assumed.top_shares) * PRIOR_TOP_COUNTS
    in_top = random & (expected >= top)
    np.add.at(top_shares, record_rows(expected[in_top], top) - top, 1.0)
    fitted = replace(
        assumed,
        error_rate=error_rate,
        sizes=tuple((sizes / sizes.sum()).tolist()),
        top_shares=tuple((top_shares / top_shares.sum()).tolist()),
        num_recounts=len(expected),
        num_random=int(random.sum()),
        assumed=False,
        zone_error_rates=_fit_zones(
            [zone for zone, large in zip(zones, is_large, strict=True) if not large],
            wrong[~is_large],
            raw_weights[~is_large],
            random[~is_large],
            error_rate,
        ),
    )
    fewer = float(fitted.table()[-1, :top].sum())
    return replace(
        fitted,
        large_error_rate=_shrink(fewer, weight[is_large & (counted < top)], weight[is_large]),
        recorded_to_true_weight=_fit_direction(fitted, expected[~is_large], counted[~is_large], weight[~is_large]),
    )


def _shrink(prior: float, wrong: Floats, weight: Floats) -> float:
    """The share of weights (n,) that are those of `wrong` ones, drawn towards `prior`."""
    return float((PRIOR_ERROR_COUNTS * prior + wrong.sum()) / (PRIOR_ERROR_COUNTS + weight.sum()))


def _fit_zones(
    zones: Sequence[str | None],
    wrong: NDArray[np.bool_],
    raw_weight: Floats,
    is_random: NDArray[np.bool_],
    error_rate: float,
) -> dict[str, float]:
    """Each zone's error rate, drawn towards the overall one the more, the less zones differ beyond chance, and as if that
    had been seen in PRIOR_ERROR_COUNTS bins at least (empirical Bayes; the variance between zones by DerSimonian & Laird
    1986). None where they don't differ: half the bins wrong at 1 % and half at 9 % are ranked better by their own rates,
    and bins that are all alike by the common one. Bins without a zone are a stratum too, judged by the common rate.

    Each zone counts by the effective size of its own weights (its random recounts at most: priority ones alone say nothing of
    the rest): scaled over all zones together, those of a zone with small nights would be next to nothing."""
    # not numpy's unique, which makes every text as wide as the longest
    names = sorted({zone or "" for zone in zones})
    number = {name: index for index, name in enumerate(names)}
    place = np.array([number[zone or ""] for zone in zones], dtype=np.intp)
    total, squares = np.bincount(place, raw_weight), np.bincount(place, np.square(raw_weight))
    counted = np.minimum(total**2 / squares, np.bincount(place, is_random))
    found = counted * np.bincount(place, raw_weight * wrong) / total
    is_seen = counted > 0
    names, counted, found = (
        [name for name, seen in zip(names, is_seen, strict=True) if seen],
        counted[is_seen],
        found[is_seen],
    )
    if len(names) < 2:
        return {}
    mean = found.sum() / counted.sum()
    chance = mean * (1 - mean)
    excess = (counted * (found / counted - mean) ** 2).sum() - (len(names) - 1) * chance
    between = excess / (counted.sum() - np.square(counted).sum() / counted.sum())
    if between <= 0:
        return {}
    # a zone with a count or two can look as different as it likes
    strength = max(chance / between, PRIOR_ERROR_COUNTS)
    rates = (strength * error_rate + found) / (strength + counted)
    return {zone: rate for zone, rate in zip(names, rates.tolist(), strict=True) if zone}


def _fit_direction(fitted: RecordModel, expected: NDArray[Any], counted: NDArray[Any], weight: Floats) -> float:
    """Posterior mean of lambda under Jeffreys' prior of a share: a warehouse mostly errs in one way."""
    top = fitted.top_class
    cell = record_rows(expected, top), np.minimum(counted, top)
    moved = replace(fitted, recorded_to_true_weight=1.0).table()[cell]
    mistaken = replace(fitted, recorded_to_true_weight=0.0).table()[cell]
    mixed = _DIRECTION_GRID[:, None] * moved + (1 - _DIRECTION_GRID[:, None]) * mistaken
    log_likelihood = np.log(mixed) @ weight
    prior = 1 / np.sqrt(_DIRECTION_GRID * (1 - _DIRECTION_GRID))
    chance = prior * np.exp(log_likelihood - log_likelihood.max())
    return float((_DIRECTION_GRID * chance).sum() / chance.sum())
