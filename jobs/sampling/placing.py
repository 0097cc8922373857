"""Where the pieces stand in a bin: side by side, stacked, leaning, some behind others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.sampling.catalogue import Sku
from jobs.sampling.contents import Pieces
from jobs.sampling.draws import pick
from jobs.sampling.packaging import View

BIN_INCHES = 11.5
"""Width of a bin's opening; with the catalogue's inches it gives the pieces' size in pixels."""

MOST_FILLED = 1.6
"""Area of all pieces over that of the opening: fuller bins show their pieces smaller (they are pressed in)."""


VIEWS: tuple[View, ...] = ("upright", "lying", "facing")


@dataclass(frozen=True)
class Placement:
    """One piece: its patch's size, and where its bottom centre stands in the opening, in pixels of the opening."""

    sku: Sku
    width: int
    height: int
    view: View
    x: float
    lift: float
    """Pixels above the floor (pieces below it in a stack)."""
    depth: float
    """0 at the front edge, 1 at the back wall."""
    tilt: float
    """Degrees."""


@dataclass
class _Column:
    sku: Sku
    count: int
    width: float
    height: float
    view: View


def place_pieces(pieces: Pieces, opening: tuple[int, int], draw: np.random.Generator) -> list[Placement]:
    """Placements of all pieces, in the order to draw them (back to front)."""
    if not pieces:
        return []
    width, height = opening
    columns = _stack_columns(pieces, width, height, draw)
    # Tall ones to the back, with some disorder, so that most pieces show at least in part.
    columns.sort(key=lambda column: -column.height * column.count * draw.uniform(0.5, 1.0))
    total = sum(column.width for column in columns)
    num_rows = int(np.clip(np.ceil(total / (1.05 * width)), 1, 3))
    rows: list[list[_Column]] = [[] for _ in range(num_rows)]
    filled = 0.0
    for column in columns:
        rows[min(num_rows - 1, int(filled / total * num_rows))].append(column)
        filled += column.width
    placements: list[Placement] = []
    for number, row in enumerate(rows):
        depth = (num_rows - 1 - number) / num_rows + float(draw.uniform(0.02, 0.25))
        placements += _lay_row(row, width, depth, draw)
    return placements


def _stack_columns(pieces: Pieces, width: int, height: int, draw: np.random.Generator) -> list[_Column]:
    """Pieces as columns of one or more, shrunk together until they fit the opening."""
    scale = width / BIN_INCHES * float(draw.uniform(0.85, 1.6))
    sizes: list[tuple[Sku, int, float, float, View]] = []
    for sku, count in pieces:
        view: View = "upright"
        if sku.kind in ("book", "mailer"):
            # Few pieces are laid in as they fall; many are set in rows or stacks.
            facing = 0.6 if count <= 2 else 0.2
            view = pick(draw, VIEWS, (0.55 * (1 - facing), 0.45 * (1 - facing), facing))
        across, up = _front(sku, view)
        sizes.append((sku, count, across * scale, up * scale, view))
    area = sum(count * across * up for _, count, across, up, _ in sizes)
    shrink = min(1.0, float(np.sqrt(MOST_FILLED * width * height / area)))
    columns: list[_Column] = []
    for sku, count, across, up, view in sizes:
        fit = min(shrink, 0.88 * height / up, 0.9 * width / across)
        across, up = max(across * fit, 0.03 * width), max(up * fit, 0.04 * height)
        high = 1
        if (view == "lying" or (sku.stackable and view == "upright")) and count > 1 and draw.random() < 0.75:
            high = max(1, int(0.85 * height / up))
        while count:
            taken = min(high, count)
            columns.append(_Column(sku, taken, across, up, view))
            count -= taken
    return columns


def _front(sku: Sku, view: View) -> tuple[float, float]:
    """Inches across and up of the side that the camera sees."""
    if view == "facing":
        return (sku.length, sku.width) if sku.look % 2 else (sku.width, sku.length)
    if sku.kind in ("book", "mailer"):
        return (sku.length, sku.height) if view == "lying" else (sku.height, sku.length)
    if sku.kind == "box":
        turned = sku.look % 3
        return ((sku.width, sku.length), (sku.length, sku.width), (sku.height, sku.width))[turned]
    return sku.width, sku.length


def _lay_row(row: list[_Column], width: int, depth: float, draw: np.random.Generator) -> list[Placement]:
    """One row from left to right: gaps where there is room, overlaps where there is not."""
    order = sorted(row, key=lambda column: (column.sku.look, column.height))  # one product stands together
    spare = width - sum(column.width for column in order)
    if spare > 0:
        shares = draw.dirichlet(np.full(len(order) + 1, 0.6))
        gaps = spare * shares
    else:
        # each hides the same share of the one before it, so that none is pushed out of the bin
        widths = np.array([column.width for column in order])
        seen = (width - widths[-1]) / (widths.sum() - widths[-1])
        gaps = np.concatenate([[0.0], (seen - 1) * widths[:-1]])
    placements: list[Placement] = []
    x = 0.0
    for column, gap in zip(order, gaps, strict=False):
        x += float(gap)
        slim = column.height > 3 * column.width
        tilt = float(draw.normal(0, 7.0 if slim and spare > 0 else 1.8))
        if column.count == 1 and draw.random() < 0.25:
            tilt = float(draw.uniform(-40, 40))
        for level in range(column.count):
            placements.append(
                Placement(
                    sku=column.sku,
                    width=max(8, round(column.width)),
                    height=max(8, round(column.height)),
                    view=column.view,
                    x=x + column.width / 2 + float(draw.normal(0, 0.02)) * width * (level > 0),
                    lift=level * column.height * 0.97,
                    depth=depth,
                    tilt=tilt if column.count == 1 else float(draw.normal(0, 0.8)),
                )
            )
        x += column.width
    return placements
