"""What a training worker asks for and what it gets: apart from the loop, so that the tasks that prepare photos need no
torch (its import costs a new Ray worker seconds of CPU)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.recipe import Recipe
from model.splitting import epoch_order, worker_micro_batches


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
        """Row numbers of its bins, int64 (m,), in order."""
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


def plan_epoch(bins: TrainingSet, recipe: Recipe, epoch: int, *, worker: int, num_workers: int) -> list[MicroBatch]:
    """A worker's micro-batches of an epoch (from 0), in order; each epoch has an order and an augmentation of its own."""
    train = bins.rows_of("train")
    chosen = worker_micro_batches(
        train[epoch_order(bins.hashes[train], recipe.seed, epoch)],
        batch_size=recipe.batch_size,
        micro_batch=recipe.micro_batch,
        worker=worker,
        num_workers=num_workers,
    )
    augment_epoch = epoch if recipe.augmentation > 0 else None
    return [MicroBatch(rows, recipe.image_size_of(epoch), augment_epoch) for rows in chosen]
