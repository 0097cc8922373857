from __future__ import annotations

import pyarrow as pa

from jobs.ingesting.keys import KEYS_SCHEMA
from jobs.ingesting.matching import match


def test_the_photo_of_a_bin_with_a_bad_line_is_a_reject_too() -> None:
    stems = ["bad", "good"]
    images = pa.Table.from_pylist(
        [{"key": stem, "uri": f"{stem}.jpg", "num_bytes": 5, "etag": None} for stem in stems], schema=KEYS_SCHEMA
    )
    lines = {"key": stems, "uri": ["row 2", "row 3"], "bin_id": stems, "problem": ["quantity: found 'x'", None]}
    matched, rejects = match(images, pa.table(lines))
    assert matched["bin_id"].to_pylist() == ["good"]
    found = [(row["key"], row["kind"], row["reason"]) for row in rejects.to_pylist()]
    assert found == [("bad", "image", "no_record"), ("bad", "record", "unreadable_record")]
