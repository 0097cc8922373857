"""Ids that stand more than once in a data set of any size, found with bounded memory in every process.

A set of 100,000,000 ids is gigabytes. So the ids' 64-bit hashes are split by range, each range is sorted by one task,
and only the few ids whose hash occurs twice are read again and compared as what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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


MOST_PLACES = 2
"""Rows that are named of an id that stands in more than one."""

Place = tuple[str, int]
"""A file's URI, and the number of a row in it, from 1."""


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


def find_places(files: list[str], column: str, values: list[str]) -> dict[str, list[Place]]:
    """Where each of a few `values` of the text `column` stands first, in the order of the files: MOST_PLACES of it. Reads all
    files once more. Raises as `find_duplicates` does."""
    places: dict[str, list[Place]] = {value: [] for value in values}
    for uri, found in zip(files, ray.get([_find_rows.remote(uri, column, values) for uri in files]), strict=True):
        for value, rows in found.items():
            places[value] += [(uri, row) for row in rows]
    return {value: found[:MOST_PLACES] for value, found in places.items()}


@ray.remote(num_cpus=CHECK_CPUS)
def _find_rows(uri: str, column: str, values: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {value: [] for value in values}
    first_row = 1
    for ids in _read_ids(uri, None, column):
        for place in np.flatnonzero(pc.is_in(ids, pa.array(values, pa.string())).to_numpy(zero_copy_only=False)):
            found = rows[ids[int(place)].as_py()]
            if len(found) < MOST_PLACES:
                found.append(first_row + int(place))
        first_row += len(ids)
    return rows


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
    hashes = np.concatenate(
        [np.empty(0, np.uint64), *(_hash(ids.drop_null()) for ids in _read_ids(piece.uri, piece.row_groups, column))]
    )
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
    for some in _read_ids(piece.uri, piece.row_groups, column):
        ids = some.drop_null()
        taken = ids.filter(pa.array(np.isin(_hash(ids), candidates)))
        counts.update({entry["values"]: entry["counts"] for entry in pc.value_counts(taken).to_pylist()})
    return dict(counts)


def _read_ids(uri: str, row_groups: Sequence[int] | None, column: str) -> Iterator[pa.Array]:
    """Nulls included; without `row_groups` of the whole file."""
    parquet = open_parquet(uri)
    with damage_named(uri):
        for batch in parquet.iter_batches(batch_size=65536, row_groups=row_groups, columns=[column]):
            yield batch.column(0).cast(pa.string())


def _hash(ids: pa.Array) -> np.ndarray:
    """The same in every process (Python's own hash is salted)."""
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
