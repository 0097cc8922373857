"""Which bins train, which select and which test; and the order in which an epoch takes them.

Everything is keyed by hashes of ids and seeds, so it is the same in any order of the manifest and on any workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from schemas.errors import InputError

SPLITS = ("train", "selection", "test")
MIN_GROUPS = 5


def split_groups(groups: np.ndarray, *, seed: int, selection_share: float, test_share: float) -> np.ndarray:
    """`train`, `selection` or `test` for each bin (n,); bins of one group share a split.

    Groups are taken in the order of SHA-256(seed, group): first for test until it holds `test_share` of the
    bins, then for selection, the rest trains. Selection and test hold at least two groups: calibration is cross-fitted
    by group, and the intervals of the figures come from resampling groups.
    Raises InputError where there are too few groups.
    """
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < MIN_GROUPS:
        raise InputError(
            f"manifest: group: expected at least {MIN_GROUPS} groups (1 to train, 2 to select, 2 to test), found "
            f"{len(names)}; photos that show the same products share a group: add bins, or set finer groups"
        )
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names.tolist()]
    order = sorted(range(len(names)), key=lambda position: keys[position])
    split_of = np.full(len(names), "train", dtype=object)
    position = 0
    for split, share in (("test", test_share), ("selection", selection_share)):
        taken, taken_groups = 0, 0
        # what is left must keep enough groups for the splits still to come, and one to train
        reserve = (2 if split == "test" else 0) + 1
        while position < len(order) - reserve and (taken < share * len(groups) or taken_groups < 2):
            split_of[order[position]] = split
            taken += sizes[order[position]]
            taken_groups += 1
            position += 1
    return split_of[inverse].astype(str)


def find_asked_again(splits: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Mask (n,) of the bins that show a photo (equal `photos`, n digests) which an earlier split of SPLITS has too: what
    was learned by heart, or chosen by, must not be asked for again."""
    order = np.array([SPLITS.index(split) for split in splits.tolist()])
    _, inverse = np.unique(photos, return_inverse=True)
    earliest = np.full(inverse.max() + 1, len(SPLITS))
    np.minimum.at(earliest, inverse, order)
    return order > earliest[inverse]


def id_hashes(bin_ids: Sequence[str]) -> np.ndarray:
    """64 bits of each id's SHA-256: uint64 (n,)."""
    digests = b"".join(hashlib.sha256(bin_id.encode()).digest()[:8] for bin_id in bin_ids)
    return np.frombuffer(digests, dtype="<u8")


def keyed(hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random uint64 per (seed, epoch, bin): splitmix64 (Steele, Lea, Flood 2014) of the id's hash."""
    with np.errstate(over="ignore"):
        salt = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(epoch + 1))
        return _mix(hashes ^ salt)


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    z = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def epoch_order(hashes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..n-1, int64 (n,), for the bins' `id_hashes`, uint64 (n,)."""
    return np.argsort(keyed(hashes, seed, epoch), kind="stable")


def worker_micro_batches(
    order: np.ndarray, *, batch_size: int, micro_batch: int, worker: int, num_workers: int
) -> list[np.ndarray]:
    """A worker's micro-batches of one epoch, in order.

    Batch b is rows [b * B, (b + 1) * B) of the order (a last partial batch waits for another epoch's order), cut into
    micro-batches; worker w takes those with index % num_workers == w. So a batch is the same on any number of workers.
    """
    per_batch = batch_size // micro_batch
    found = []
    for start in range(0, len(order) - batch_size + 1, batch_size):
        for index in range(worker, per_batch, num_workers):
            found.append(order[start + index * micro_batch : start + (index + 1) * micro_batch])
    return found
