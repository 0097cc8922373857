"""What the tests of ingesting read: records of every kind, bins that were matched with them, lines of an export."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.ingesting.matching import match
from jobs.ingesting.parts import Target

RECORD = json.dumps({"BIN_FCSKU_DATA": {"B1": {"name": "Soap", "quantity": 2}}, "EXPECTED_QUANTITY": 2}).encode()
LINES = pa.table({"bin_id": [f"b{number}" for number in range(900)], "sku": ["S"] * 900, "quantity": [1] * 900})


def write_records(folder: Path) -> Path:
    """Records of every kind: read, no record, and one that is there but can't be opened."""
    (folder / "good.json").write_bytes(RECORD)
    (folder / "bad.json").write_bytes(b"[]")
    (folder / "loop.json").symlink_to(folder / "loop.json")
    return folder


def make_target(folder: Path) -> Target:
    return Target(str(folder / "m"), str(folder / "m.rejects"), "2026-01-31", str(folder), anonymous=False)


def matched_bins(folder: Path, *stems: str) -> pa.Table:
    """As match_range gives them."""
    images = [(stem, f"{folder}/{stem}.jpg", 5, None) for stem in stems]
    keys = pa.table(dict(zip(("key", "uri", "num_bytes", "etag"), map(list, zip(*images, strict=True)), strict=True)))
    keys = keys.set_column(3, "etag", pa.nulls(len(stems), pa.string()))
    found = pa.table(
        {
            "key": list(stems),
            "uri": [f"{folder}/{stem}.json" for stem in stems],
            "bin_id": list(stems),
            "problem": pa.nulls(len(stems), pa.string()),
        }
    )
    matched, _ = match(keys, found)
    numbers = pa.array([0] * matched.num_rows, pa.int32())
    return matched.append_column("range", numbers).append_column("slice", numbers)


def damaged_parquet(table: pa.Table, path: Path, place: int) -> str:
    """`table` in a file of which 40 bytes from `place` on are overwritten."""
    pq.write_table(table, path, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    return str(path)
