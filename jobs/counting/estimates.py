"""What may be said of all assessed bins from the window's recounts; nothing without random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from jobs.counting.history import History, PlanRecounts
from jobs.counting.samples import Sample, best_samples, counted_samples, samples_in_force, worst_samples
from model.calibration_error import calibration_errors_by_chance, expected_calibration_error
from model.estimators import (
    Estimate,
    NightSample,
    claimed_over_found,
    estimate_precision,
    estimate_share,
    estimate_total,
)


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
    # None in a belief that was frozen before these were estimated
    gross_variance_units: float | None = None
    gross_variance_units_low: float | None = None
    gross_variance_units_high: float | None = None
    net_variance_value: float | None = None
    net_variance_value_low: float | None = None
    net_variance_value_high: float | None = None

    def summary_columns(self) -> dict[str, float | int | str | None]:
        """The values for the summary's row of the whole night."""
        return {name: value for name, value in asdict(self).items() if name != "ece_window_raw"}

    def without_claims(self) -> Estimates:
        """Without what is said of bins that nobody counted; what became of past lists and past claims stands."""
        claims = ("error_rate", "net_variance_units", "gross_variance_units", "net_variance_value")
        ends = [f"{name}_{end}" for name in claims for end in ("low", "high")]
        return Estimates(**{**asdict(self), "estimator": "none", "ira": None, **dict.fromkeys([*claims, *ends])})


def estimate_window(history: History) -> Estimates:
    """Error rate, pieces and money from the plans in force with a random sample; list precision from the plans in force
    whose priority bins are 90 % resolved. Money is None where its bins name several currencies.

    Nights enter when their mismatches are confirmed, so those with many wait longest, and a mismatch may not be handed in
    before it is confirmed. Neither may make the stock look better: the error rate's upper end is also that of all counted
    nights as they were first counted, with the random bins that nobody counted taken as wrong. And a mismatch that nobody
    confirmed may be a miscount: the lower end is also that without them. Intervals of pieces and money cover those of all
    counted nights as they were first counted, with an error of the usual size in the bins that nobody counted.
    """
    samples, counted = samples_in_force(history), counted_samples(history)

    def total(make: Callable[[Sample], NightSample], of: Callable[[Sample], bool], *, signed: bool = True) -> Estimate:
        estimate = estimate_total([make(sample) for sample in samples if of(sample)])
        known = [sample for sample in counted if of(sample)]
        guard = estimate_total([make(sample) for sample in known])
        unknown = float(np.mean([sample.num_unknown * make(sample).error_size for sample in known])) if known else 0.0
        # np.maximum: max(0.0, nan) would be 0
        low = min(estimate.low, guard.low - unknown) if signed else np.maximum(0.0, min(estimate.low, guard.low))
        return replace(estimate, low=float(low), high=max(estimate.high, guard.high + unknown))

    lists = [plan for plan in history.nights if plan.has_priority_list]
    share = estimate_share([_wrong_sample(sample) for sample in samples])
    worst = estimate_share([_wrong_sample(sample) for sample in worst_samples(history)])
    best = estimate_share([_wrong_sample(sample) for sample in best_samples(history)])
    net = total(_net_sample, lambda _: True)
    gross = total(
        _gross_sample, lambda sample: sample.plan.whole_night.gross_variance_predicted is not None, signed=False
    )
    one_currency = _have_one_currency([sample.plan for sample in counted if _is_valued(sample)])
    value = total(_value_sample, lambda sample: one_currency and _is_valued(sample))
    found = _PriorityFindings(lists)
    precision = estimate_precision(found.wrong)
    random = _RandomFindings(samples)
    # p_record_wrong of a record of K or more is a claim about the class, and accuracy one about the exact quantity
    raw_error = expected_calibration_error(random.p_record_wrong, random.in_wrong_class)
    return Estimates(
        error_rate=_number(share.value),
        error_rate_low=_number(min(share.low, best.low)),
        error_rate_high=_number(max(share.high, worst.high) if samples else np.nan),
        ira=_number(1 - share.value),
        estimator=share.estimator,
        window_nights=len(samples),
        num_random_window=sum(sample.plan.num_random_resolved for sample in samples),
        num_priority_window=sum(plan.num_priority_resolved for plan in lists),
        num_pending_window=history.num_pending,
        net_variance_units=_number(net.value),
        net_variance_units_low=_number(net.low),
        net_variance_units_high=_number(net.high),
        found_value_window=_number(found.total_value if _have_one_currency(lists) else np.nan),
        claimed_over_found=_number(claimed_over_found(found.p_record_wrong, found.in_wrong_class)),
        list_precision_window=_number(precision.value),
        list_precision_window_low=_number(precision.low),
        list_precision_window_high=_number(precision.high),
        naive_precision_window=float(random.wrong[random.mismatch].mean()) if random.mismatch.any() else None,
        ece_window=max(0.0, raw_error - calibration_errors_by_chance(random.p_record_wrong).mean())
        if samples
        else None,
        ece_window_raw=_number(raw_error),
        gross_variance_units=_number(gross.value),
        gross_variance_units_low=_number(gross.low),
        gross_variance_units_high=_number(gross.high),
        net_variance_value=_number(value.value),
        net_variance_value_low=_number(value.low),
        net_variance_value_high=_number(value.high),
    )


class _PriorityFindings:
    """Of every counted priority bin of these plans, arrays (m,): was the record wrong, was it in the wrong class (what
    p_record_wrong claims), and what was claimed; and the value of all differences (NaN where no bin has a unit value)."""

    def __init__(self, lists: Sequence[PlanRecounts]) -> None:
        wrong, claimed, value = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
        in_wrong_class = [np.zeros(0, dtype=bool)]
        for plan in lists:
            rows = ~plan.is_random & plan.counted
            in_wrong_class.append(plan.in_wrong_class[rows])
            difference = (plan.counted_qty - plan.column("expected_qty"))[rows]
            wrong.append((difference != 0).astype(np.float64))
            claimed.append(plan.column("p_record_wrong")[rows])
            value.append(np.abs(difference) * plan.column("unit_value")[rows])
        self.wrong, self.p_record_wrong = np.concatenate(wrong), np.concatenate(claimed)
        self.in_wrong_class = np.concatenate(in_wrong_class)
        known = np.concatenate(value)
        self.total_value = float(np.nansum(known)) if np.isfinite(known).any() else float("nan")


class _RandomFindings:
    """Of every random bin of these samples, arrays (m,): was the record wrong, was it in the wrong class (K or more is
    one), what was claimed, and did the camera's count differ from the record."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        wrong, claimed = [np.zeros(0)], [np.zeros(0)]
        in_wrong_class, mismatch = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=bool)]
        for sample in samples:
            rows = sample.is_random
            in_wrong_class.append(sample.plan.in_wrong_class[sample.rows][rows])
            wrong.append(sample.wrong[rows].astype(np.float64))
            claimed.append(sample.column("p_record_wrong")[rows])
            mismatch.append((sample.column("camera_qty") != sample.plan.recorded_class[sample.rows])[rows])
        self.wrong, self.p_record_wrong = np.concatenate(wrong), np.concatenate(claimed)
        self.in_wrong_class, self.mismatch = np.concatenate(in_wrong_class), np.concatenate(mismatch)


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


def _gross_sample(sample: Sample) -> NightSample:
    return replace(
        _net_sample(sample),
        prediction_total=sample.plan.whole_night.gross_variance_predicted or 0.0,
        outcome=np.abs(sample.counted_qty - sample.expected_qty).astype(np.float64),
        prediction=sample.column("expected_abs_variance_qty"),
    )


def _value_sample(sample: Sample) -> NightSample:
    """Bins without a unit value count as 0, in the night's prediction too."""
    net, value = _net_sample(sample), np.nan_to_num(sample.column("unit_value"))
    return replace(
        net,
        prediction_total=sample.plan.whole_night.net_value_predicted or 0.0,
        outcome=net.outcome * value,
        prediction=net.prediction * value,
        error_size=net.error_size * float(np.sqrt(np.square(value).mean())),
    )


def _is_valued(sample: Sample) -> bool:
    return sample.plan.whole_night.net_value_predicted is not None


def _have_one_currency(plans: Sequence[PlanRecounts]) -> bool:
    """Whether all planned bins with a unit value name the same currency, or none of them names one."""
    return len(set().union(*(plan.currencies for plan in plans))) <= 1


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
