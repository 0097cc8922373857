"""Drift without labels: more records outside the camera's prediction sets than when the sets were calibrated, or than
in the nights whose recounts certificates rest on.

Calibration bins are few, so a comparison with them alone misses what certificates can't bear: with 1,300 of them and
10,000 bins a night a rise of 3.5 points. Earlier nights of the same bundle are as large as tonight.

It cannot tell a worse camera from worse records (the random recounts can); it suspends certificates either way.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

BASELINE_NIGHTS, LEAST_NIGHTS_WORTH = 7, 6.0
"""Of the last nights, the oldest: a change among them shall be seen for as long as most recounts are of before it. With fewer
the variance between nights is too uncertain: three nights gave false alarms on 2.7 % of restless ones, seven on 0.4 %. And
they must tell as much as LEAST_NIGHTS_WORTH of one size (Kish): six nights of 20 bins and one of 10,000 gave them on 6.6 %."""
MOST_WEIGHT = 2.0
"""Of a night, in nights of the nights' median size."""
ALARM_Z = 4.0
ALARM_RISE = 0.01


@dataclass(frozen=True)
class Baseline:
    """Earlier nights: share of their bins with a record outside its set, and the variance of that share
    from night to night beyond chance; `num_nights` of one size would tell as much (Kish), and `num_assessed` bins."""

    share: float
    variance: float
    num_assessed: int
    num_nights: float

    def z(self, share: float, num_assessed: int, design_effect: float = 1.0) -> float:
        """Of tonight's share, by chance and by what nights differ beyond it, as where the stock changes."""
        chance = _chance(self.share, self.num_assessed, design_effect)
        tonight = chance / num_assessed + self.variance
        before = chance / self.num_assessed + self.variance / self.num_nights
        return float((share - self.share) / np.sqrt(tonight + before))


def measure_baseline(shares: ArrayLike, num_assessed: ArrayLike, design_effect: float = 1.0) -> Baseline | None:
    """Of nights (t,), oldest first: the first BASELINE_NIGHTS of them, or more where those say too little together, weighted
    by their bins (a night of a few says little); None for fewer.

    Variance between nights: by the moments of DerSimonian & Laird (1986), without the chance of each night's own bins: that
    of a pilot's few bins, taken for restlessness, would hide a drift of three points on full nights for a month.
    `design_effect` as in `has_drifted`.
    """
    share, num_bins = np.asarray(shares, dtype=np.float64), np.asarray(num_assessed, dtype=np.float64)
    share, num_bins = share[num_bins > 0], num_bins[num_bins > 0]
    if len(share) < BASELINE_NIGHTS:
        return None
    # of one night of the whole warehouse among many of a part of it, how nights differ can't be told by that one's weight
    weight = np.minimum(num_bins, MOST_WEIGHT * np.median(num_bins))
    worth = np.cumsum(weight) ** 2 / np.cumsum(np.square(weight))  # t for t nights of one size
    enough = np.flatnonzero((np.arange(1, len(share) + 1) >= BASELINE_NIGHTS) & (worth > LEAST_NIGHTS_WORTH - 0.01))
    if not enough.size:
        return None
    share, num_bins, weight = (values[: enough[0] + 1] for values in (share, num_bins, weight))
    total = float(weight.sum())
    mean = float(np.average(share, weights=weight))
    as_many = total**2 / float((np.square(weight) / num_bins).sum())  # bins that would tell the mean as well
    by_chance = _chance(mean, as_many, design_effect) * float((weight / num_bins * (1 - weight / total)).sum())
    excess = float((weight * (share - mean) ** 2).sum()) - by_chance
    variance = max(0.0, excess / (total - float(np.square(weight).sum()) / total))
    return Baseline(mean, variance, round(as_many), float(worth[enough[0]]))


def _chance(share: float, num_assessed: float, design_effect: float) -> float:
    """Variance of one bin's outcome. A share of exactly 0 is one not seen: half a bin keeps z finite."""
    return max(share * (1 - share), 0.5 / num_assessed) * design_effect


def has_drifted(
    num_outside: int,
    num_assessed: int,
    calibration_share: float,
    num_calibration: int,
    baseline: Baseline | None = None,
    design_effect: float = 1.0,
) -> bool:
    """z = (s - s0) / sqrt(s0 (1 - s0) (1/m + 1/n_cal)); alarm when z > 4 and s - s0 > 0.01 (two-sample score test), or
    when the same holds against `baseline`.

    `num_outside` and `num_assessed` m add up over shards; `calibration_share` s0 was measured on
    `num_calibration` independent held-out bins n_cal. Nothing assessed, no alarm. `design_effect`
    (Kish): so many bins of a night tell as much as one independent one, as neighbours hold the same products; else a year
    without a change had an alarm in 43 to 100 % of 30 (simulated, effects of 1.45 and 2.9), with it in 7 to 13 %.
    Raises ValueError without a calibration bin or for a share outside [0, 1].
    """
    if num_calibration <= 0 or not 0 <= calibration_share <= 1:
        raise ValueError("drift needs a calibration share in [0, 1] from at least one bin")
    if num_assessed == 0:
        return False
    share = num_outside / num_assessed
    # a calibration share of exactly 0 or 1 is a share not seen: half a bin keeps z finite
    base = min(max(calibration_share, 0.5 / num_calibration), 1 - 0.5 / num_calibration)
    z = (share - calibration_share) / np.sqrt(base * (1 - base) * (design_effect / num_assessed + 1 / num_calibration))
    alarm = z > ALARM_Z and share - calibration_share > ALARM_RISE
    if baseline is not None:
        alarm |= baseline.z(share, num_assessed, design_effect) > ALARM_Z and share - baseline.share > ALARM_RISE
    return bool(alarm)
