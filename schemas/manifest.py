"""The manifest: the night's work list, one row per bin with its record and its image."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import TIMESTAMP, column

FORMAT_VERSION = "1"
"""Of the manifest's file metadata: `audit_date`, `images_uri`, `format_version`."""

NIGHT_YEARS = range(2000, 2101)
"""What is further off is no night but some program's zero or infinity, such as 0001-01-01."""

MAX_UNIT_VALUE = 1e12
"""More is no price; sums over a night of such values stay finite."""

SKU_LINE = pa.struct(
    [
        column("sku", pa.string(), "Stock keeping unit; in ABID the ASIN."),
        column("name", pa.string(), "Its name as the record gives it."),
        column("quantity", pa.int32(), "Pieces of it that the record expects."),
    ]
)

RECORD_COLUMNS = [
    column("bin_id", pa.string(), "Key of the storage location; in ABID the file's stem.", required=True),
    column("image_uri", pa.string(), "The photo: a local path or s3://bucket/key.", required=True),
    column("expected_qty", pa.int32(), "Pieces that the record expects in the bin, all SKUs together.", required=True),
    column("num_skus", pa.int32(), "Different SKUs that the record expects.", required=True),
    column("skus", pa.list_(SKU_LINE), "The record line by line.", required=True),
    column(
        "sku",
        pa.string(),
        "The SKU of a bin that holds one only, from `skus` where a manifest has no such column; null in mixed and empty bins.",
    ),
    column("zone", pa.string(), "Part of the warehouse."),
    column("abc_class", pa.string(), "Class by usage value (A, B, C), as the warehouse gives it."),
    column(
        "unit_value",
        pa.float64(),
        "Value of one piece (mean over the pieces of a mixed bin, over the lines of an empty one).",
    ),
    column("currency", pa.string(), "Currency of unit_value (ISO 4217)."),
    column("photo_at", TIMESTAMP, "When the photo was taken."),
    column("expected_as_of", TIMESTAMP, "When the record was read from the inventory system."),
]
"""The columns that the results repeat."""

MANIFEST_SCHEMA = pa.schema(
    [
        *RECORD_COLUMNS,
        column(
            "group",
            pa.string(),
            "What must not be split between training and test: ABID's block of 100 bins, else the first SKU (mixed bins may share others).",
        ),
        column("moves_since_photo", pa.int32(), "Stock movements of the bin since the photo was taken."),
        column(
            "image_etag",
            pa.string(),
            "ETag of the photo when it was listed; another one in S3, or of another image_bytes, is not scored.",
        ),
        column("image_bytes", pa.int64(), "Size of the photo in bytes when it was listed."),
        column("record_inconsistent", pa.bool_(), "expected_qty differs from the sum of its lines.", required=True),
    ]
)

REJECTS_SCHEMA = pa.schema(
    [
        column("key", pa.string(), "The image's or record's stem, else its URI or row.", required=True),
        column("kind", pa.string(), "`image` or `record`.", required=True),
        column(
            "reason",
            pa.string(),
            "`no_record`, `no_image`, `unreadable_record`, `duplicate_image`, `duplicate_record`.",
            required=True,
        ),
        column("detail", pa.string(), "What was expected and what was found."),
    ]
)
"""`<manifest_uri>.rejects`: every image without a record, record without an image, unreadable record."""


def stock_moved(rows: pa.Table) -> pa.ChunkedArray:
    """(n,) boolean: stock moved since the photo, so that the record is not of what the photo shows."""
    return pc.greater(pc.fill_null(rows["moves_since_photo"], 0), 0)


def is_night(text: str) -> bool:
    """Whether it is YYYY-MM-DD of NIGHT_YEARS, by which nights are named and sorted; Python also reads other forms of ISO
    8601."""
    try:
        return date.fromisoformat(text).isoformat() == text and int(text[:4]) in NIGHT_YEARS
    except ValueError:
        return False
