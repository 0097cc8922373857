"""Which recounts of a plan stand for its whole night, and with which weight.

Matches come in at once and mismatches wait for a second count, so a plan is learned from only when 90 % of its random
bins are resolved, and then with its unconfirmed mismatches as they were first counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.counting.history import Floats, History, Mask, PlanRecounts
from model.record_model import recount_weights
from schemas.results import FOUND_WRONG


def pooled(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """The same array of several samples, one after the other."""
    return np.concatenate(list(arrays))


@dataclass(frozen=True)
class Sample:
    """The recounts of one plan that stand for its whole night: `rows` (m,) of the plan; all arrays (m,)."""

    plan: PlanRecounts
    rows: NDArray[np.intp]
    in_reach: Mask

    @property
    def expected_qty(self) -> NDArray[np.int64]:
        return self.column("expected_qty").astype(np.int64)

    @property
    def counted_qty(self) -> NDArray[np.int64]:
        return self.plan.counted_qty[self.rows].astype(np.int64)

    @property
    def wrong(self) -> Mask:
        return self.counted_qty != self.expected_qty

    @property
    def in_wrong_class(self) -> Mask:
        return self.plan.in_wrong_class[self.rows]

    @property
    def is_random(self) -> Mask:
        return self.plan.is_random[self.rows]

    def where(self, mask: Mask) -> Sample:
        """Those of them for which `mask` (m,) holds."""
        return replace(self, rows=self.rows[mask], in_reach=self.in_reach[mask])

    def sum_uncounted(self, worth: Floats) -> float:
        """Sum of `worth` (b,), one of each of the plan's bins, over the night's bins that those planned ones stand for that
        nobody counted; a listed one stands for itself."""
        random, absent = self.plan.is_random, ~self.plan.counted
        stood_for = self.plan.whole_night.num_assessed * float(worth[random & absent].sum() / random.sum())
        return stood_for + (float(worth[~random & absent].sum()) if self.plan.has_priority_list else 0.0)

    @property
    def settled(self) -> Mask:
        return self.plan.settled[self.rows]

    @property
    def weight(self) -> Floats:
        return recount_weights(self.column("inclusion_probability"), self.in_reach)

    def column(self, name: str) -> Floats:
        """A numeric column of the plan, nulls as NaN."""
        return self.plan.column(name)[self.rows]

    @property
    def zones(self) -> list[str | None]:
        return self.plan.planned["zone"].take(self.rows).to_pylist()

    def of_bundle(self, bundle_id: str) -> Sample:
        """Those whose photos this bundle scored."""
        return self.where(pc.equal(self.plan.planned["bundle_id"], bundle_id).to_numpy()[self.rows])

    def was_listable(self) -> Mask:
        """Not kept off the priority list for having been counted not long before."""
        return pc.is_null(self.plan.planned["reason"]).to_numpy()[self.rows]

    @property
    def probabilities(self) -> Floats:
        """(m, K + 1)."""
        return np.array(self.plan.planned["probabilities"].take(self.rows).to_pylist(), dtype=np.float64)


def take_sample(plan: PlanRecounts) -> Sample:
    """All counted bins where the priority list was counted too; else the random ones alone, as a plain sample."""
    if plan.has_priority_list:
        rows = np.flatnonzero(plan.counted)
        return Sample(plan, rows, plan.in_reach[rows])
    rows = np.flatnonzero(plan.counted & plan.is_random)
    return Sample(plan, rows, np.zeros(len(rows), dtype=bool))


def samples_in_force(history: History) -> list[Sample]:
    """Of the window's nights whose plan in force has a random sample: what estimates rest on."""
    return [take_sample(plan) for plan in history.in_force if plan.has_random_sample]


def worst_samples(history: History) -> list[Sample]:
    """Of the window's nights with 90 % of their random bins counted, confirmed or not, the others taken as found wrong; and
    so are those of a priority list that stands for itself, as no random bin stands for them."""
    plans = [plan for plan in history.in_force if plan.has_random_counts]
    return [take_sample(_absent_as_wrong(plan)) for plan in plans]


def counted_samples(history: History) -> list[Sample]:
    """Of the window's nights with 90 % of their random bins counted, confirmed or not."""
    return [take_sample(plan) for plan in history.in_force if plan.has_random_counts]


def best_samples(history: History) -> list[Sample]:
    """`samples_in_force`, with the mismatches that no second count confirmed taken as miscounts, and the random and
    listed bins that nobody counted as right: people may have skipped a corner where all is well."""
    plans = [plan for plan in history.in_force if plan.has_random_sample]
    return [take_sample(_doubtful_as_right(plan)) for plan in plans]


def absent_as_right(sample: Sample) -> Sample:
    """The random bins of the sample's plan that nobody counted, taken as right; but for those that people had found wrong not
    long before, which were no candidates."""
    plan = sample.plan
    rows = np.flatnonzero(_is_absent(plan))
    return Sample(_taken_as(plan, ~plan.counted), rows, np.zeros(len(rows), dtype=bool))


def _is_absent(plan: PlanRecounts) -> Mask:
    """The random bins that nobody counted, but for those that people had found wrong not long before."""
    found_wrong = pc.is_in(plan.planned["reason"], FOUND_WRONG).to_numpy()
    return plan.is_random & ~plan.counted & ~found_wrong


def _is_absent_listed(plan: PlanRecounts) -> Mask:
    """The bins that nobody counted of a list that stands for itself."""
    return ~plan.is_random & ~plan.counted & plan.has_priority_list


def _doubtful_as_right(plan: PlanRecounts) -> PlanRecounts:
    return _taken_as(plan, (plan.counted & ~plan.settled) | _is_absent(plan) | _is_absent_listed(plan))


def _absent_as_wrong(plan: PlanRecounts) -> PlanRecounts:
    return _taken_as(plan, (~plan.counted & plan.is_random) | _is_absent_listed(plan), difference=1)


def _taken_as(plan: PlanRecounts, bins: Mask, *, difference: int = 0) -> PlanRecounts:
    """The plan as if so many pieces more than recorded had been found in these of its bins."""
    found = plan.column("expected_qty") + difference
    return replace(plan, counted_qty=np.where(bins, found, plan.counted_qty))


def samples_to_learn_from(history: History) -> list[Sample]:
    """One sample a night: of the plan in force or, while that isn't counted, of one that it replaced."""
    samples: dict[str, Sample] = {}
    for plan in (*history.in_force, *history.replaced):
        if plan.has_random_sample:
            samples.setdefault(plan.audit_date, take_sample(plan))
    return [samples[night] for night in sorted(samples)]
