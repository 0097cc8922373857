"""Rows with the same key are brought together: chunks are cut by ranges of keys, and a range's pieces meet in one task.

The ranges hold about PARTITION_ROWS rows each, so that one fits in a task's memory however many rows there are; they
follow the keys' order, so that the manifest comes out sorted. The driver holds references only: one per range and
SPLIT_CHUNKS chunks.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa
import ray

from jobs.ingesting.keys import ChunkInfo
from jobs.platform.line_timer import LineTimer

PARTITION_ROWS = 500_000
SPLIT_CHUNKS = 10

logger = logging.getLogger("jobs.ingest")


@dataclass
class Chunks:
    """All chunks of some sources, as references, and the sums of their infos."""

    refs: list[Any] = field(default_factory=list)
    num_rows: int = 0
    sample: list[str] = field(default_factory=list)
    num_others: int = 0
    others: list[str] = field(default_factory=list)
    num_repeated: int = 0
    repeated: list[str] = field(default_factory=list)


def collect(what: str, generators: Sequence[Any]) -> Chunks:
    """Follows the sources to their ends, with a line about the progress now and then. Raises what a source raises."""
    chunks = Chunks()
    started, timer = time.monotonic(), LineTimer(5.0)
    for generator in generators:
        for info_ref in generator:
            info: ChunkInfo = ray.get(info_ref)
            chunks.refs.append(next(generator))
            chunks.num_rows += info.num_rows
            chunks.sample += info.sample
            chunks.num_others += info.num_others
            chunks.others = (chunks.others + info.others)[:3]
            chunks.num_repeated += info.num_repeated
            chunks.repeated = (chunks.repeated + info.repeated)[:3]
            if timer.is_due():
                rate = chunks.num_rows / (time.monotonic() - started)
                logger.info("%s: %s so far (%s/s)", what, f"{chunks.num_rows:,}", f"{rate:,.0f}")
    logger.info("%s: %s in %.1f s", what, f"{chunks.num_rows:,}", time.monotonic() - started)
    return chunks


def choose_bounds(*sources: Chunks) -> list[str]:
    """The keys that the ranges begin with, but for the first range."""
    num_ranges = -(-sum(chunks.num_rows for chunks in sources) // PARTITION_ROWS)
    sample = sorted(key for chunks in sources for key in chunks.sample)
    return sorted({sample[len(sample) * index // num_ranges] for index in range(1, num_ranges)})


def exchange(chunks: Chunks, bounds: list[str]) -> list[list[Any]]:
    """For each range of keys the references of its pieces."""
    ranges: list[list[Any]] = [[] for _ in range(len(bounds) + 1)]
    split: Any = _split.options(num_returns=len(ranges))
    for start in range(0, len(chunks.refs), SPLIT_CHUNKS):
        pieces = split.remote(bounds, *chunks.refs[start : start + SPLIT_CHUNKS])
        for pieces_of_range, piece in zip(ranges, [pieces] if len(ranges) == 1 else pieces, strict=True):
            pieces_of_range.append(piece)
    chunks.refs = []
    return ranges


@ray.remote
def _split(bounds: list[str], *chunks: pa.Table) -> list[pa.Table] | pa.Table:
    table = merge(chunks)
    if not bounds:
        return table
    keys = table["key"].combine_chunks()
    cuts = [0, *(bisect_left(keys, bound, key=lambda scalar: scalar.as_py()) for bound in bounds), table.num_rows]
    return [table.slice(start, stop - start) for start, stop in pairwise(cuts)]


def merge(pieces: Sequence[pa.Table]) -> pa.Table:
    """One table, sorted by key and then by what else tells rows apart, whatever order the pieces came in."""
    table = pa.concat_tables(pieces)
    order = [(name, "ascending") for name in ("key", "uri", "row") if name in table.column_names]
    return table.sort_by(order).combine_chunks()
