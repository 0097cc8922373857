"""The results: one row per manifest row, with what the camera counted and what the audit concludes."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

from schemas.arrow import TIMESTAMP, column
from schemas.manifest import RECORD_COLUMNS


class ImageStatus(StrEnum):
    """What happened to the image."""

    SCORED = "scored"
    MISSING_IMAGE = "missing_image"
    FETCH_FAILED = "fetch_failed"
    UNREADABLE_IMAGE = "unreadable_image"
    IMAGE_REJECTED = "image_rejected"


class Verdict(StrEnum):
    """What the audit concludes about one bin's record."""

    CERTIFIED = "certified"
    SUSPECT = "suspect"
    OK = "ok"
    NOT_ASSESSED = "not_assessed"


class Reason(StrEnum):
    """Why a bin was not assessed although its image was scored (else the image's status), or why it was kept off the
    priority list: a person counted it not long ago, and its record says the same since."""

    MOVED = "moved"
    STALE_PHOTO = "stale_photo"
    POOR_PHOTO = "poor_photo"
    TRAINING_PHOTO = "training_photo"
    COUNTED = "counted"
    COUNTED_WRONG = "counted_wrong"
    SECOND_COUNT = "second_count"


class Recount(StrEnum):
    """Why a person is sent."""

    PRIORITY = "priority"
    RANDOM = "random"


FOUND_WRONG = pa.array([Reason.COUNTED_WRONG, Reason.SECOND_COUNT])
"""Reasons of bins whose record people have found wrong, or one person has."""

STATUS_COLUMNS = [
    column("run_id", pa.string(), "The run that wrote the row; join on it and audit_date.", required=True),
    column("status", pa.string(), f"What happened to the image: {', '.join(ImageStatus)}.", required=True),
    column("error", pa.string(), "What was found, for an image that was not scored."),
]

CAMERA_COLUMNS = [
    column("camera_qty", pa.int32(), "The camera's most probable count; the top class means that many or more."),
    column("camera_is_top_class", pa.bool_(), "Whether camera_qty is the top class."),
    column(
        "qty_low",
        pa.int32(),
        "Smallest count of the camera's 90 % set, which may leave out counts between and holds at least the most probable one.",
    ),
    column("qty_high", pa.int32(), "Largest count of the camera's 90 % set."),
    column(
        "variance_qty",
        pa.int32(),
        "camera_qty - expected_qty; negative is a shortage; 0 where both reach the top class.",
    ),
    column("probabilities", pa.list_(pa.float32()), "Calibrated probability of each count 0, 1, ..., top class."),
    column(
        "p_expected",
        pa.float32(),
        "The camera's own probability of the recorded quantity (of the top class, where it reaches it).",
    ),
]
"""The camera alone; null where the image was not scored."""

POSTERIOR_COLUMNS = [
    column(
        "p_record_wrong",
        pa.float32(),
        "P(true quantity differs from the record); of a record in the top class, P(it is below that).",
    ),
    column("p_short", pa.float32(), "P(fewer pieces than recorded | photo, record)."),
    column("p_over", pa.float32(), "P(more pieces than recorded | photo, record); 0 for a record in the top class."),
    column("p_empty", pa.float32(), "P(the bin is empty | photo, record)."),
    column(
        "likely_qty",
        pa.int32(),
        "The most probable true quantity other than the recorded one; the top class means that or more.",
    ),
    column(
        "expected_variance_qty",
        pa.float32(),
        "E(true - recorded pieces | photo, record); negative is a shortage; differences within the top class not counted.",
    ),
    column("expected_abs_variance_qty", pa.float32(), "E|true - recorded pieces| given photo and record, likewise."),
    column("value_at_risk", pa.float64(), "expected_abs_variance_qty times unit_value."),
]
"""Camera and record together; null where the bin is not assessed."""

CONCLUSION_COLUMNS = [
    column("verdict", pa.string(), f"The conclusion: {', '.join(Verdict)}; ok means not suspected.", required=True),
    column(
        "reason",
        pa.string(),
        "Why the bin was not assessed, or kept off the priority list as counted not long ago: `counted` (right, or corrected to it), `counted_wrong`, `second_count` (waits for one).",
    ),
    column("rank", pa.int32(), "Place in tonight's priority list, 1 first."),
    column("recount", pa.string(), "Whether a person is sent: priority or random."),
    column(
        "inclusion_probability",
        pa.float32(),
        "1 for priority, for random sample size over assessed bins: no weight by itself, as a random bin that scores above the list's lowest would have been counted in any case and stands for itself.",
    ),
    column(
        "certificate_p",
        pa.float32(),
        "Conformal p-value against the random recounts; also where they are too few (below 200) to certify any bin.",
    ),
    column(
        "certified_at",
        pa.float32(),
        "Smallest false-discovery rate at which the bin is certified, null below 200 random counts; a rate holds for all bins up to it together. Ask for `<= 0.301`, not `<= 0.3`: in double precision (Spark) the stored 0.3 is a little more.",
    ),
    column("last_counted_at", TIMESTAMP, "When a person last counted the bin."),
    column("last_counted_qty", pa.int32(), "What that person counted."),
    column("num_counted", pa.int32(), "How often the bin was counted so far.", required=True),
    column("bundle_id", pa.string(), "The bundle that scored the photo.", required=True),
    column("calibration_id", pa.string(), "Record model and calibration in force for the run.", required=True),
]

RESULTS_SCHEMA = pa.schema([*RECORD_COLUMNS, *STATUS_COLUMNS, *CAMERA_COLUMNS, *POSTERIOR_COLUMNS, *CONCLUSION_COLUMNS])
