"""Promises kept: what past nights claimed about their lists, against what people found; and who is wrong again.

A count that agrees with the record is final; one that differs counts once a second blind count confirmed it, and is
pending until then (statistics note, rule G). Claims and finds are compared over the same resolved bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from jobs.reporting.nights import Night, read_plan
from model.estimators import wilson_interval
from schemas.results import Recount

WINDOW_NIGHTS = 30

MAX_OFFENDERS = 25


@dataclass(frozen=True)
class Promise:
    """One night's priority list, over its resolved bins; value is None where unit values are missing."""

    audit_date: str
    num_listed: int
    num_resolved: int
    num_pending: int
    claimed_hits: float
    found_hits: int
    claimed_value: float | None
    found_value: float | None

    @property
    def claimed_precision(self) -> float | None:
        return self.claimed_hits / self.num_resolved if self.num_resolved else None

    @property
    def found_precision(self) -> float | None:
        return self.found_hits / self.num_resolved if self.num_resolved else None

    @property
    def found_interval(self) -> tuple[float, float] | None:
        """95 %, Wilson."""
        return wilson_interval(self.found_hits / self.num_resolved, self.num_resolved) if self.num_resolved else None


def latest_counts(counted: pa.Table) -> pd.DataFrame:
    """One row per night and bin: the last count, with `wrong` and `resolved`."""
    frame = counted.to_pandas()
    frame = frame.sort_values(["counted_at", "counter_id"], kind="stable")
    frame = frame.drop_duplicates(["run_id", "bin_id"], keep="last")
    frame["wrong"] = frame["counted_qty"] != frame["expected_qty"]
    frame["resolved"] = ~frame["wrong"] | frame["confirmed"].fillna(False).astype(bool)
    return frame


def keep_promises(nights: list[Night], counts: pd.DataFrame) -> list[Promise]:
    """One Promise per night, in their order."""
    listed = counts[counts["recount"] == str(Recount.PRIORITY)]
    return [_promise(night, listed[listed["run_id"] == night.run_id]) for night in nights]


def _promise(night: Night, listed: pd.DataFrame) -> Promise:
    resolved = listed[listed["resolved"]]
    claimed = resolved["expected_abs_variance_qty"] * resolved["unit_value"]
    found = (resolved["counted_qty"] - resolved["expected_qty"]).abs() * resolved["unit_value"]
    valued = len(resolved) > 0 and bool(resolved["unit_value"].notna().all())
    return Promise(
        audit_date=night.audit_date,
        num_listed=night.whole["num_priority"],
        num_resolved=len(resolved),
        num_pending=len(listed) - len(resolved),
        claimed_hits=float(resolved["p_record_wrong"].sum()),
        found_hits=int(resolved["wrong"].sum()),
        claimed_value=float(claimed.sum()) if valued else None,
        found_value=float(found.sum()) if valued else None,
    )


def find_offenders(nights: list[Night], counts: pd.DataFrame) -> pd.DataFrame:
    """Bins found wrong twice or more, or on the priority list three times or more, in these nights.

    Columns bin_id, zone, listed, counted, wrong, last_counted_at; the worst first, at most MAX_OFFENDERS.
    """
    resolved = counts[counts["resolved"]]
    found = resolved.groupby("bin_id").agg(
        counted=("bin_id", "size"), wrong=("wrong", "sum"), last_counted_at=("counted_at", "max")
    )
    plans = pa.concat_tables([read_plan(night) for night in nights]).to_pandas()
    plans = plans[plans["recount"] == str(Recount.PRIORITY)]
    listed = plans.groupby("bin_id").agg(listed=("bin_id", "size"), zone=("zone", "last"))
    joined = listed.join(found, how="outer")
    for name in ("listed", "counted", "wrong"):
        joined[name] = joined[name].fillna(0).astype(int)
    offenders = joined[(joined["wrong"] >= 2) | (joined["listed"] >= 3)].reset_index()
    return offenders.sort_values(["wrong", "listed", "bin_id"], ascending=[False, False, True]).head(MAX_OFFENDERS)
