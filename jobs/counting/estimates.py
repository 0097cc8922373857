"""What may be said of the whole stock from the window's recounts; nothing without random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from jobs.counting.history import History, PlanRecounts
from jobs.counting.samples import Sample, samples_in_force
from model.calibration_error import calibration_error_floor, expected_calibration_error
from model.estimators import NightSample, claimed_over_found, estimate_precision, estimate_share, estimate_total


@dataclass(frozen=True)
class Estimates:
    """The summary's columns about the window, by their names there; None without evidence."""

    error_rate: float | None
    error_rate_low: float | None
    error_rate_high: float | None
    ira: float | None
    estimator: str
    window_nights: int
    num_random_window: int
    num_priority_window: int
    num_pending_window: int
    net_variance_units: float | None
    net_variance_units_low: float | None
    net_variance_units_high: float | None
    found_value_window: float | None
    claimed_over_found: float | None
    list_precision_window: float | None
    list_precision_window_low: float | None
    list_precision_window_high: float | None
    naive_precision_window: float | None
    ece_window: float | None
    """Above what binning alone shows for perfect calibration."""
    ece_window_raw: float | None

    def summary_columns(self) -> dict[str, float | int | str | None]:
        """The values for the summary's row of the whole night."""
        return {name: value for name, value in asdict(self).items() if name != "ece_window_raw"}


def estimate_window(history: History) -> Estimates:
    """Error rate and net pieces from the plans in force with a random sample; list precision from the plans in force
    whose priority bins are 90 % resolved."""
    samples = samples_in_force(history)
    lists = [plan for plan in history.nights if plan.has_priority_list]
    share = estimate_share([_wrong_sample(sample) for sample in samples])
    net = estimate_total([_net_sample(sample) for sample in samples])
    found = _PriorityFindings(lists)
    precision = estimate_precision(found.wrong)
    random = _RandomFindings(samples)
    raw_error = expected_calibration_error(random.p_record_wrong, random.wrong)
    return Estimates(
        error_rate=_number(share.value),
        error_rate_low=_number(share.low),
        error_rate_high=_number(share.high),
        ira=_number(1 - share.value),
        estimator=share.estimator,
        window_nights=len(samples),
        num_random_window=sum(sample.plan.num_random_resolved for sample in samples),
        num_priority_window=sum(plan.num_priority_resolved for plan in lists),
        num_pending_window=history.num_pending,
        net_variance_units=_number(net.value),
        net_variance_units_low=_number(net.low),
        net_variance_units_high=_number(net.high),
        found_value_window=float(np.nansum(found.value)) if np.isfinite(found.value).any() else None,
        claimed_over_found=_number(claimed_over_found(found.p_record_wrong, found.wrong)),
        list_precision_window=_number(precision.value),
        list_precision_window_low=_number(precision.low),
        list_precision_window_high=_number(precision.high),
        naive_precision_window=float(random.wrong[random.mismatch].mean()) if random.mismatch.any() else None,
        ece_window=max(0.0, raw_error - calibration_error_floor(random.p_record_wrong)) if samples else None,
        ece_window_raw=_number(raw_error),
    )


class _PriorityFindings:
    """Of every counted priority bin of these plans, arrays (m,): was the record wrong, what was claimed, and the
    value of the difference (NaN where the bin has no unit value)."""

    def __init__(self, lists: Sequence[PlanRecounts]) -> None:
        wrong, claimed, value = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
        for plan in lists:
            rows = ~plan.is_random & plan.counted
            difference = (plan.counted_qty - plan.column("expected_qty"))[rows]
            wrong.append((difference != 0).astype(np.float64))
            claimed.append(plan.column("p_record_wrong")[rows])
            value.append(np.abs(difference) * plan.column("unit_value")[rows])
        self.wrong, self.p_record_wrong = np.concatenate(wrong), np.concatenate(claimed)
        self.value = np.concatenate(value)


class _RandomFindings:
    """Of every random bin of these samples, arrays (m,): was the record wrong, what was claimed, and did the camera's
    count differ from the record."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        wrong, claimed, mismatch = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, dtype=bool)]
        for sample in samples:
            rows = sample.is_random
            top_class = sample.probabilities(rows).shape[1] - 1
            wrong.append(sample.wrong[rows].astype(np.float64))
            claimed.append(sample.column("p_record_wrong")[rows])
            mismatch.append((sample.column("camera_qty") != np.minimum(sample.expected_qty, top_class))[rows])
        self.wrong, self.p_record_wrong = np.concatenate(wrong), np.concatenate(claimed)
        self.mismatch = np.concatenate(mismatch)


def _wrong_sample(sample: Sample) -> NightSample:
    return NightSample(
        num_assessed=sample.plan.whole_night.num_assessed,
        prediction_total=sample.plan.whole_night.expected_wrong,
        outcome=sample.wrong.astype(np.float64),
        prediction=sample.column("p_record_wrong"),
        is_random=sample.is_random,
        in_reach=sample.in_reach,
    )


def _net_sample(sample: Sample) -> NightSample:
    return NightSample(
        num_assessed=sample.plan.whole_night.num_assessed,
        prediction_total=sample.plan.whole_night.net_variance_predicted,
        outcome=(sample.counted_qty - sample.expected_qty).astype(np.float64),
        prediction=sample.column("expected_variance_qty"),
        is_random=sample.is_random,
        in_reach=sample.in_reach,
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
