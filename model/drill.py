"""Seeded-error drill: of records made wrong on trial, how many would stand on tonight's list?

A measure of the list's power that needs no recount (as a fire drill needs no fire): a fixed number of bins, drawn by hash,
get a record of another class that a mistake would have made of theirs, and are scored once more. Real mistakes within the
top class can't be seen at all, so where many bins hold K or more the list catches a smaller share of all wrong records.
What the drill says of precision means nothing: the real errors would count as false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.record_errors import Floats

NUM_DRILLED = 1000


@dataclass(frozen=True)
class Drill:
    """Bins with an altered record, arrays (m,): their keys, and their scores with it by tonight's objective."""

    key: NDArray[np.uint64]
    score: Floats
    weight: Floats
    """How often records like theirs are wrong, in another class, beside each other: they are drawn evenly, wrong records are not."""

    def recall(self, lowest_listed: float) -> float:
        """Share of them, by weight, that score above the lowest bin of the list; NaN without bins that mistakes alter."""
        if not self.weight.any():
            return float("nan")
        return float(np.average(self.score > lowest_listed, weights=self.weight))


def choose_drilled(key: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Rows of the NUM_DRILLED smallest keys (n,): the same bins however they are divided into shards."""
    return np.argsort(key, kind="stable")[:NUM_DRILLED]


def merge_drills(parts: Sequence[Drill]) -> Drill:
    """The drill of all shards' bins together."""
    key = np.concatenate([np.zeros(0, np.uint64), *(part.key for part in parts)])
    score = np.concatenate([np.zeros(0), *(part.score for part in parts)])
    weight = np.concatenate([np.zeros(0), *(part.weight for part in parts)])
    rows = choose_drilled(key)
    return Drill(key[rows], score[rows], weight[rows])


def share_leaving(expected_qty: ArrayLike, noise: Floats) -> Floats:
    """How often mistakes make another class of such records (n,), beside each other: bins of K or more are rarely recorded
    with fewer, and drilled as often as others they made the recall of a bulk warehouse twice what it is (simulated)."""
    leaving = 1 - np.diag(noise)
    if not leaving.any():  # no mistake is known of
        leaving = np.ones(len(noise))
    return leaving[np.minimum(np.asarray(expected_qty), len(noise) - 1)]


def alter_records(expected_qty: ArrayLike, key: NDArray[np.uint64], noise: Floats) -> NDArray[np.int64]:
    """Records (n,) that mistakes would have made of right ones: drawn by `key` from `noise` N[y, r] = P(label r | true y)
    (K + 1, K + 1), the right class left out. K stands for K or more, so that
    one altered to it is exactly K, the easiest of those to doubt."""
    top = len(noise) - 1
    others = 1 - np.eye(top + 1)
    wrong = noise * others
    wrong[wrong.sum(axis=1) == 0] = others[wrong.sum(axis=1) == 0]  # where no mistake is known of, any
    cumulative = np.cumsum(wrong / wrong.sum(axis=1, keepdims=True), axis=1)
    # by the lower half of the key: bins are chosen by the upper one, for being small
    chance = (key & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2.0**32
    return (chance[:, None] >= cumulative[np.minimum(np.asarray(expected_qty), top)]).sum(axis=1)
