"""The recount plan: which bins a person counts next.

The random bins are drawn first, from all assessed bins, and feed every estimate; the priority bins are the best
of the rest by the objective. Randomness is a hash of (seed, night, bin_id): the same on every machine,
for any order and any number of shards. Both lists are top-K reductions: `best_candidates` per shard,
`merge_candidates` over shards, `plan_recounts` once, and `RecountPlan.locate` per shard in the second pass.

Inclusion probability: 1 for priority, n_random / N for random; stored when planned, it cannot be rebuilt. Random
bins that score as high as the priority list would have been counted anyway; estimates must know which they are
(`find_reach`), or the random sample stands for the priority list a second time.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.record_errors import Floats
from schemas.results import Recount

MIN_RANDOM = 10


@dataclass(frozen=True)
class Candidates:
    """The best bins of a shard or of several: largest score first, ties by smallest key. All arrays (k,)."""

    bin_id: NDArray[np.object_]
    score: Floats
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class RecountPlan:
    """The night's plan, arrays (b,), random bins first: `recount` is "random" or "priority"; `rank` counts the priority
    list from 1 and is 0 for random bins."""

    bin_id: NDArray[np.object_]
    recount: NDArray[np.object_]
    rank: NDArray[np.int32]
    inclusion_probability: Floats

    def __len__(self) -> int:
        return len(self.bin_id)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {bin_id: row for row, bin_id in enumerate(self.bin_id.tolist())}

    def locate(self, bin_id: Sequence[str]) -> NDArray[np.intp]:
        """Row of this plan (m,) for each bin of a shard, -1 where the bin is not in it."""
        return np.array([self._row_of.get(name, -1) for name in bin_id], dtype=np.intp)


def draw_keys(bin_id: Iterable[str], seed: int, night: str) -> NDArray[np.uint64]:
    """Uniform 64-bit keys (m,) of the bins: BLAKE2b of seed, night and bin_id. Sampling without replacement is
    taking the smallest keys (permanent random numbers; Ohlsson 1995)."""
    prefix = f"{seed}\n{night}\n".encode()
    digests = [hashlib.blake2b(prefix + name.encode(), digest_size=8).digest() for name in bin_id]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def best_candidates(bin_id: Sequence[str], key: NDArray[np.uint64], score: ArrayLike, size: int) -> Candidates:
    """The `size` bins of a shard with the largest score (m,); with all scores 0 a random sample by key.

    Raises ValueError for a NaN score: who is not assessed cannot be ranked and must be left out before.
    """
    scores = np.asarray(score, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError("a bin without a score cannot be ranked")
    return merge_candidates([Candidates(np.array(bin_id, dtype=object), scores, key)], size)


def merge_candidates(parts: Sequence[Candidates], size: int) -> Candidates:
    """The best `size` of several shards' candidates, each part made with at least this size."""
    ids = np.concatenate([np.empty(0, dtype=object), *(part.bin_id for part in parts)])
    score = np.concatenate([np.empty(0), *(part.score for part in parts)])
    key = np.concatenate([np.empty(0, dtype=np.uint64), *(part.key for part in parts)])
    order = np.lexsort((key, -score))
    if ((np.diff(score[order]) == 0) & (np.diff(key[order]) == 0)).any():
        # the id settles the (practically impossible) tie of both score and key; sorting by it always takes ten times as long
        order = np.array(sorted(order.tolist(), key=lambda row: (-score[row], key[row], ids[row])), dtype=np.intp)
    order = order[:size]
    return Candidates(ids[order], score[order], key[order])


def count_random(budget: int, random_share: float, num_assessed: int) -> int:
    """How many of the `budget` bins are drawn at random: the share, at least 10; 0 only for a share of 0. Raises ValueError for
    a negative budget or a share outside [0, 1]."""
    if budget < 0 or not 0 <= random_share <= 1:
        raise ValueError(f"budget {budget} must be 0 or more and the random share {random_share} in [0, 1]")
    wanted = max(MIN_RANDOM, round(random_share * budget)) if random_share > 0 else 0
    return min(wanted, budget, num_assessed)


def plan_recounts(
    random: Candidates, ranked: Candidates, *, num_assessed: int, budget: int, random_share: float
) -> RecountPlan:
    """Join the merged lists: the first `count_random` of `random`, then the best of `ranked` not among them.

    Both lists need `budget` candidates where there are that many: `random` with score 0 from all assessed bins,
    `ranked` by the objective from those that may stand on the priority list.
    """
    num_random = count_random(budget, random_share, num_assessed)
    drawn = random.bin_id[:num_random]
    names = set(drawn.tolist())
    rest = np.array([name not in names for name in ranked.bin_id.tolist()], dtype=bool)
    chosen = np.flatnonzero(rest)[: budget - num_random]
    chance = num_random / max(num_assessed, 1)
    return RecountPlan(
        bin_id=np.concatenate([drawn, ranked.bin_id[chosen]]),
        recount=np.array([Recount.RANDOM] * num_random + [Recount.PRIORITY] * len(chosen), dtype=object),
        rank=np.concatenate([np.zeros(num_random), np.arange(1, len(chosen) + 1)]).astype(np.int32),
        inclusion_probability=np.concatenate([np.full(num_random, chance), np.ones(len(chosen))]),
    )


def find_reach(score: ArrayLike, is_priority: ArrayLike) -> NDArray[np.bool_]:
    """Which of one night's planned bins (m,) are in reach of its priority list, and so were certain to be counted:
    the list itself, and the random bins scoring more than its lowest `score` (the objective of that night). Of bins that
    tie with the lowest some are on the list by the draw alone: the random ones among them stand for the rest."""
    scores, priority = np.asarray(score, dtype=np.float64), np.asarray(is_priority, dtype=bool)
    if not priority.any():
        return priority.copy()
    return priority | (scores > scores[priority].min())
