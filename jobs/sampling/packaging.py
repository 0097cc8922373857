"""How one piece of a product looks from the front: a patch of pixels with its opacity.

Patches are (height, width, 4) uint8: RGB and opacity. Pieces of one product share their print (`Sku.look`).
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from jobs.sampling.catalogue import Sku
from jobs.sampling.prints import INK, PAPER, Colour, Patch, blank, print_face, shade, stick_barcode

CREAM: Colour = (206, 190, 160)

View = Literal["upright", "lying", "facing"]
"""How a flat piece (book, mailer) shows: standing or lying with its edge to the camera, or its largest side."""


def draw_piece(sku: Sku, width: int, height: int, *, view: View, draw: np.random.Generator) -> Patch:
    """One piece `width` x `height` pixels large (at least 6 each way)."""
    look = np.random.Generator(np.random.PCG64(sku.look))
    wrapped = sku.kind in ("box", "book", "blister") and look.random() < 0.3
    patch = _paint(sku, width, height, view, look, draw)
    if wrapped:
        _wrap(patch, draw)
    _light(patch, draw)
    return patch


def _paint(
    sku: Sku, width: int, height: int, view: View, look: np.random.Generator, draw: np.random.Generator
) -> Patch:
    painters = {"bag": _bag, "bottle": _bottle, "blister": _blister, "box": _box}
    if sku.kind in painters:
        return painters[sku.kind](sku, width, height, look, draw)
    if view == "facing":
        return (_cover if sku.kind == "book" else _mailer)(sku, width, height, look, draw)
    upright = _spine if sku.kind == "book" else _mailer
    if view == "upright":
        return upright(sku, width, height, look, draw)
    return np.ascontiguousarray(np.rot90(upright(sku, height, width, look, draw)))


def _light(patch: Patch, draw: np.random.Generator) -> None:
    """Light falls off along a piece; a smooth face may throw back a streak of it."""
    height, width = patch.shape[:2]
    down, across = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    slope = draw.uniform(-0.3, 0.3, 2)
    light = (1.0 + slope[0] * (down - 0.5) + slope[1] * (across - 0.5)).astype(np.float32)
    if draw.random() < 0.2:
        light += (0.5 * np.exp(-(((across - draw.uniform(0, 1)) / 0.08) ** 2))).astype(np.float32)
    patch[:] = cv2.multiply(patch, cv2.merge([light, light, light, np.ones_like(light)]), dtype=cv2.CV_8U)


def _wrap(patch: Patch, draw: np.random.Generator) -> None:
    """Clear film around the piece: a haze, and creases that shine."""
    haze = float(draw.uniform(0.05, 0.25))
    patch[:, :, :3] = cv2.convertScaleAbs(patch[:, :, :3], alpha=1 - haze, beta=190 * haze)
    _crease(patch, draw, int(draw.integers(5, 16)))


def _crease(patch: Patch, draw: np.random.Generator, number: int) -> None:
    """Bright folds of plastic, some of them broad."""
    height, width = patch.shape[:2]
    gloss = np.zeros((height, width), np.uint8)
    for _ in range(number):
        start = draw.uniform(0.08, 0.9, 2)
        points = start + np.cumsum(draw.normal(0, 0.1, (3, 2)), axis=0)
        crease = (points * (width, height)).astype(np.int32)
        if draw.random() < 0.4:
            cv2.fillPoly(gloss, [crease], int(draw.integers(50, 130)), cv2.LINE_AA)
        cv2.polylines(gloss, [crease], False, int(draw.integers(90, 210)), 1, cv2.LINE_AA)
    patch[:, :, :3] = cv2.add(patch[:, :, :3], cv2.convertScaleAbs(cv2.merge([gloss] * 3), alpha=0.55))


def _box(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A carton: its front, and where the camera sees them its top and one side."""
    top, side = (int(height * draw.uniform(0.04, 0.16)), int(width * draw.uniform(0.05, 0.22)))
    if draw.random() < 0.3:
        side = 0
    w, h = max(4, width - side), max(4, height - top)
    patch = blank(width, height, (0, 0, 0), 0)
    front = blank(w, h, sku.colour)
    print_face(front, sku, look)
    cv2.rectangle(front, (0, 0), (w - 1, h - 1), (*shade(sku.colour, 0.6), 255), 1)
    lid = np.array([(0, top), (side, 0), (width - 1, 0), (w - 1, top)], np.int32)
    cv2.fillConvexPoly(patch, lid, (*shade(sku.colour, 1.18), 255), cv2.LINE_AA)
    flank = np.array([(w - 1, top), (width - 1, 0), (width - 1, h - 1), (w - 1, height - 1)], np.int32)
    cv2.fillConvexPoly(patch, flank, (*shade(sku.colour, 0.62), 255), cv2.LINE_AA)
    if draw.random() < 0.5:
        patch[top : top + h, :w] = front
        return patch
    patch[top : top + h, :w] = front[:, ::-1]  # turned back with the rest, so that its print stays readable
    return np.ascontiguousarray(patch[:, ::-1])


def _spine(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A book: its back with the title, or the block of its pages between the covers."""
    patch = blank(width, height, sku.colour)
    if draw.random() < 0.35:
        edge = max(1, width // 10)
        patch[:, edge : width - edge, :3] = CREAM
        pages = look.integers(-14, 6, size=width - 2 * edge, dtype=np.int16)
        patch[:, edge : width - edge, :3] = (patch[:, edge : width - edge, :3] + pages[None, :, None]).astype(np.uint8)
    else:
        across = np.ascontiguousarray(np.rot90(patch))
        title = "".join(c if c.isascii() else "e" for c in sku.name)[:16]
        scale = min(0.8 * height / (18 * len(title)), 0.6 * width / 22)
        if scale > 0.12:
            at = (int(0.08 * height), int(0.5 * width + 10 * scale))
            ink = PAPER if sum(sku.colour) < 360 else INK
            cv2.putText(across, title, at, cv2.FONT_HERSHEY_DUPLEX, scale, (*ink, 255), 1, cv2.LINE_AA)
        cv2.rectangle(across, (int(0.86 * height), 0), (int(0.93 * height), width), (*sku.accent, 255), -1)
        patch = np.ascontiguousarray(np.rot90(across, 3))
    curve = 1.0 - 0.4 * np.abs(np.linspace(-1, 1, width)) ** 3
    patch[:, :, :3] = (patch[:, :, :3] * curve[None, :, None]).astype(np.uint8)
    return patch


def _cover(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A book that shows its cover, and along one side the edge of its pages."""
    patch = blank(width, height, sku.colour)
    print_face(patch, sku, look)
    edge = int(width * draw.uniform(0, 0.07))
    if edge:
        patch[:, -edge:, :3] = CREAM
    return patch


def _mailer(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A padded or poly envelope: pale, puffed up, creased."""
    colour = shade(PAPER, float(look.uniform(0.85, 1.05))) if look.random() < 0.7 else sku.colour
    patch = _rounded(width, height, colour, radius=0.35)
    if width > 16 and height > 16:
        stick_barcode(patch, look)
    _crumple(patch, draw, 0.12)
    return patch


def _bottle(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A bottle or tub: cap, shoulders, body with a label, lit as a cylinder."""
    patch = blank(width, height, (0, 0, 0), 0)
    neck = int(height * look.uniform(0.08, 0.25))
    cap = int(width * look.uniform(0.15, 0.46) / 2) + int(width * 0.12)
    middle = width // 2
    body = [(0, neck + neck // 2), (middle - cap, neck), (middle + cap, neck), (width - 1, neck + neck // 2),
            (width - 1, height - 3), (width - 5, height - 1), (4, height - 1), (0, height - 3)]  # fmt: skip
    cv2.fillConvexPoly(patch, np.array(body, np.int32), (*sku.colour, 255), cv2.LINE_AA)
    cv2.rectangle(patch, (middle - cap, 0), (middle + cap, neck), (*shade(sku.accent, 1.1), 255), -1)
    y, bottom = int(height * 0.4), int(height * look.uniform(0.7, 0.92))
    label = blank(width, max(4, bottom - y), shade(PAPER, 0.95) if look.random() < 0.5 else sku.accent)
    print_face(label, sku, look)
    patch[y : y + label.shape[0]] = label
    across = np.linspace(-1, 1, width)
    light = 1.05 - 0.55 * np.abs(across) ** 2.5 + 0.35 * np.exp(-(((across + 0.35) / 0.09) ** 2))
    patch[:, :, :3] = np.clip(patch[:, :, :3] * light[None, :, None], 0, 235).astype(np.uint8)
    return patch


def _bag(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A plastic bag: an uneven outline, something coloured inside, bright creases."""
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    radius = 1.0 + 0.05 * draw.standard_normal(28)
    # A power below one turns the ellipse towards a rounded rectangle: bags fill their place.
    x = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.55 * radius
    y = np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** 0.55 * radius
    outline = np.stack([(x * 0.46 + 0.5) * width, (y * 0.46 + 0.5) * height], axis=1).astype(np.int32)
    # Clear or milky plastic: its own colour is mostly what it reflects.
    milk = float(look.uniform(0.1, 0.6))
    skin = [round((1 - milk) * own + milk * pale) for own, pale in zip(sku.colour, PAPER, strict=True)]
    patch = blank(width, height, (skin[0], skin[1], skin[2]), 0)
    opacity = np.zeros((height, width), np.uint8)
    cv2.fillPoly(opacity, [outline], int(look.integers(190, 255)), cv2.LINE_AA)
    if look.random() < 0.5:
        print_face(patch, sku, look)
    else:
        inside = (int(width * 0.2), int(height * look.uniform(0.2, 0.4)))
        far = (int(width * 0.82), int(height * look.uniform(0.65, 0.9)))
        cv2.rectangle(patch, inside, far, (*sku.accent, 0), -1)
    patch[:, :, 3] = opacity
    _crumple(patch, draw, 0.16)
    _crease(patch, draw, int(draw.integers(6, 20)))
    return patch


def _blister(sku: Sku, width: int, height: int, look: np.random.Generator, draw: np.random.Generator) -> Patch:
    """A card with its product under a clear dome, hung or leant."""
    patch = _rounded(width, height, sku.colour, radius=0.1)
    body = patch[: max(4, height // 3)]
    print_face(body, sku, look)
    dome = patch[int(height * 0.36) : int(height * 0.92), int(width * 0.12) : int(width * 0.88)]
    dome[:, :, :3] = (dome[:, :, :3] * 0.4 + np.array(PAPER) * 0.45).astype(np.uint8)
    h, w = dome.shape[:2]
    centre, axes = (w // 2, h // 2), (max(1, int(w * 0.28)), max(1, int(h * 0.42)))
    cv2.ellipse(dome, centre, axes, float(look.uniform(-20, 20)), 0, 360, (*sku.accent, 255), -1, cv2.LINE_AA)
    x = int(w * draw.uniform(0.1, 0.8))
    cv2.line(dome, (x, 2), (x - w // 8, h - 2), (232, 222, 210, 255), 1 + w // 30, cv2.LINE_AA)
    patch[: int(height * 0.95) : max(1, height - 1), :, :3] = shade(sku.colour, 0.7)
    return patch


def _rounded(width: int, height: int, colour: Colour, radius: float) -> Patch:
    patch = blank(width, height, colour, 0)
    round_by = max(1, int(min(width, height) * radius))
    opacity = np.zeros((height, width), np.uint8)
    inner = (round_by, round_by), (width - 1 - round_by, height - 1 - round_by)
    cv2.rectangle(opacity, *inner, 250, -1)
    patch[:, :, 3] = cv2.dilate(opacity, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round_by + 1,) * 2))
    return patch


def _crumple(patch: Patch, draw: np.random.Generator, strength: float) -> None:
    """Soft folds: light and dark from coarse noise."""
    height, width = patch.shape[:2]
    coarse = draw.normal(1.0, strength, (3 + height // 40, 3 + width // 40)).astype(np.float32)
    folds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    opaque = np.ones_like(folds)
    patch[:] = cv2.multiply(patch, cv2.merge([folds, folds, folds, opaque]), dtype=cv2.CV_8U)
