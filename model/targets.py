"""From the record's quantity to what the network is asked to say."""

from __future__ import annotations

import numpy as np

DECAY = 0.1
"""Of a soft target's mass per piece of distance: records are noisy labels, and neighbouring counts look alike."""
LEARNED_QUANTITY = 15
"""Quantities above are learnt as this one (auxiliary output)."""
LEARNED_SKUS = 8


def classes_of(expected_qty: np.ndarray, top_class: int) -> np.ndarray:
    """The class of each record: its quantity, at most K. int64 (n,)."""
    return np.minimum(expected_qty, top_class).astype(np.int64)


def count_rows(expected_qty: np.ndarray, top_class: int) -> np.ndarray:
    """The row of `count_targets` for each record: its quantity, at most the last row's. int64 (n,)."""
    return np.minimum(expected_qty, _last_row(top_class)).astype(np.int64)


def _last_row(top_class: int) -> int:
    """Far enough above K that a record there says "K or more" for certain."""
    return max(LEARNED_QUANTITY, top_class + 4)


def count_targets(top_class: int, kind: str) -> np.ndarray:
    """Target probabilities, float32 (max(LEARNED_QUANTITY, K + 4) + 1, K + 1): row q for a record of q (its last row for
    more).

    `classes`: all on the record's class. `ordinal`: proportional to DECAY ** |k - q| over the quantities up to three
    beyond the last row's, then those of K and more are added up: a record of 9 says "K or more" for certain,
    a record of K leaves some to K - 1.
    """
    last = _last_row(top_class)
    quantities = np.arange(last + 4)
    rows = np.arange(last + 1)
    if kind == "classes":
        fine = (rows[:, None] == quantities[None]).astype(np.float64)
    else:
        fine = DECAY ** np.abs(rows[:, None] - quantities[None])
    fine /= fine.sum(axis=1, keepdims=True)
    folded = np.concatenate([fine[:, :top_class], fine[:, top_class:].sum(axis=1, keepdims=True)], axis=1)
    return folded.astype(np.float32)


def quantity_targets() -> np.ndarray:
    """Soft targets of the auxiliary output for the exact quantity: float32 (LEARNED_QUANTITY + 1, LEARNED_QUANTITY + 1)."""
    distance = np.abs(np.arange(LEARNED_QUANTITY + 1)[:, None] - np.arange(LEARNED_QUANTITY + 1)[None])
    soft = DECAY**distance
    return (soft / soft.sum(axis=1, keepdims=True)).astype(np.float32)
