"""The recount plans of committed nights, those of replaced runs included: people may still be counting by them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from jobs.platform.layout import (
    COMMITTED_MARKER,
    RUN_PLAN,
    RUNS,
    list_below,
    night_of,
    read_summary_table,
    run_uri,
    whole_night,
)
from jobs.platform.parquet import read_table
from jobs.platform.uris import join
from schemas.arrow import conform, schema_problems
from schemas.errors import InputError
from schemas.recount import PLANNED_SCHEMA
from schemas.summary import SUMMARY_SCHEMA


@dataclass(frozen=True)
class NightSummary:
    """What a night's commit says about the whole night."""

    run_id: str
    bundle_id: str
    num_assessed: int
    record_outside_set_share: float | None
    """None where nothing was assessed."""
    expected_wrong: float
    net_variance_predicted: float
    gross_variance_predicted: float | None
    """None for a night of before this was summed, or of which nothing was assessed."""
    net_value_predicted: float | None
    """None for a night without unit values or with several currencies."""


def read_summary(output_uri: str, audit_date: str) -> NightSummary:
    """Raises FileNotFoundError for a night that isn't committed."""
    night = whole_night(conform(read_summary_table(output_uri, audit_date), SUMMARY_SCHEMA))
    valued = night["shortage_value"] is not None and night["overage_value"] is not None
    return NightSummary(
        night["run_id"],
        night["bundle_id"],
        night["num_assessed"],
        night["record_outside_set_share"],
        night["expected_wrong"] or 0.0,
        night["net_variance_predicted"] or 0.0,
        night["gross_variance_predicted"],
        night["overage_value"] - night["shortage_value"] if valued else None,
    )


def list_marked_runs(output_uri: str, first: str) -> dict[str, list[str]]:
    """Night -> runs marked as committed, in or out of force, at least of the nights from `first` on; one that died right
    after its commit lacks the mark."""
    runs: dict[str, list[str]] = {}
    for name in list_below(output_uri, RUNS, first):
        run_id, _, rest = name.partition("/")
        if rest == COMMITTED_MARKER:
            runs.setdefault(night_of(run_id), []).append(run_id)
    return {night: sorted(names) for night, names in runs.items()}


def read_plan(output_uri: str, run_id: str) -> pa.Table:
    """PLANNED_SCHEMA: every recount that a committed run planned. Raises InputError where it is gone or another table."""
    uri = join(run_uri(output_uri, run_id), RUN_PLAN)
    try:
        plan = read_table(uri)
    except FileNotFoundError as error:
        raise InputError(f"{uri}: expected the plan of a committed run, found nothing; restore it") from error
    if problems := schema_problems(plan.schema, PLANNED_SCHEMA):
        raise InputError(
            f"{uri}: expected the plan of a committed run, found another table ({'; '.join(problems)}); restore it"
        )
    return conform(plan, PLANNED_SCHEMA)
