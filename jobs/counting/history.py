"""What people have found so far, as of a night: the recounts of the window, and what is known of each bin.

Only committed nights before the given one count. It is as large as budget times nights; of results only the records of
bins that wait for a second count are read, in the nights after theirs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.counting.counted import read_counted
from jobs.counting.last_counts import find_last_counts
from jobs.counting.plans import NightSummary, list_marked_runs, read_plan, read_summary
from jobs.counting.records import NightRecord, find_records, lines_of
from jobs.counting.resolution import Count, Recorded, group_counts, resolve_counts
from jobs.platform.layout import list_nights, run_uri
from jobs.platform.run_record import read_run
from jobs.platform.uris import absolute
from model.estimators import WINDOW_NIGHTS, is_resolved
from model.record_errors import Floats
from model.recount_plan import find_reach
from schemas.results import Recount

Mask = NDArray[np.bool_]

_COUNT_COLUMNS = ["audit_date", "bin_id", "expected_qty", "counted_at", "counted_qty", "counter_id", "confirmed"]


class BinToCount(NamedTuple):
    """A bin that a person is sent to, for the night whose plan asks for it."""

    zone: str | None
    bin_id: str
    night: str


@dataclass(frozen=True)
class PlanRecounts:
    """Every recount that one committed run planned, with what came of it. All arrays (b,), as `planned`.

    `counted_qty`: the finding; an unconfirmed mismatch as whoever counted first found it; NaN where nobody counted.
    `settled`: counted and right, or a mismatch that a second count confirmed.
    `changed`: of the mismatches that wait for a second count, whether a later night saw another record.
    `in_reach`: certain to be counted, as a priority or as a random bin (`recount_plan.find_reach`).
    """

    audit_date: str
    run_id: str
    planned: pa.Table
    counted_qty: Floats
    settled: Mask
    changed: Mask
    in_reach: Mask
    summary: NightSummary | None
    """The whole night's figures; None for a plan that was replaced."""

    def column(self, name: str) -> Floats:
        """A numeric column of the plan, nulls as NaN."""
        return self.planned[name].to_numpy().astype(np.float64)

    @property
    def whole_night(self) -> NightSummary:
        """`summary`, of a plan in force. Raises ValueError for one that was replaced."""
        if self.summary is None:
            raise ValueError(f"run {self.run_id}: a plan that was replaced doesn't stand for its night")
        return self.summary

    @cached_property
    def is_random(self) -> Mask:
        return pc.equal(self.planned["recount"], Recount.RANDOM).to_numpy()

    @cached_property
    def counted(self) -> Mask:
        return ~np.isnan(self.counted_qty)

    @cached_property
    def differences(self) -> Floats:
        """Counted less recorded pieces, NaN where nobody counted."""
        return self.counted_qty - self.column("expected_qty")

    @cached_property
    def is_known_wrong(self) -> Mask:
        """Settled, and another quantity than recorded."""
        return self.settled & self.counted & (self.differences != 0)

    @cached_property
    def is_known_right(self) -> Mask:
        """Counted, and the quantity recorded."""
        return self.settled & (self.differences == 0)

    @cached_property
    def resolved(self) -> Mask:
        """Settled, or a mismatch that nobody can count again because its record has changed (somebody corrected it, or
        stock moved, and `jobs.recount` would refuse the count): it stands as it was first counted. The rest is pending."""
        return self.settled | (self.counted & self.changed)

    @cached_property
    def recorded_class(self) -> Floats:
        """K or more is one class."""
        return np.minimum(self.column("expected_qty"), self._top_class)

    @cached_property
    def in_wrong_class(self) -> Mask:
        """Counted, and in another class than the record: what p_record_wrong and certificates claim."""
        return self.counted & (np.minimum(self.counted_qty, self._top_class) != self.recorded_class)

    @cached_property
    def _top_class(self) -> NDArray[np.int64]:
        return pc.list_value_length(self.planned["probabilities"]).to_numpy() - 1

    @property
    def currencies(self) -> set[str | None]:
        """Of the planned bins with a unit value; None is the currency of those that name none."""
        valued = self.planned.filter(pc.is_valid(self.planned["unit_value"]))
        return set(valued["currency"].to_pylist())

    @property
    def num_random_planned(self) -> int:
        return int(self.is_random.sum())

    @property
    def num_random_resolved(self) -> int:
        return int((self.is_random & self.resolved).sum())

    @property
    def num_priority_planned(self) -> int:
        return int((~self.is_random).sum())

    @property
    def num_priority_resolved(self) -> int:
        return int((~self.is_random & self.resolved).sum())

    @property
    def num_pending(self) -> int:
        return int((~self.resolved).sum())

    @property
    def waiting(self) -> list[BinToCount]:
        """Every mismatch that waits for a second count."""
        found = self.planned.filter(pa.array(self.counted & ~self.resolved))
        pairs = zip(found["zone"].to_pylist(), found["bin_id"].to_pylist(), strict=True)
        return [BinToCount(zone, bin_id, self.audit_date) for zone, bin_id in pairs]

    @property
    def has_random_sample(self) -> bool:
        """Whether so many of the random bins are resolved that the plan may enter the window (90 %)."""
        return is_resolved(self.num_random_planned, self.num_random_resolved)

    @property
    def has_random_counts(self) -> bool:
        """Whether so many are counted, second counts of their mismatches apart."""
        return is_resolved(self.num_random_planned, int((self.is_random & self.counted).sum()))

    @property
    def has_priority_list(self) -> bool:
        """The same for the priority bins."""
        return is_resolved(self.num_priority_planned, self.num_priority_resolved)


@dataclass(frozen=True)
class History:
    """What is known before a night.

    `in_force`: the plans in force of the window's nights, oldest first. `replaced`: the plans they replaced.
    `last_counts`: a row per bin ever counted, index bin_id: `last_counted_at`, `last_counted_qty`, `num_counted`;
    of the night of the last count `night`, `expected_qty`, `lines` (see `lines_of`) and `finding` (RIGHT,
    WRONG, WAITING for a second count, or null for a mismatch that nobody is asked to count again) and `found_qty`, the
    quantity that it is about; `num_wrong`, in how many ways (recorded and found quantity) its record was found wrong.
    `summaries`: of the last WINDOW_NIGHTS committed nights, oldest first, however long ago they were.
    """

    in_force: tuple[PlanRecounts, ...]
    replaced: tuple[PlanRecounts, ...]
    last_counts: pd.DataFrame
    summaries: tuple[NightSummary, ...] = ()

    @property
    def num_pending(self) -> int:
        return sum(plan.num_pending for plan in self.in_force)

    @property
    def second_counts(self) -> list[BinToCount]:
        """Every mismatch of the window's plans in force that waits for a second count, the oldest night first: it is given
        back for that night."""
        return [found for plan in self.in_force for found in plan.waiting]

    @property
    def repeat_offenders(self) -> pd.DataFrame:
        """`last_counts` of the bins found wrong in at least two ways, again after a correction or never corrected while stock
        moved: the same finding twice is one error that nobody corrected. `repeat_offenders` in queries.sql follows the same
        rule."""
        return self.last_counts[self.last_counts["num_wrong"] >= 2]


def read_history(output_uri: str, audit_date: str, *, first: str | None = None) -> History:
    """What was counted by the plans of committed nights before `audit_date`; the window begins with the night `first`, else
    WINDOW_NIGHTS days before: where fewer nights are audited, older recounts tell of other records."""
    output_uri = absolute(output_uri)
    counted = read_counted(output_uri, [*_COUNT_COLUMNS, "skus"])
    counted = counted.filter(pc.less(counted["audit_date"], audit_date))
    skus = counted["skus"]
    rows = counted.drop_columns(["skus"]).to_pylist()
    groups = group_counts(rows)
    first = first or (date.fromisoformat(audit_date) - timedelta(days=WINDOW_NIGHTS)).isoformat()
    marked = list_marked_runs(output_uri, first)
    before = [night for night in list_nights(output_uri) if night < audit_date]
    in_window = [night for night in before if night >= first]
    last = before[-WINDOW_NIGHTS:]
    names = max(in_window, last, key=len)  # both end with the last night
    summaries = {night: read_summary(output_uri, night) for night in names}
    in_force, replaced = [], []
    for night in in_window:
        summary = summaries[night]
        in_force.append(_match_plan(output_uri, night, summary.run_id, groups, summary))
        others = (run_id for run_id in marked.get(night, []) if run_id != summary.run_id)
        replaced += [_match_plan(output_uri, night, run_id, groups, None) for run_id in others]
    in_force = _note_changes(output_uri, in_force)
    return History(
        in_force=tuple(in_force),
        replaced=tuple(replaced),
        last_counts=find_last_counts(
            groups, rows, skus, {(bin.night, bin.bin_id) for plan in in_force for bin in plan.waiting}
        ),
        summaries=tuple(summaries[night] for night in last),
    )


def day_after(night: str) -> str:
    """What `read_history` is asked for to know what was counted by the night's own list too."""
    return (date.fromisoformat(night) + timedelta(days=1)).isoformat()


def _note_changes(output_uri: str, plans: list[PlanRecounts]) -> list[PlanRecounts]:
    """`plans`, oldest first, with `changed` for the mismatches that wait for a second count, by the records of all later
    nights, as `jobs.recount` judges them; of nights whose results were deleted nothing is known any more."""
    wanted = {
        later.audit_date: {bin.bin_id for plan in plans[:number] for bin in plan.waiting}
        for number, later in enumerate(plans)
    }
    wanted = {night: bins for night, bins in wanted.items() if bins}
    later: dict[str, list[tuple[str, NightRecord]]] = defaultdict(list)
    for (night, bin_id), record in find_records(output_uri, wanted)[0].items():
        later[bin_id].append((night, record))

    def is_changed(plan: PlanRecounts, bin_id: str, expected_qty: int, skus: list[dict[str, Any]] | None) -> bool:
        records = later.get(bin_id, [])
        return any(
            night > plan.audit_date and record.says_other_than(expected_qty, lines_of(skus))
            for night, record in records
        )

    noted = []
    for plan in plans:
        bins = zip(*(plan.planned[name].to_pylist() for name in ("bin_id", "expected_qty", "skus")), strict=True)
        noted.append(replace(plan, changed=np.array([is_changed(plan, *found) for found in bins], dtype=np.bool_)))
    return noted


def _match_plan(
    output_uri: str,
    audit_date: str,
    run_id: str,
    groups: dict[Recorded, list[Count]],
    summary: NightSummary | None,
) -> PlanRecounts:
    """A count says something about every plan of its night in which the record said the same, whichever asked."""
    planned = read_plan(output_uri, run_id)
    counted_qty, settled = np.full(planned.num_rows, np.nan), np.zeros(planned.num_rows, dtype=bool)
    bins = zip(planned["bin_id"].to_pylist(), planned["expected_qty"].to_pylist(), strict=True)
    for row, (bin_id, expected) in enumerate(bins):
        finding = resolve_counts(groups.get(Recorded(audit_date, bin_id, expected), []), expected)
        if finding is not None:
            counted_qty[row], settled[row] = finding.qty, finding.resolved
    return PlanRecounts(
        audit_date=audit_date,
        run_id=run_id,
        planned=planned,
        counted_qty=counted_qty,
        settled=settled,
        changed=np.zeros(planned.num_rows, dtype=bool),
        in_reach=_reach(planned, read_run(run_uri(output_uri, run_id))["config"]["objective"]),
        summary=summary,
    )


def _reach(planned: pa.Table, objective: str) -> Mask:
    priority = pc.equal(planned["recount"], Recount.PRIORITY).to_numpy()
    score = planned["p_record_wrong"].to_numpy().astype(np.float64)
    if objective == "value":
        score = (planned["expected_abs_variance_qty"].to_numpy() * planned["unit_value"].to_numpy()).astype(np.float64)
    # a bin that was counted not long ago stays off the list whatever its score
    listable = pc.is_null(planned["reason"]).to_numpy()
    return find_reach(score, priority) & (priority | listable)
