"""One pass over a night's rows: the top of the list, what the list is worth, and examples of what was not assessed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting.nights import Night, read_results
from jobs.reporting.ordering import key_histogram, top_rows
from jobs.reporting.recount_lists import PLANNER_SCHEMA
from schemas.results import RESULTS_SCHEMA, ImageStatus, Reason, Recount, Verdict

TOP_ROWS = 1000
"""Bins on the page; the tables hold the rest."""

EXAMPLES = 5
UNREADABLE_ROWS = 50


@dataclass
class Overview:
    """What the page says of the whole night beyond its summary."""

    top: pa.Table = field(default_factory=RESULTS_SCHEMA.empty_table)
    """The first TOP_ROWS by doubt, RESULTS_SCHEMA."""
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    """Of the sort keys, see `ordering`."""
    num_rows: int = 0
    planned: pa.Table = field(default_factory=PLANNER_SCHEMA.empty_table)
    """The bins of tonight's plan, PLANNER_SCHEMA."""
    list_value: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Value at risk over tonight's priority list by currency; empty where no unit values are given."""
    num_list_valued: int = 0
    """Bins of that list that have a unit value."""
    num_valued: int = 0
    """Assessed bins that have one: sums of money are over these."""
    currencies: set[str | None] = field(default_factory=set)
    """Of all unit values; None for those that name none."""
    num_uncorrected: int = 0
    """Bins that a person found wrong and whose record says the same tonight."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Bins not assessed by reason."""
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The first bin_ids (in the tables' order) of each reason."""
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    """The first unreadable or rejected images: bin_id, zone, status, error, image_uri."""


def survey_night(night: Night) -> Overview:
    """Reads every row once; what it keeps grows with the plan, not with the night."""
    overview = Overview()
    overview.top = top_rows((_add(overview, rows) for rows in read_results(night)), TOP_ROWS)
    return overview


def _add(overview: Overview, rows: pa.Table) -> pa.Table:
    """`rows` themselves, once the overview has them."""
    overview.num_rows += rows.num_rows
    overview.histogram = overview.histogram + key_histogram(rows)
    planned = rows.select(PLANNER_SCHEMA.names).filter(pc.is_valid(rows["recount"]))
    overview.planned = pa.concat_tables([overview.planned, planned])
    overview.num_uncorrected += pc.sum(pc.equal(rows["reason"], Reason.COUNTED_WRONG)).as_py() or 0
    listed = rows.filter(pc.equal(rows["recount"], Recount.PRIORITY))
    for value, currency in zip(listed["value_at_risk"].to_pylist(), listed["currency"].to_pylist(), strict=True):
        if value is not None:
            overview.list_value[currency or ""] += value
            overview.num_list_valued += 1
    # of an assessed bin null where it has no unit value
    overview.num_valued += len(rows) - rows["value_at_risk"].null_count
    overview.currencies.update(pc.unique(rows["currency"].filter(pc.is_valid(rows["unit_value"]))).to_pylist())

    left_out = rows.filter(pc.equal(rows["verdict"], Verdict.NOT_ASSESSED))
    columns = left_out.select(["bin_id", "zone", "status", "reason", "error", "image_uri"])
    for reason in pc.unique(columns["reason"]).to_pylist():
        same = columns.filter(pc.equal(columns["reason"], reason))
        overview.reasons[reason or "unknown"] += same.num_rows
        kept = overview.examples[reason or "unknown"]
        kept += same["bin_id"].slice(0, EXAMPLES - len(kept)).to_pylist()
    room = UNREADABLE_ROWS - len(overview.unreadable)
    if room:
        broken = pc.is_in(columns["status"], pa.array([ImageStatus.UNREADABLE_IMAGE, ImageStatus.IMAGE_REJECTED]))
        overview.unreadable += columns.filter(broken).slice(0, room).to_pylist()
    return rows
