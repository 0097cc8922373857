"""Recounts: the plan that a night makes, the file that comes back, and the append-only table of counted bins."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

from schemas.arrow import TIMESTAMP, column
from schemas.manifest import SKU_LINE

_ASSESSED_COLUMNS = [
    column("rank", pa.int32(), "Place in the priority list, 1 first; null for random."),
    column("p_record_wrong", pa.float32(), "P(true quantity differs from the record) that night.", required=True),
    column("expected_variance_qty", pa.float32(), "E(true - recorded pieces) that night.", required=True),
    column("expected_abs_variance_qty", pa.float32(), "E|true - recorded pieces| that night.", required=True),
    column("unit_value", pa.float64(), "Value of one piece that night."),
    column("camera_qty", pa.int32(), "The camera's most probable count that night.", required=True),
    column("expected_as_of", TIMESTAMP, "When that night's record was read from the inventory system."),
    column("skus", pa.list_(SKU_LINE), "That night's record line by line."),
]

PLANNED_SCHEMA = pa.schema(
    [
        column("bin_id", pa.string(), "The bin to count.", required=True),
        column("recount", pa.string(), "priority (from the ranking) or random (the audit sample).", required=True),
        column(
            "inclusion_probability",
            pa.float32(),
            "1 for priority, else sample size over assessed bins; no weight by itself: see results.",
            required=True,
        ),
        column("zone", pa.string(), "Part of the warehouse."),
        column("expected_qty", pa.int32(), "Pieces that the record expects.", required=True),
        column("probabilities", pa.list_(pa.float32()), "The camera's answer, calibrated.", required=True),
        column("bundle_id", pa.string(), "The bundle that scored the photo.", required=True),
        *_ASSESSED_COLUMNS,
        column("currency", pa.string(), "Of unit_value."),
        column(
            "certified_at", pa.float32(), "Smallest false-discovery rate at which the bin was certified; null for none."
        ),
        column(
            "reason",
            pa.string(),
            "`counted`, `counted_wrong` or `second_count` for a random bin that was kept off the priority list; else null.",
        ),
    ]
)
"""`runs/<run_id>/plan.parquet`: every planned recount with what learning from it will need; kept for good."""

RECOUNT_PLAN_SCHEMA = pa.schema(
    [
        column("run_id", pa.string(), "The run that made the plan.", required=True),
        *(
            PLANNED_SCHEMA.field(name)
            for name in ("bin_id", "recount", "rank", "inclusion_probability", "zone", "expected_qty")
        ),
    ]
)
"""`recount_plan`: what of it is published."""

COUNTS_SCHEMA = pa.schema(
    [
        column("bin_id", pa.string(), "The bin that was counted.", required=True),
        column("audit_date", pa.string(), "The night whose plan asked for it, YYYY-MM-DD.", required=True),
        column("counted_qty", pa.int32(), "Pieces that the person found.", required=True),
        column(
            "counted_at",
            TIMESTAMP,
            "When it was counted; a day without a time is its beginning in the --time-zone of jobs.recount (refused on the day on which the record was read).",
            required=True,
        ),
        column(
            "counter_id",
            pa.string(),
            "Who counted; neither letter case, zeros in front nor a spreadsheet's apostrophe make another person.",
        ),
        column("confirmed", pa.bool_(), "Whether a second blind count agreed."),
        column("reason_code", pa.string(), "The warehouse's own code for what was found."),
    ]
)
"""What comes back from the floor (CSV or Parquet)."""

COUNTED_SCHEMA = pa.schema(
    [
        *COUNTS_SCHEMA,
        column("run_id", pa.string(), "The run whose plan asked for it.", required=True),
        column("expected_qty", pa.int32(), "What the record expected that night.", required=True),
        column("probabilities", pa.list_(pa.float32()), "The camera's answer that night."),
        column("recount", pa.string(), "priority or random.", required=True),
        column("inclusion_probability", pa.float32(), "As the plan stored it.", required=True),
        column("bundle_id", pa.string(), "The bundle that scored the photo.", required=True),
        *(field.with_nullable(True) for field in _ASSESSED_COLUMNS),
    ]
)
"""`counted`: append-only, one object per call of jobs.recount. A count that is confirmed, or signed, later stands there a
second time."""


class RejectReason(StrEnum):
    """Why a row of a counts file was not taken in."""

    MALFORMED_ROW = "malformed_row"
    MISSING_VALUE = "missing_value"
    BAD_DATE = "bad_date"
    BAD_QUANTITY = "bad_quantity"
    NEGATIVE_QUANTITY = "negative_quantity"
    BAD_FLAG = "bad_flag"
    BAD_COUNTER = "bad_counter"
    UNKNOWN_NIGHT = "unknown_night"
    UNKNOWN_BIN = "unknown_bin"
    NOT_PLANNED = "not_planned"
    BEFORE_NIGHT = "before_night"
    IN_FUTURE = "in_future"
    RECORD_CHANGED = "record_changed"
    COUNTED_TWICE = "counted_twice"
    IMPLAUSIBLE_QUANTITY = "implausible_quantity"
