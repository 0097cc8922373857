"""Ids that stand more than once in a data set of any size, found with bounded memory in every process.

A set of 100,000,000 ids is gigabytes. So the ids' 64-bit hashes are split by range, each range is sorted by one task,
and only the few ids whose hash occurs twice are read again and compared as what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.platform.cluster import CHECK_CPUS
from jobs.platform.parquet import damage_named, open_parquet

PIECE_ROWS = 4_000_000
"""Ids that one task hashes (8 bytes each) and that one range of hashes holds on average."""
SPARE_CANDIDATES = 100
"""Hashes looked up beyond `limit`: two different ids share a hash once in 2**64 pairs, so a few are plenty."""


@dataclass(frozen=True)
class _Piece:
    """Whole row groups of one file."""

    uri: str
    row_groups: tuple[int, ...]
    num_rows: int


def find_duplicates(manifest_files: list[str], column: str, limit: int) -> list[tuple[str, int]]:
    """Values of the text `column` that occur more than once in all files together, with how often each occurs.

    At most `limit` pairs, sorted by value; of more duplicates the same ones are given every time. Nulls don't count.
    Raises InputError where a file is no Parquet file, FileNotFoundError where it is gone.
    """
    batches = [manifest_files[start : start + 64] for start in range(0, len(manifest_files), 64)]
    pieces = [piece for found in ray.get([_measure.remote(batch) for batch in batches]) for piece in found]
    num_ranges = max(2, -(-sum(piece.num_rows for piece in pieces) // PIECE_ROWS))  # of one Ray returns no list
    columns: list[Any] = [
        _hash_ids.options(num_returns=num_ranges).remote(piece, column, num_ranges) for piece in pieces
    ]
    wanted = limit + SPARE_CANDIDATES
    repeated = [_find_repeated.remote(wanted, *(parts[index] for parts in columns)) for index in range(num_ranges)]
    del columns
    candidates = np.sort(np.concatenate([np.empty(0, np.uint64), *ray.get(repeated)]))[:wanted]
    if not candidates.size:
        return []
    counts: Counter[str] = Counter()
    for found in ray.get([_count_ids.remote(piece, column, candidates) for piece in pieces]):
        counts.update(found)
    return sorted((value, count) for value, count in counts.items() if count > 1)[:limit]


@ray.remote(num_cpus=CHECK_CPUS)
def _measure(uris: list[str]) -> list[_Piece]:
    pieces: list[_Piece] = []
    for uri in uris:
        metadata = open_parquet(uri).metadata
        groups: list[int] = []
        num_rows = 0
        for index in range(metadata.num_row_groups):
            groups.append(index)
            num_rows += metadata.row_group(index).num_rows
            if num_rows >= PIECE_ROWS or index == metadata.num_row_groups - 1:
                pieces.append(_Piece(uri, tuple(groups), num_rows))
                groups, num_rows = [], 0
    return pieces


@ray.remote(num_cpus=CHECK_CPUS)
def _hash_ids(piece: _Piece, column: str, num_ranges: int) -> list[np.ndarray]:
    hashes = np.concatenate([np.empty(0, np.uint64), *(_hash(ids) for ids in _read_ids(piece, column))])
    hashes.sort()
    width = 2**64 // num_ranges
    bounds = np.array([width * index for index in range(1, num_ranges)], np.uint64)
    return np.split(hashes, np.searchsorted(hashes, bounds))


@ray.remote(num_cpus=CHECK_CPUS)
def _find_repeated(wanted: int, *parts: np.ndarray) -> np.ndarray:
    """The smallest `wanted` hashes that occur twice or more, each once."""
    hashes = np.concatenate(parts)
    hashes.sort()
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    return np.unique(repeated)[:wanted]


@ray.remote(num_cpus=CHECK_CPUS)
def _count_ids(piece: _Piece, column: str, candidates: np.ndarray) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for ids in _read_ids(piece, column):
        taken = ids.filter(pa.array(np.isin(_hash(ids), candidates)))
        counts.update({entry["values"]: entry["counts"] for entry in pc.value_counts(taken).to_pylist()})
    return dict(counts)


def _read_ids(piece: _Piece, column: str) -> Iterator[pa.Array]:
    parquet = open_parquet(piece.uri)
    with damage_named(piece.uri):
        for batch in parquet.iter_batches(batch_size=65536, row_groups=list(piece.row_groups), columns=[column]):
            yield batch.column(0).cast(pa.string()).drop_null()


def _hash(ids: pa.Array) -> np.ndarray:
    """The same in every process (Python's own hash is salted)."""
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
