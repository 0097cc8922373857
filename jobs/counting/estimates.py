"""What may be said of all assessed bins from the window's recounts; nothing without random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.counting.history import History, PlanRecounts
from jobs.counting.samples import Sample, best_samples, counted_samples, samples_in_force, worst_samples
from model.calibration_error import measure_calibration
from model.estimators import (
    ERROR_PIECES,
    Estimate,
    NightSample,
    claimed_over_found,
    estimate_precision,
    estimate_share,
    estimate_total,
)
from model.record_errors import Floats

UNRESOLVED = "no night has 90 % of its random bins resolved yet"
"""Why the window says nothing though its nights drew random bins."""


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
    # None in a belief that was frozen before these were estimated
    gross_variance_units: float | None = None
    gross_variance_units_low: float | None = None
    gross_variance_units_high: float | None = None
    net_variance_value: float | None = None
    net_variance_value_low: float | None = None
    net_variance_value_high: float | None = None

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
    confirmed may be a miscount, a planned bin that nobody counted be right: the lower end is also that with both as right.
    Intervals of pieces and money cover those of all
    counted nights as they were first counted, with an error of the usual size in the bins that nobody counted.
    """
    samples, counted = samples_in_force(history), counted_samples(history)

    def total(
        make: Callable[[Sample], NightSample],
        of: Callable[[Sample], bool],
        *,
        signed: bool = True,
        worth: Callable[[PlanRecounts], Floats] = lambda plan: np.ones(len(plan.is_random)),
    ) -> Estimate:
        estimate = estimate_total([make(sample) for sample in samples if of(sample)])
        known = [sample for sample in counted if of(sample)]
        guard = estimate_total([make(sample) for sample in known])
        uncounted = [sample.sum_uncounted(worth(sample.plan)) for sample in known]
        unknown = ERROR_PIECES * float(np.mean(uncounted)) if known else 0.0
        low = min(estimate.low, guard.low - unknown if signed else guard.low)
        ends = estimate.value, low, max(estimate.high, guard.high + unknown)
        value, low, high = ends if signed else np.maximum(0.0, ends).tolist()  # max(0.0, nan) would be 0
        return replace(estimate, value=value, low=low, high=high)

    share, worst, best = map(_share_of_wrong, (samples, worst_samples(history), best_samples(history)))
    gross = _within(total(_gross_sample, _has_gross, signed=False), _known_gross(list(filter(_has_gross, samples))))
    one_currency = _have_one_currency([sample.plan for sample in counted])
    # where nobody counted a bin with a price at random, nothing is known of money, not even that it is little
    prices = _joined([sample.column("unit_value")[sample.is_random] for sample in samples if _is_valued(sample)])
    has_prices = one_currency and bool(np.isfinite(prices).any())
    value = total(
        _value_sample,
        lambda sample: has_prices and _is_valued(sample),
        worth=lambda plan: np.nan_to_num(plan.column("unit_value")),
    )
    return Estimates(
        error_rate=_number(share.value),
        error_rate_low=_number(min(share.low, best.low)),
        error_rate_high=_number(max(share.high, worst.high) if samples else np.nan),
        ira=_number(1 - share.value),
        estimator=share.estimator,
        window_nights=len(samples),
        num_random_window=sum(sample.plan.num_random_resolved for sample in samples),
        num_pending_window=history.num_pending,
        **_columns("net_variance_units", total(_net_sample, lambda _: True)),
        **_columns("gross_variance_units", gross),
        **_columns("net_variance_value", value),
        **_survey_random(samples),
        **_survey_lists([plan for plan in history.in_force if plan.has_priority_list]),
    )


def _share_of_wrong(samples: Sequence[Sample]) -> Estimate:
    """Of the assessed bins of their nights, within what people have settled, on the lists too: thirty random bins that are
    all right don't make a night's records right of which five were found wrong, and where 96 of 110 were found right, no
    more than 14 are wrong."""
    known_wrong = sum(int(sample.plan.is_known_wrong.sum()) for sample in samples)
    known_right = sum(int(sample.plan.is_known_right.sum()) for sample in samples)
    num_assessed = max(1, sum(sample.plan.whole_night.num_assessed for sample in samples))
    share = estimate_share([_wrong_sample(sample) for sample in samples])
    return _within(share, known_wrong / num_assessed, 1 - known_right / num_assessed)


def _known_gross(samples: Sequence[Sample]) -> float:
    """Pieces that the records which people have settled as wrong are off by, in the mean of the nights."""
    found = sum(float(np.abs(sample.plan.differences[sample.plan.is_known_wrong]).sum()) for sample in samples)
    return found / max(1, len(samples))


def _within(estimate: Estimate, floor: float, ceiling: float = np.inf) -> Estimate:
    ends = np.clip((estimate.value, estimate.low, estimate.high), floor, ceiling).tolist()  # NaN stays
    return replace(estimate, **dict(zip(("value", "low", "high"), ends, strict=True)))


def _survey_lists(lists: Sequence[PlanRecounts]) -> dict[str, Any]:
    """What the counted priority bins of these plans tell. `p_record_wrong` claims that the class is wrong, and a list's
    precision is about the exact quantity."""
    listed = [(plan, ~plan.is_random & plan.counted) for plan in lists]
    differences = [plan.differences[rows] for plan, rows in listed]
    values = [
        np.abs(found) * plan.column("unit_value")[rows] for (plan, rows), found in zip(listed, differences, strict=True)
    ]
    value = _joined(values)
    is_valued = np.isfinite(value).any() and _have_one_currency(lists)
    claimed = _joined([plan.column("p_record_wrong")[rows] for plan, rows in listed])
    in_wrong_class = _joined([plan.in_wrong_class[rows] for plan, rows in listed]).astype(bool)
    return {
        "num_priority_window": sum(plan.num_priority_resolved for plan in lists),
        "found_value_window": float(np.nansum(value)) if is_valued else None,
        "claimed_over_found": _number(claimed_over_found(claimed, in_wrong_class)),
        **_columns("list_precision_window", estimate_precision((_joined(differences) != 0).astype(np.float64))),
    }


def _survey_random(samples: Sequence[Sample]) -> dict[str, Any]:
    """Of the random bins of these samples: how far claims are off, and how precise it would be to doubt each record that
    the camera's count differs from. The first is about the class, the second about the exact quantity."""
    drawn = [sample.where(sample.is_random) for sample in samples]
    claimed = _joined([sample.column("p_record_wrong") for sample in drawn])
    in_wrong_class = _joined([sample.in_wrong_class for sample in drawn]).astype(bool)
    wrong = _joined([sample.wrong for sample in drawn])
    differs = [sample.column("camera_qty") != sample.plan.recorded_class[sample.rows] for sample in drawn]
    mismatch = _joined(differs).astype(bool)
    return {
        "naive_precision_window": float(wrong[mismatch].mean()) if mismatch.any() else None,
        "ece_window": measure_calibration(claimed, in_wrong_class)["excess"] if samples else None,
    }


def _joined(parts: Sequence[NDArray[Any]]) -> Floats:
    return np.concatenate([np.zeros(0), *parts])


def _columns(name: str, estimate: Estimate) -> dict[str, Any]:
    ends = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
    return {name + end: _number(value) for end, value in ends.items()}


def _wrong_sample(sample: Sample) -> NightSample:
    return NightSample(
        num_assessed=sample.plan.whole_night.num_assessed,
        prediction_total=sample.plan.whole_night.expected_wrong,
        outcome=sample.wrong.astype(np.float64),
        prediction=sample.column("p_record_wrong"),
        is_random=sample.is_random,
        in_reach=sample.in_reach,
        num_absent=int((sample.plan.in_reach & ~sample.plan.counted).sum()) if sample.plan.has_priority_list else 0,
    )


def _net_sample(sample: Sample) -> NightSample:
    return replace(
        _wrong_sample(sample),
        prediction_total=sample.plan.whole_night.net_variance_predicted,
        outcome=(sample.counted_qty - sample.expected_qty).astype(np.float64),
        prediction=sample.column("expected_variance_qty"),
    )


def _has_gross(sample: Sample) -> bool:
    return sample.plan.whole_night.gross_variance_predicted is not None


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
    # of the random bins, which stand for the others: a list by value holds the dearest
    typical_value = float(np.sqrt(np.square(value[sample.is_random]).mean()))
    return replace(
        net,
        prediction_total=sample.plan.whole_night.net_value_predicted or 0.0,
        outcome=net.outcome * value,
        prediction=net.prediction * value,
        error_size=net.error_size * typical_value,
    )


def _is_valued(sample: Sample) -> bool:
    return sample.plan.whole_night.net_value_predicted is not None


def _have_one_currency(plans: Sequence[PlanRecounts]) -> bool:
    """Whether all planned bins with a unit value name the same currency, or none of them names one."""
    return len(set().union(*(plan.currencies for plan in plans))) <= 1


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
