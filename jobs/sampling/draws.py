"""Random draws keyed by what they are for, so that a bin comes out the same whichever worker draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")

# One stream a purpose: a change to how photos are drawn changes neither contents nor records.
CATALOGUE, CONTENTS, RECORD_ERROR, PHOTO = range(4)

BINS_PER_BLOCK = 100
"""Neighbouring bins hold the same products, in blocks as ABID's numbers do."""


def generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    """The generator of one stream; `key` holds non-negative numbers such as the bin's."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, *key])))


def pick(draw: np.random.Generator, values: Sequence[Value], weights: Sequence[float] | None = None) -> Value:
    """One of `values`; `weights` need not add up to 1."""
    if weights is None:
        return values[int(draw.integers(len(values)))]
    shares = np.asarray(weights, dtype=float)
    return values[int(draw.choice(len(values), p=shares / shares.sum()))]
