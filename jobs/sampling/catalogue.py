"""Products: what they are called, how large they are and how they look, the same in every bin that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jobs.sampling.draws import CATALOGUE, generator, pick
from jobs.sampling.names import draw_name

SKUS_PER_BLOCK = 250
"""Products of a block of 100 bins: about as many as its bins have lines, so that half of them recur."""

ALPHABET = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")

# kind: share; ranges of length, width and height in inches of a product of middling size
KINDS: dict[str, tuple[float, tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "box": (0.33, (4.0, 11.0), (3.0, 8.0), (1.5, 6.0)),
    "book": (0.17, (7.0, 10.5), (5.0, 8.0), (0.5, 1.8)),
    "bag": (0.20, (6.0, 11.0), (4.5, 8.0), (1.5, 4.0)),
    "bottle": (0.12, (5.0, 10.0), (2.2, 4.2), (2.2, 4.2)),
    "mailer": (0.09, (7.0, 12.0), (5.0, 8.0), (0.3, 1.0)),
    "blister": (0.09, (5.0, 9.0), (3.0, 5.0), (0.6, 1.8)),
}

SIZE_SPREAD = 0.36
"""Standard deviation of a product's log size about its kind's; with the ranges above, volumes vary as in ABID."""

# Packaging as the bins' warm light shows it, RGB; cardboard and white come more often than colours.
COLOURS = (
    (152, 124, 98), (152, 124, 98), (142, 112, 88), (130, 106, 84), (196, 184, 168), (205, 195, 180), (186, 174, 158),
    (176, 166, 152), (48, 43, 41), (60, 55, 52), (72, 66, 62), (150, 58, 54), (176, 84, 70), (58, 74, 106),
    (88, 110, 136), (66, 96, 86), (102, 120, 86), (198, 152, 86), (188, 168, 104), (112, 80, 106), (182, 138, 140),
    (112, 102, 96), (94, 74, 60), (84, 126, 132),
)  # fmt: skip


@dataclass(frozen=True)
class Sku:
    """One product."""

    asin: str
    name: str
    normalized_name: str
    kind: str
    length: float
    width: float
    height: float
    """Inches, longest first."""
    weight: float | None
    """Pounds; unknown for some, as in ABID."""
    colour: tuple[int, int, int]
    accent: tuple[int, int, int]
    look: int
    """Seed of its print: pieces of one product look alike."""
    stackable: bool


@lru_cache(maxsize=4 * SKUS_PER_BLOCK)
def draw_sku(seed: int, block: int, number: int) -> Sku:
    """Product `number` (0 .. SKUS_PER_BLOCK - 1) of a block of bins."""
    draw = generator(seed, CATALOGUE, block, number)
    kinds = tuple(KINDS)
    kind = pick(draw, kinds, tuple(KINDS[name][0] for name in kinds))
    size = float(np.clip(np.exp(draw.normal(0.0, SIZE_SPREAD)), 0.35, 2.2))
    sides = (max(0.2, round(size * float(draw.uniform(*limits)), 1)) for limits in KINDS[kind][1:])
    length, width, height = sorted(sides, reverse=True)
    name, normalized = draw_name(draw, kind)
    if kind == "bottle":
        height = width
    return Sku(
        # SeedSequence spreads well, so a clash of ten letters in one sample is as good as impossible.
        asin="B0" + "".join(ALPHABET[i] for i in draw.integers(len(ALPHABET), size=8)),
        name=name,
        normalized_name=normalized,
        kind=kind,
        length=length,
        width=width,
        height=height,
        weight=None if draw.random() < 0.02 else round(length * width * height * float(draw.uniform(0.005, 0.03)), 2),
        colour=pick(draw, COLOURS),
        accent=pick(draw, COLOURS),
        look=int(draw.integers(2**31)),
        stackable=kind in ("book", "mailer") or (kind == "box" and bool(draw.random() < 0.5)),
    )


def draw_skus(draw: np.random.Generator, seed: int, block: int, count: int, pieces: int) -> list[Sku]:
    """`count` different products of the block for a bin of so many pieces.

    Bins of many pieces hold small ones: in ABID the median volume of a product falls from 170 cubic inches where there
    is one piece to 40 where there are six or more, and its spread is the same. A power of the volume as the weight
    moves the mean of a lognormal distribution and leaves its spread.
    """
    volumes = _volumes(seed, block) ** (0.65 - 0.15 * min(pieces, 7))
    chosen = draw.choice(SKUS_PER_BLOCK, size=count, replace=False, p=volumes / volumes.sum())
    return [draw_sku(seed, block, int(number)) for number in chosen]


@lru_cache(maxsize=4)
def _volumes(seed: int, block: int) -> np.ndarray:
    """Cubic inches of each product of the block."""
    skus = [draw_sku(seed, block, number) for number in range(SKUS_PER_BLOCK)]
    return np.array([sku.length * sku.width * sku.height for sku in skus])
