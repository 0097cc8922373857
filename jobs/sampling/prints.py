"""What is printed on packaging: bare cartons, brands, photographs, panels, repeated marks, stickers, small print.

Every print comes from the product's own stream (`look`), so that pieces of one product look alike. One piece may show a
dozen edges and colours: a counter that takes edges for pieces must fail on these photos as it does on real ones.
"""

from __future__ import annotations

import cv2
import numpy as np

from jobs.sampling.catalogue import COLOURS, Sku
from jobs.sampling.draws import pick

Patch = np.ndarray
"""(height, width, 4) uint8: RGB and opacity."""
Colour = tuple[int, int, int]

PAPER: Colour = (200, 190, 174)
INK: Colour = (52, 46, 44)
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def blank(width: int, height: int, colour: Colour, opacity: int = 255) -> Patch:
    # One 32-bit store a pixel: four times faster than filling by channels.
    pixel = np.array((*colour, opacity), np.uint8).view(np.uint32)[0]
    return np.full((height, width), pixel, np.uint32).view(np.uint8).reshape(height, width, 4)


def print_face(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """Prints one face of a package in place."""
    # what is on it, and how often
    styles = {_tape: 0.2, _brand: 0.25, _photograph: 0.27, _panels: 0.16, _marks: 0.12}
    pick(look, tuple(styles), tuple(styles.values()))(face, sku, look)
    for _ in range(int(look.integers(0, 3))):
        _small_print(face, sku, look)
    if look.random() < 0.5:
        stick_barcode(face, look)


def stick_barcode(face: Patch, look: np.random.Generator) -> None:
    """A white sticker with a barcode, and lines of text on the larger ones."""
    height, width = face.shape[:2]
    across, down = max(8, int(width * look.uniform(0.2, 0.5))), max(6, int(height * look.uniform(0.1, 0.3)))
    x, y = int(look.integers(0, max(1, width - across))), int(look.integers(0, max(1, height - down)))
    sticker = face[y : y + down, x : x + across]
    sticker[:, :, :3] = PAPER
    bars = np.asarray(look.random(sticker.shape[1]) < 0.45)
    bars[:2] = False
    bars[-2:] = False
    sticker[1 : max(2, int(look.uniform(0.35, 0.65) * down)), bars, :3] = INK
    for row in range(int(0.72 * down), sticker.shape[0] - 2, 4):
        sticker[row, 2 : max(3, int(across * look.uniform(0.4, 0.95))), :3] = shade(INK, 1.6)


def _ink(sku: Sku) -> tuple[int, int, int, int]:
    return (*(PAPER if sum(sku.colour) < 330 else INK), 255)


def _tape(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """A shipping carton: tape across it or down it, and no print."""
    height, width = face.shape[:2]
    if look.random() < 0.5:
        at = int(width * look.uniform(0.35, 0.6))
        face[:, at : at + max(2, width // 12), :3] = shade(sku.colour, 1.12)
    else:
        at = int(height * look.uniform(0.35, 0.6))
        face[at : at + max(2, height // 10), :, :3] = shade(sku.colour, 1.1)


def _write(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """One word of the product's name, across the face or up it."""
    words = [word for word in sku.name.split() if word.isascii() and word.isalpha()] or ["PRO"]
    word = words[int(look.integers(len(words)))].upper()[:9]
    font = pick(look, FONTS)
    turned = look.random() < 0.4  # drawn for every face: pieces of one product differ in shape, and not in print
    up = turned and face.shape[0] > 1.3 * face.shape[1]
    page = np.ascontiguousarray(np.rot90(face)) if up else face
    height, width = page.shape[:2]
    scale = look.uniform(0.4, 0.9) * width / max(1, cv2.getTextSize(word, font, 1.0, 2)[0][0])
    at = (int(width * look.uniform(0.03, 0.2)), int(height * look.uniform(0.2, 0.95)))
    colour = _ink(sku) if look.random() < 0.6 else (*sku.accent, 255)
    cv2.putText(page, word, at, font, min(scale, 1.6), colour, 1 + int(2 * min(scale, 1.6)), cv2.LINE_AA)
    if up:
        face[:] = np.rot90(page, 3)


def _shapes(face: Patch, sku: Sku, look: np.random.Generator, most: int) -> None:
    """Ellipses, slabs and polygons in the product's two colours and their shades."""
    height, width = face.shape[:2]
    for _ in range(int(look.integers(1, most + 1))):
        tone = (*shade(pick(look, (sku.colour, sku.accent, sku.accent, PAPER)), float(look.uniform(0.6, 1.5))), 255)
        x, y = look.uniform(0.05, 0.95, 2) * (width, height)
        reach = look.uniform(0.08, 0.35, 2) * (width, height) + 1
        form = look.random()
        if form < 0.4:
            axes = (int(reach[0]), int(reach[1]))
            cv2.ellipse(face, (int(x), int(y)), axes, float(look.uniform(0, 90)), 0, 360, tone, -1, cv2.LINE_AA)
        elif form < 0.65:
            cv2.rectangle(
                face, (int(x - reach[0]), int(y - reach[1])), (int(x + reach[0]), int(y + reach[1])), tone, -1
            )
        else:
            points = (x, y) + look.normal(0, 0.8, (int(look.integers(3, 7)), 2)) * reach
            cv2.fillPoly(face, [points.astype(np.int32)], tone, cv2.LINE_AA)


def _brand(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """A stripe, some figure and the brand's word."""
    height, width = face.shape[:2]
    top = int(height * look.uniform(0.0, 0.7))
    cv2.rectangle(face, (0, top), (width, top + int(height * look.uniform(0.1, 0.35))), (*sku.accent, 255), -1)
    _shapes(face, sku, look, 2)
    _write(face, sku, look)


def _photograph(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """A picture over all of the face or a part: light and colour that vary at every scale, and what stands in it."""
    height, width = face.shape[:2]
    x, y = (look.uniform(0, 0.3, 2) * (width, height) * (look.random() < 0.6)).astype(int)
    far = (look.uniform(0.7, 1.0, 2) * (width, height)).astype(int)
    if look.random() < 0.4:
        far[:] = (width, height)
    page = face[y : max(y + 4, far[1]), x : max(x + 4, far[0])]
    h, w = page.shape[:2]
    ground = np.array(pick(look, (sku.colour, sku.accent, pick(look, COLOURS))), np.float32)
    picture = np.zeros((h, w, 3), np.float32)
    for cells, strength in ((3, 26.0), (7, 18.0), (17, 12.0)):
        grey = look.normal(0, strength, (cells, cells, 1))
        coarse = (grey + look.normal(0, 0.35 * strength, (cells, cells, 3))).astype(np.float32)
        picture += cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    page[:, :, :3] = np.clip(ground + picture, 10, 240).astype(np.uint8)
    drawn = np.ascontiguousarray(page)
    _shapes(drawn, sku, look, 6)
    page[:] = drawn
    if look.random() < 0.8:
        _write(face, sku, look)


def _panels(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """Fields in several colours, as on the side of a carton that says what is in it."""
    height, width = face.shape[:2]
    across, down = int(look.integers(1, 4)), int(look.integers(2, 5))
    xs = np.linspace(0, width, across + 1).astype(int)
    ys = np.linspace(0, height, down + 1).astype(int)
    for i in range(across):
        for j in range(down):
            colour = pick(look, (sku.colour, sku.colour, sku.accent, PAPER, shade(sku.accent, 0.7)))
            cv2.rectangle(face, (int(xs[i]), int(ys[j])), (int(xs[i + 1]), int(ys[j + 1])), (*colour, 255), -1)
    for _ in range(int(look.integers(1, 4))):
        _small_print(face, sku, look)
    _write(face, sku, look)


def _marks(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """One small mark over and over, in slanting rows, or stripes."""
    height, width = face.shape[:2]
    if look.random() < 0.4:
        step = max(3, int(width * look.uniform(0.04, 0.15)))
        slant = int(look.uniform(-0.5, 0.5) * height)
        for x in range(-abs(slant), width + abs(slant), 2 * step):
            cv2.line(face, (x, 0), (x + slant, height), (*sku.accent, 255), step, cv2.LINE_AA)
        return
    step = max(10, int(min(width, height) * look.uniform(0.15, 0.4)))
    word = sku.asin[2:5]
    for row, y in enumerate(range(step // 2, height + step, step)):
        for x in range(-step + (row % 2) * step // 2, width, int(1.3 * step)):
            cv2.putText(face, word, (x, y), cv2.FONT_HERSHEY_SIMPLEX, step / 60, _ink(sku), 1, cv2.LINE_AA)


def _small_print(face: Patch, sku: Sku, look: np.random.Generator) -> None:
    """Lines too fine to be read."""
    height, width = face.shape[:2]
    x, y = look.uniform(0.05, 0.6) * width, look.uniform(0.05, 0.85) * height
    wide = look.uniform(0.15, 0.4) * width
    for row in range(int(look.integers(2, 8))):
        start, at = int(x), int(y) + 4 * row
        cv2.line(face, (start, at), (start + int(wide * look.uniform(0.5, 1.0)), at), _ink(sku), 1)
