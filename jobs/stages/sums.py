"""Sums over the rows of a part of the results by scope, from which the night's summary is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from schemas.bundle import class_names
from schemas.results import ImageStatus, Recount, Verdict


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
    is_assessed, is_valued = ~equal("verdict", Verdict.NOT_ASSESSED), pc.is_valid(results["unit_value"]).to_numpy()
    net, gross = column("expected_variance_qty"), column("expected_abs_variance_qty")
    scored = equal("status", ImageStatus.SCORED)
    priority = equal("recount", Recount.PRIORITY)
    # at K or more on both sides the counts can't be told apart
    differs = scored & (np.minimum(expected, top_class) != column("camera_qty"))
    columns = {
        "num_bins": np.ones(results.num_rows),
        **{f"num_{status}": equal("status", str(status)) for status in ImageStatus},
        "num_assessed": is_assessed,
        "recorded_units": expected,
        "recorded_value": expected * value,
        "num_suspect": equal("verdict", Verdict.SUSPECT),
        "num_certified": equal("verdict", Verdict.CERTIFIED),
        "num_priority": priority,
        "num_random": equal("recount", Recount.RANDOM),
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
