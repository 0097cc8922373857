"""What is in a bin and what its record says, which for a share of the bins is something else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.sampling.catalogue import SKUS_PER_BLOCK, Sku, draw_sku, draw_skus
from jobs.sampling.draws import BINS_PER_BLOCK, CONTENTS, RECORD_ERROR, generator, pick

QUANTITIES = tuple(range(13))
# ABID's shares up to 5, and its slope from 6 on, cut at twelve: 0.32 in all hold six or more.
QUANTITY_SHARES = (0.02, 0.08, 0.14, 0.17, 0.15, 0.12, 0.093, 0.074, 0.053, 0.038, 0.027, 0.019, 0.016)

# true - recorded of wrong records: shrinkage and overage as warehouses count them (assumed).
DIFFERENCES = (-1, 1, -2, 2, -3, 3, -4, 4, -5, 5)
DIFFERENCE_SHARES = (0.40, 0.25, 0.12, 0.08, 0.045, 0.03, 0.025, 0.02, 0.015, 0.015)

Pieces = tuple[tuple[Sku, int], ...]
"""Products with their number of pieces, each at least one."""


@dataclass(frozen=True)
class BinContents:
    """One bin: `true` is what its photo shows, `recorded` what the inventory system says."""

    true: Pieces
    recorded: Pieces

    @property
    def true_qty(self) -> int:
        return sum(count for _, count in self.true)

    @property
    def recorded_qty(self) -> int:
        return sum(count for _, count in self.recorded)


def draw_contents(seed: int, number: int, record_error_rate: float) -> BinContents:
    """The contents of bin `number`; the true ones don't depend on the rate."""
    block = number // BINS_PER_BLOCK
    draw = generator(seed, CONTENTS, number)
    quantity = pick(draw, QUANTITIES, QUANTITY_SHARES)
    true: Pieces = ()
    if quantity:
        # About 0.6 lines a piece, several lines in most bins, as in ABID.
        lines = 1 + int(draw.binomial(quantity - 1, 0.5 if quantity <= 5 else 0.3))
        cuts = np.sort(draw.choice(np.arange(1, quantity), size=lines - 1, replace=False))
        counts = np.diff(np.concatenate([[0], cuts, [quantity]]))
        true = tuple(zip(draw_skus(draw, seed, block, lines, quantity), map(int, counts), strict=True))
    draw = generator(seed, RECORD_ERROR, number)
    recorded = true
    if draw.random() < record_error_rate:
        recorded = _misrecord(draw, true, draw_sku(seed, block, int(draw.integers(SKUS_PER_BLOCK))))
    return BinContents(true, recorded)


def _misrecord(draw: np.random.Generator, true: Pieces, other: Sku) -> Pieces:
    """A record of another total; `other` is a product that may stand in the record without being in the bin."""
    total = sum(count for _, count in true)
    feasible = [i for i, difference in enumerate(DIFFERENCES) if total - difference >= 0]
    difference = pick(draw, tuple(DIFFERENCES[i] for i in feasible), tuple(DIFFERENCE_SHARES[i] for i in feasible))
    counts = dict(true)
    for _ in range(abs(difference)):
        if difference > 0:
            # More is there than recorded: pieces were put in without a scan.
            held = sorted((sku for sku, count in counts.items() if count), key=lambda sku: sku.asin)
            counts[held[int(draw.integers(len(held)))]] -= 1
        else:
            held = sorted(counts, key=lambda sku: sku.asin)
            gone = other if not held or draw.random() < 0.2 else held[int(draw.integers(len(held)))]
            counts[gone] = counts.get(gone, 0) + 1
    return tuple((sku, count) for sku, count in counts.items() if count)


def render_record(recorded: Pieces) -> bytes:
    """The record as ABID writes it: sorted keys, four spaces, ASCII with escapes."""
    document = {
        "BIN_FCSKU_DATA": {sku.asin: _line(sku, count) for sku, count in recorded},
        "EXPECTED_QUANTITY": sum(count for _, count in recorded),
    }
    return json.dumps(document, indent=4, sort_keys=True).encode("ascii")


def _line(sku: Sku, count: int) -> dict[str, Any]:
    return {
        "asin": sku.asin,
        "height": {"unit": "IN", "value": sku.height},
        "length": {"unit": "IN", "value": sku.length},
        "name": sku.name,
        "normalizedName": sku.normalized_name,
        "quantity": count,
        "weight": None if sku.weight is None else {"unit": "pounds", "value": sku.weight},
        "width": {"unit": "IN", "value": sku.width},
    }
