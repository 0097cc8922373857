"""The summary of a night: sums over each scope, added up part by part, and the row that is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from schemas.bundle import class_names
from schemas.results import ImageStatus, Recount, Verdict
from schemas.summary import SUMMARY_SCHEMA

AT_STAKE = ("shortage_value", "overage_value", "value_at_risk")
"""Sums over the assessed bins that have a unit value."""

MONEY = ("recorded_value", *AT_STAKE)
"""Sums that need unit values of one currency."""

PREDICTED = ("expected_wrong", "net_variance_predicted", "gross_variance_predicted")
"""Sums over the assessed bins: of none they say nothing, which is not that nothing is wrong."""


def sum_scopes(results: pa.Table, outside: np.ndarray, top_class: int) -> pd.DataFrame:
    """The summary's columns, the numerators of its shares, and the bins with a unit_value and of them the assessed, summed
    over each scope: one row each for ("all", ""), ("zone", its name), ("abc_class", …) and ("expected_qty", …).

    `outside` (n,): assessed, and the record lies outside the camera's 90 % set.
    """

    def column(name: str) -> np.ndarray:
        return np.nan_to_num(results[name].to_numpy(zero_copy_only=False).astype(np.float64))

    def equal(name: str, value: str) -> np.ndarray:
        return pc.fill_null(pc.equal(results[name], value), False).to_numpy()

    expected, value = column("expected_qty"), column("unit_value")
    is_assessed, is_valued = ~equal("verdict", str(Verdict.NOT_ASSESSED)), pc.is_valid(results["unit_value"]).to_numpy()
    net, gross = column("expected_variance_qty"), column("expected_abs_variance_qty")
    scored = equal("status", str(ImageStatus.SCORED))
    priority = equal("recount", str(Recount.PRIORITY))
    # at K or more on both sides the counts can't be told apart
    differs = scored & (np.minimum(expected, top_class) != column("camera_qty"))
    columns = {
        "num_bins": np.ones(results.num_rows),
        **{f"num_{status}": equal("status", str(status)) for status in ImageStatus},
        "num_assessed": is_assessed,
        "recorded_units": expected,
        "recorded_value": expected * value,
        "num_suspect": equal("verdict", str(Verdict.SUSPECT)),
        "num_certified": equal("verdict", str(Verdict.CERTIFIED)),
        "num_priority": priority,
        "num_random": equal("recount", str(Recount.RANDOM)),
        "exp_wrong_in_list": np.where(priority, column("p_record_wrong"), 0.0),
        "num_mismatch": differs,
        "num_outside": outside,
        "expected_wrong": column("p_record_wrong"),
        "net_variance_predicted": net,
        "gross_variance_predicted": gross,
        "num_valued": is_valued,
        "num_valued_assessed": is_valued & is_assessed,
        # E max(-d, 0) and E max(d, 0): a bin that may be short and may be over is both, they don't cancel
        "shortage_value": (gross - net) / 2 * value,
        "overage_value": (gross + net) / 2 * value,
        "value_at_risk": column("value_at_risk"),
    }
    frame = pd.DataFrame(columns, dtype=np.float64)
    names = class_names(top_class)
    quantity = [names[min(int(qty), top_class)] for qty in expected]
    scopes = {
        "all": [""] * results.num_rows,
        "zone": [zone or None for zone in results["zone"].to_pylist()],
        "abc_class": [name or None for name in results["abc_class"].to_pylist()],
        "expected_qty": quantity,
    }
    parts = {scope: frame.groupby(np.array(of_scope, dtype=object)).sum() for scope, of_scope in scopes.items()}
    return pd.concat(parts, names=["scope", "scope_value"])


def add_up(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The sums of `sum_scopes` over all bins, from those of disjoint parts."""
    return pd.concat(parts).groupby(["scope", "scope_value"]).sum()


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


def _plain(value: object) -> object:
    """NaN, which an estimate without evidence is, as null."""
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value
