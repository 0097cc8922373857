"""What the records say: counts that add up shard by shard, and the few most suspicious ones."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.platform.cluster import CHECK_CPUS
from jobs.stages.worklist import Shard, shard_dataset, shards_in
from schemas.manifest import MANIFEST_SCHEMA

MOST_PIECES = 200
"""Larger quantities are counted together, so that the counts stay few."""
MOST_SKUS = 50
NUM_LISTED = 12
GROUPS_PER_PARTITION = 1_000_000
OPTIONAL_COLUMNS = [field.name for field in MANIFEST_SCHEMA if field.nullable]


@dataclass
class RecordFacts:
    """Of some bins: counts and lists that can be merged with those of other bins."""

    num_bins: int = 0
    quantities: Counter[int] = field(default_factory=Counter)
    """Bins by recorded quantity, MOST_PIECES and more together."""
    num_skus: Counter[int] = field(default_factory=Counter)
    """Bins by number of SKUs, MOST_SKUS and more together."""
    filled: Counter[str] = field(default_factory=Counter)
    """Bins in which an optional column holds a value."""
    num_inconsistent: int = 0
    inconsistent: list[dict[str, Any]] = field(default_factory=list)
    """The first NUM_LISTED by bin_id: bin_id, image_uri, expected_qty, lines_qty, record_inconsistent, names."""
    largest: list[dict[str, Any]] = field(default_factory=list)
    """The NUM_LISTED largest quantities, likewise."""

    def merge(self, other: RecordFacts) -> None:
        self.num_bins += other.num_bins
        self.num_inconsistent += other.num_inconsistent
        self.quantities.update(other.quantities)
        self.num_skus.update(other.num_skus)
        self.filled.update(other.filled)
        self.inconsistent = heapq.nsmallest(
            NUM_LISTED, self.inconsistent + other.inconsistent, key=lambda row: row["bin_id"]
        )
        self.largest = heapq.nsmallest(
            NUM_LISTED, self.largest + other.largest, key=lambda row: (-row["expected_qty"], row["bin_id"])
        )


def gather_facts(rows: pa.Table) -> RecordFacts:
    """The facts of manifest rows (MANIFEST_SCHEMA)."""
    odd = rows.filter(rows["record_inconsistent"]).sort_by("bin_id").slice(0, NUM_LISTED)
    order = pc.sort_indices(rows, sort_keys=[("expected_qty", "descending"), ("bin_id", "ascending")])
    return RecordFacts(
        num_bins=rows.num_rows,
        quantities=_count(rows["expected_qty"], MOST_PIECES),
        num_skus=_count(rows["num_skus"], MOST_SKUS),
        filled=Counter({name: rows.num_rows - rows[name].null_count for name in OPTIONAL_COLUMNS}),
        num_inconsistent=pc.sum(rows["record_inconsistent"]).as_py() or 0,
        inconsistent=[_describe(row) for row in odd.to_pylist()],
        largest=[_describe(row) for row in rows.take(order[:NUM_LISTED]).to_pylist()],
    )


def _count(column: pa.ChunkedArray, highest: int) -> Counter[int]:
    found = pc.value_counts(pc.min_element_wise(column, pa.scalar(highest, column.type)))
    return Counter({entry["values"]: entry["counts"] for entry in found.to_pylist()})


def _describe(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "bin_id": row["bin_id"],
        "image_uri": row["image_uri"],
        "expected_qty": row["expected_qty"],
        "lines_qty": sum(line["quantity"] or 0 for line in row["skus"]),
        "record_inconsistent": row["record_inconsistent"],  # not so where a record names no lines
        "names": [(line["name"] or line["sku"] or "")[:80] for line in row["skus"][:3]],
    }


def count_groups(shards: list[Shard]) -> Counter[int]:
    """Size of a group (bins that must not be split between training and test) to how many groups have it."""
    num_rows = sum(shard.num_rows for shard in shards)
    sizes = (
        shard_dataset(shards)
        .map_batches(_count_shard_groups, batch_size=None, batch_format="pyarrow", num_cpus=CHECK_CPUS)
        .groupby("group", num_partitions=1 + num_rows // GROUPS_PER_PARTITION)
        .sum("bins")
        .map_batches(_count_sizes, batch_size=None, batch_format="pyarrow", num_cpus=CHECK_CPUS)
    )
    counts: Counter[int] = Counter()
    for row in sizes.iter_rows():
        counts[row["size"]] += row["groups"]
    return counts


def _count_shard_groups(items: pa.Table) -> pa.Table:
    groups = [shard.read()["group"].drop_null() for shard in shards_in(items)]
    found = pc.value_counts(pa.chunked_array([chunk for column in groups for chunk in column.chunks], pa.string()))
    return pa.table({"group": found.field("values"), "bins": found.field("counts")})


def _count_sizes(groups: pa.Table) -> pa.Table:
    found = pc.value_counts(groups["sum(bins)"])
    return pa.table({"size": found.field("values"), "groups": found.field("counts")})
