"""Drift without labels: more records outside the camera's prediction sets than when the sets were calibrated.

It cannot tell a worse camera from worse records (the random recounts can); it suspends certificates either way.
"""

from dataclasses import dataclass

import numpy as np

ALARM_Z = 4.0
ALARM_RISE = 0.01


@dataclass(frozen=True)
class DriftCheck:
    """Share of records outside their set tonight, its z-score against calibration, and whether that is an alarm."""

    record_outside_set_share: float
    z: float
    alarm: bool


def check_drift(num_outside: int, num_assessed: int, calibration_share: float, num_calibration: int) -> DriftCheck:
    """z = (s - s0) / sqrt(s0 (1 - s0) (1/m + 1/n_cal)); alarm when z > 4 and s - s0 > 0.01 (two-sample score test).

    `num_outside` and `num_assessed` m add up over shards; `calibration_share` s0 was measured on
    `num_calibration` held-out bins. Nothing assessed, no alarm: share and z are NaN.
    """
    if num_calibration <= 0 or not 0 <= calibration_share <= 1:
        raise ValueError("drift needs a calibration share in [0, 1] from at least one bin")
    if num_assessed == 0:
        return DriftCheck(float("nan"), float("nan"), False)
    share = num_outside / num_assessed
    # a calibration share of exactly 0 or 1 is a share not seen: half a bin keeps z finite
    base = min(max(calibration_share, 0.5 / num_calibration), 1 - 0.5 / num_calibration)
    z = (share - calibration_share) / np.sqrt(base * (1 - base) * (1 / num_assessed + 1 / num_calibration))
    return DriftCheck(share, float(z), bool(z > ALARM_Z and share - calibration_share > ALARM_RISE))
