"""The summary of a night: a row per scope, of the sums over it and of what the run settled, believed and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from jobs.counting.belief import Belief
from jobs.stages.conclude import Decisions
from jobs.stages.progress import Progress
from jobs.stages.tonight import Tonight
from schemas.summary import SUMMARY_SCHEMA

AT_STAKE = ("shortage_value", "overage_value", "value_at_risk")
"""Sums over the assessed bins that have a unit value."""

MONEY = ("recorded_value", *AT_STAKE)
"""Sums that need unit values of one currency."""

PREDICTED = ("expected_wrong", "net_variance_predicted", "gross_variance_predicted")
"""Sums over the assessed bins: of none they say nothing, which is not that nothing is wrong."""


def summarize_night(
    sums: pd.DataFrame,
    tonight: Tonight,
    belief: Belief,
    decisions: Decisions,
    progress: Progress,
    seconds: float,
) -> pa.Table:
    """SUMMARY_SCHEMA of the night whose results have these `sums` (of `add_up`); both passes took so many `seconds`."""
    of_whole = _facts_of_whole(tonight, belief, decisions, progress, seconds)
    facts_of = {("all", None): of_whole, **_facts_of_zones(belief)}
    return summarize(sums, _facts_of_night(tonight, belief, decisions), facts_of, tonight.manifest.currencies)


def summarize(
    sums_by_scope: pd.DataFrame,
    facts: dict[str, object],
    facts_of: Mapping[tuple[str, str | None], dict[str, object]],
    currencies: Sequence[str | None],
) -> pa.Table:
    """SUMMARY_SCHEMA, one row per scope: the sums (of `add_up`), `facts` in every row, `facts_of` a scope and its value in
    that row.

    `currencies` of the night's unit values. Money is null in a scope without any (what is at stake: without any of an
    assessed bin), and everywhere where there are several; what is predicted is null in a scope of which nothing was assessed.
    """
    rows = []
    # the whole night's row first
    for sums in sorted(sums_by_scope.reset_index().to_dict("records"), key=lambda sums: sums["scope"] != "all"):
        scope, value = sums.pop("scope"), sums.pop("scope_value") or None
        row: dict[str, Any] = {
            str(name): round(total) if str(name).startswith("num_") or name == "recorded_units" else total
            for name, total in sums.items()
        }
        row |= facts | {"scope": scope, "scope_value": value}
        row["coverage"] = sums["num_assessed"] / sums["num_bins"]
        row["naive_mismatch_share"] = sums["num_mismatch"] / sums["num_scored"] if sums["num_scored"] else None
        row["record_outside_set_share"] = sums["num_outside"] / sums["num_assessed"] if sums["num_assessed"] else None
        if not sums["num_valued"] or len(currencies) > 1:
            row |= dict.fromkeys(MONEY)
        if not sums["num_valued_assessed"]:
            row |= dict.fromkeys(AT_STAKE)
        if not sums["num_assessed"]:
            row |= dict.fromkeys(PREDICTED)
        row |= facts_of.get((scope, value), {})
        rows.append({name: _plain(row.get(name)) for name in SUMMARY_SCHEMA.names})
    return pa.Table.from_pylist(rows, schema=SUMMARY_SCHEMA)


def _facts_of_night(tonight: Tonight, belief: Belief, decisions: Decisions) -> dict[str, object]:
    """What stands in every row of the summary."""
    calibration = tonight.bundle.calibration
    return {
        "run_id": tonight.run_id,
        "bundle_id": tonight.bundle.bundle_id,
        "calibration_id": belief.calibration_id,
        "record_model": belief.state,
        "record_error_rate_used": belief.record_model.error_rate,
        "label_noise_used": belief.noise_rate,
        "temperature": 1 / calibration.weight[0][0] if calibration.method == "temperature" else None,
        "alpha": max((alpha for alpha, limit in decisions.thresholds.items() if limit > 0), default=None),
        # recounts are estimated from for the whole night only
        "estimator": "none",
        "window_nights": 0,
        "num_random_window": 0,
        "num_priority_window": 0,
        "num_pending_window": 0,
    }


def _facts_of_whole(
    tonight: Tonight, belief: Belief, decisions: Decisions, progress: Progress, seconds: float
) -> dict[str, object]:
    """What stands in the summary's row of the whole night only."""
    price = None
    if tonight.config.node_price is not None and progress.has_scored_all():
        hours = seconds / 3600 * tonight.resources.num_nodes
        price = tonight.config.node_price * hours / progress.num_fresh * 1000
    return {
        **asdict(belief.estimates),
        "drill_recall": decisions.drill_recall,
        "drift_alarm": decisions.drift_alarm,
        "images_per_second": progress.images_per_second(),
        "price_per_1000_images": price,
    }


def _facts_of_zones(belief: Belief) -> dict[tuple[str, str | None], dict[str, object]]:
    """What stands in the summary's rows of zones only."""
    rates = belief.record_model.zone_error_rates
    return {("zone", zone): {"record_error_rate_used": rate} for zone, rate in rates.items()}


def _plain(value: object) -> object:
    """NaN, which an estimate without evidence is, as null."""
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value
