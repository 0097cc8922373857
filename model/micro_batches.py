"""What a training worker asks for and what it gets: apart from the loop, so that the tasks that prepare photos need no
torch (its import costs a new Ray worker seconds of CPU)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TrainingSet:
    """What training knows of its bins beside the photos; arrays of one length, sorted by bin_id."""

    hashes: np.ndarray
    """uint64: `model.splitting.id_hashes` of the bin_ids."""
    expected_qty: np.ndarray
    num_skus: np.ndarray
    splits: np.ndarray
    """train, selection or test."""

    def rows_of(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Photos that go through the network together: row numbers of the training set, and how they are prepared."""

    rows: np.ndarray
    """(n,) int64, not Python's integers: a worker plans every epoch of a training at once."""
    image_size: int
    augment_epoch: int | None
    """The epoch whose augmentation is drawn; None leaves the photos as they are."""


@dataclass(frozen=True)
class PreparedBatch:
    """A micro-batch's photos: uint8 (rows, S, S, 3), perhaps read-only, in the order of its rows, and the seconds it took by
    phase."""

    pixels: np.ndarray
    seconds: dict[str, float]


class PhotoSource(Protocol):
    """Where a worker's photos come from: streamed by Ray Data in a job, from memory in a benchmark."""

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Iterator[PreparedBatch]: ...
