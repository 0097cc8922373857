"""Promises kept: what past nights claimed about their lists, against what people found; and who is wrong repeatedly.

Both come from `jobs.counting.history`, so that the page, the summary and the next audit's record model agree on what is
resolved. Claims and finds are compared over the same bins, and only of lists that are 90 % resolved: matches come in at
once and mismatches wait for their second count, so a list half counted finds too little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.counting.history import History, PlanRecounts
from jobs.counting.samples import samples_in_force
from model.estimators import wilson_interval
from model.record_model import scale_to_effective_size

MAX_OFFENDERS = 25
MIN_OFF_LIST = 5
"""Random bins out of the list's reach among the counted certified ones, from which on these stand for all. With none of
them the share is that of the most doubted alone: its interval held the truth in 1 to 23 % of the windows (simulated, 10,000
bins, 30 or 100 recounts a night, rates of 0.3 and 0.5). With one to four it held it in 94 to 99 %, but says next to nothing;
with five or more in 95 to 96 %."""


@dataclass(frozen=True)
class Promise:
    """One night's priority list. What it claimed and what was found are of its `num_compared` bins: those counted of a
    list that is 90 % resolved, else none. Value is of those with a unit value; None where none has one, or of several
    currencies."""

    audit_date: str
    num_listed: int
    num_resolved: int
    num_compared: int
    claimed_hits: float
    found_hits: int
    claimed_value: float | None
    found_value: float | None
    currencies: frozenset[str | None] = frozenset()
    """Of the planned bins' unit values; None is that of those that name none."""

    @property
    def num_pending(self) -> int:
        """Of the listed bins: nobody has counted them, or a mismatch waits for its second count."""
        return self.num_listed - self.num_resolved

    @property
    def claimed_precision(self) -> float | None:
        return self.claimed_hits / self.num_compared if self.num_compared else None

    @property
    def found_precision(self) -> float | None:
        return self.found_hits / self.num_compared if self.num_compared else None

    @property
    def found_interval(self) -> tuple[float, float] | None:
        """95 %, Wilson."""
        return wilson_interval(self.found_hits / self.num_compared, self.num_compared) if self.num_compared else None


def currencies_of(promises: Sequence[Promise]) -> frozenset[str | None]:
    """All in which the window's plans give unit values: sums over nights mean something where it is one."""
    return frozenset().union(*(promise.currencies for promise in promises))


def keep_promises(history: History) -> list[Promise]:
    """One Promise per night of the window, oldest first, of the plan in force."""
    return [_promise(plan) for plan in history.in_force]


def _promise(plan: PlanRecounts) -> Promise:
    # as in `estimate_window`: an unconfirmed mismatch of a list that is compared stands as it was first counted
    compared = ~plan.is_random & plan.counted & plan.has_priority_list
    difference = np.abs(plan.differences)[compared]
    unit_value = plan.column("unit_value")[compared]
    valued = bool(np.isfinite(unit_value).any() and len(plan.currencies) == 1)
    claimed = plan.column("expected_abs_variance_qty")[compared] * unit_value
    return Promise(
        audit_date=plan.audit_date,
        num_listed=plan.num_priority_planned,
        num_resolved=plan.num_priority_resolved,
        num_compared=int(compared.sum()),
        claimed_hits=float(plan.column("p_record_wrong")[compared].sum()),
        found_hits=int((difference > 0).sum()),
        claimed_value=float(np.nansum(claimed)) if valued else None,
        found_value=float(np.nansum(difference * unit_value)) if valued else None,
        currencies=frozenset(plan.currencies),
    )


@dataclass(frozen=True)
class CertificatePromise:
    """What became of the bins certified at `alpha` or better, by the `num_counted` of them that were counted on nights
    whose random bins are 90 % resolved: the share whose record was right after all. Alpha bounds its mean over all
    nights, one without certificates counting as 0; this is of the nights that had some. The list has the most doubtful
    of them, `num_in_reach`, of which `num_right_in_reach` were right; so the random ones out of its reach count for all those
    that it could not hold."""

    alpha: float
    num_counted: int
    num_in_reach: int
    num_right_in_reach: int
    share_right: float
    effective_size: float
    """Kish's, of these weights."""

    @property
    def num_off_list(self) -> int:
        """Random ones out of the list's reach."""
        return self.num_counted - self.num_in_reach

    @property
    def stands_for_all(self) -> bool:
        """Whether enough of those off the list were counted for `share_right` to be of more than the list."""
        return self.num_off_list >= MIN_OFF_LIST

    @property
    def right_interval(self) -> tuple[float, float]:
        """95 %, Wilson."""
        return wilson_interval(self.share_right, self.effective_size)


def keep_certificates(history: History) -> list[CertificatePromise]:
    """One per false-discovery rate at which a bin of the window was certified and counted, the strictest first."""
    level, right, weight, reach = [np.zeros(0)], [np.zeros(0, dtype=bool)], [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for sample in samples_in_force(history):
        certified = sample.where(~np.isnan(sample.column("certified_at")))
        level.append(certified.column("certified_at"))
        right.append(~certified.in_wrong_class)
        weight.append(certified.weight)
        reach.append(certified.in_reach)
    levels, is_right, weights, in_reach = map(np.concatenate, (level, right, weight, reach))
    promises = []
    for alpha in np.unique(levels).tolist():
        among = levels <= alpha
        share = float(np.average(is_right[among], weights=weights[among]))
        size = float(scale_to_effective_size(weights[among]).sum())
        doubted = among & in_reach
        promises.append(
            CertificatePromise(
                alpha=round(alpha, 6),
                num_counted=int(among.sum()),
                num_in_reach=int(doubted.sum()),
                num_right_in_reach=int(is_right[doubted].sum()),
                share_right=share,
                effective_size=size,
            )
        )
    return promises


def find_offenders(history: History) -> list[dict[str, Any]]:
    """The history's repeat offenders, whenever they were counted; the worst first, at most MAX_OFFENDERS.

    Each with bin_id, counted, wrong, last_counted_at; and of the window's plans zone (None where none has the bin) and
    listed (nights on the priority list).
    """
    listed: Counter[str] = Counter()
    zones: dict[str, str | None] = {}
    for plan in history.in_force:
        bin_ids = plan.planned["bin_id"].to_pylist()
        zones.update(zip(bin_ids, plan.planned["zone"].to_pylist(), strict=True))
        listed.update(bin_id for bin_id, is_random in zip(bin_ids, plan.is_random, strict=True) if not is_random)
    found = [
        {
            "bin_id": row["bin_id"],
            "zone": zones.get(row["bin_id"]),
            "listed": listed[row["bin_id"]],
            "counted": row["num_counted"],
            "wrong": row["num_wrong"],
            "last_counted_at": row["last_counted_at"],
        }
        for row in history.repeat_offenders.reset_index().to_dict("records")
    ]
    return sorted(found, key=lambda row: (-row["wrong"], -row["listed"], row["bin_id"]))[:MAX_OFFENDERS]
