"""The bin itself: a cell of yellow fabric with a floor, rims above and below, and labels on the rims."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from jobs.sampling.catalogue import COLOURS
from jobs.sampling.draws import pick
from jobs.sampling.prints import shade

# RGB, measured on ABID's photos.
RIM = (224, 193, 122)
BACK = (140, 119, 76)
WALL = (172, 145, 92)
FLOOR = (146, 126, 101)
LABELS = ((222, 124, 70), (206, 78, 62), (66, 74, 112), (110, 140, 178), (92, 90, 98), (226, 160, 158),
          (78, 132, 140), (74, 56, 88), (226, 190, 120))  # fmt: skip
WHITE = (222, 208, 190)
DARK = (46, 42, 46)


@dataclass(frozen=True)
class Shell:
    """Where the bin's parts are in the photo, in pixels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    """The opening between the side walls and the rims."""
    back_left: int
    back_right: int
    floor_height: int
    """Pixels between the floor's front and back edge."""
    sag: float
    slope: float
    open_top: bool
    """A bin of the top shelf: frame in place of the upper rim, and no upper band."""


def draw_shell(width: int, height: int, draw: np.random.Generator) -> Shell:
    """A bin as the camera's crop happens to show it."""
    left, right = int(width * draw.uniform(-0.05, 0.07)), int(width * draw.uniform(0.93, 1.05))
    if draw.random() < 0.15:  # the crop reaches into the neighbouring bin
        left = int(width * draw.uniform(0.07, 0.16))
    if draw.random() < 0.15:
        right = int(width * draw.uniform(0.84, 0.93))
    inset = 0.03 * width + draw.uniform(0.0, 0.07) * width
    return Shell(
        width=width,
        height=height,
        left=left,
        right=right,
        top=int(height * draw.uniform(0.05, 0.13)),
        bottom=int(height * draw.uniform(0.84, 0.93)),
        back_left=int(left + inset),
        back_right=int(right - inset * draw.uniform(0.6, 1.4)),
        floor_height=int(height * draw.uniform(0.05, 0.2)),
        sag=float(draw.uniform(-0.02, 0.05)) * height,
        slope=float(draw.normal(0, 0.015)) * height,
        open_top=bool(draw.random() < 0.06),
    )


def paint_inside(photo: np.ndarray, shell: Shell, draw: np.random.Generator) -> None:
    """Back wall, side walls and floor; fabric has seams and folds."""
    tone = draw.uniform(0.85, 1.12)
    cv2.rectangle(photo, (0, 0), (shell.width, shell.height), shade(BACK, tone), -1)
    horizon, ceiling = shell.bottom - shell.floor_height, shell.top + shell.floor_height // 3
    for edge, inner in ((shell.left, shell.back_left), (shell.right, shell.back_right)):
        wall = [(edge, shell.top), (inner, ceiling), (inner, horizon), (edge, shell.bottom + 20)]
        cv2.fillConvexPoly(photo, np.array(wall, np.int32), shade(WALL, tone * draw.uniform(0.85, 1.1)), cv2.LINE_AA)
        cv2.line(photo, (inner, ceiling), (inner, horizon), shade(BACK, 0.75 * tone), 2, cv2.LINE_AA)
    floor = [
        (shell.left, shell.height),
        (shell.back_left, horizon),
        (shell.back_right, horizon),
        (shell.right, shell.height),
    ]
    cv2.fillConvexPoly(photo, np.array(floor, np.int32), shade(FLOOR, tone * draw.uniform(0.9, 1.15)), cv2.LINE_AA)
    cv2.line(photo, (shell.back_left, horizon), (shell.back_right, horizon), shade(BACK, 0.72 * tone), 2, cv2.LINE_AA)
    for outside, sign in ((shell.left, -1), (shell.right, 1)):
        if 0 < outside < shell.width:
            # The neighbouring bin's fabric post.
            beyond = photo[:, :outside] if sign < 0 else photo[:, outside:]
            beyond[:] = np.array(shade(RIM, tone * draw.uniform(0.7, 0.95)), np.uint8)
            post = int(0.05 * shell.width)
            next_bin = beyond[:, :-post] if sign < 0 else beyond[:, post:]
            if next_bin.shape[1] > post // 2:
                _paint_neighbour(next_bin, tone, draw)
    fold = int(draw.integers(shell.back_left, shell.back_right))
    cv2.line(
        photo, (fold, ceiling), (fold + int(draw.integers(-12, 12)), horizon), shade(BACK, 1.1 * tone), 3, cv2.LINE_AA
    )


def _paint_neighbour(beyond: np.ndarray, tone: float, draw: np.random.Generator) -> None:
    """What the next bin shows at the photo's edge: its dark inside, and perhaps a piece of its own."""
    beyond[:] = np.array(shade(BACK, tone * draw.uniform(0.6, 1.0)), np.uint8)
    if draw.random() < 0.6:
        height, width = beyond.shape[:2]
        top = int(height * draw.uniform(0.2, 0.7))
        beyond[top : int(0.9 * height), :, :] = np.array(shade(pick(draw, COLOURS), draw.uniform(0.6, 1.1)), np.uint8)
        line = top + int(height * draw.uniform(0.05, 0.2))
        beyond[line : line + height // 12, width // 4 :] = np.array(shade(pick(draw, COLOURS), 0.9), np.uint8)


def paint_rims(photo: np.ndarray, shell: Shell, draw: np.random.Generator) -> None:
    """The fabric rims in front of everything, with their stitching and labels."""
    columns = np.arange(0, shell.width + 16, 16)
    across = columns / shell.width * 2 - 1
    lower = shell.bottom + shell.sag * (1 - across**2) + shell.slope * across + draw.normal(0, 0.35, len(columns))
    _paint_rim(photo, columns, lower, shell.height, draw)
    _paint_label(photo, shell, int(np.interp(shell.width / 2, columns, lower)), below=True, draw=draw)
    if shell.open_top:
        frame = (150, 138, 128)
        photo[: max(3, shell.top // 2)] = frame
        side = int(shell.width * draw.uniform(0.03, 0.09))
        photo[:, :side] = frame
        return
    upper = shell.top - 0.6 * shell.sag * (1 - across**2) + shell.slope * across + draw.normal(0, 0.35, len(columns))
    _paint_rim(photo, columns, upper, 0, draw)
    _paint_label(photo, shell, int(np.interp(shell.width / 2, columns, upper)), below=False, draw=draw)


def _paint_rim(photo: np.ndarray, columns: np.ndarray, edge: np.ndarray, outer: int, draw: np.random.Generator) -> None:
    line = np.stack([columns, edge], axis=1).astype(np.int32)
    around = np.concatenate([line, [(columns[-1], outer), (columns[0], outer)]]).astype(np.int32)
    sign = 1 if outer else -1
    cv2.polylines(photo, [line - (0, 3 * sign)], False, shade(BACK, 0.75), 3, cv2.LINE_AA)  # its shadow
    cv2.fillPoly(photo, [around], shade(RIM, float(draw.uniform(0.92, 1.06))), cv2.LINE_AA)
    cv2.polylines(photo, [line - (0, -sign)], False, shade(RIM, 1.1), 2, cv2.LINE_AA)
    for start in range(0, len(columns) - 1):
        x, y = line[start]
        cv2.line(photo, (int(x), int(y) + 7 * sign), (int(x) + 9, int(y) + 7 * sign), shade(RIM, 0.9), 1, cv2.LINE_AA)


def _paint_label(photo: np.ndarray, shell: Shell, edge: int, *, below: bool, draw: np.random.Generator) -> None:
    """Shelf and cell (`2F↑`) beside a square code, in a colour, usually cut off by the photo's edge."""
    size = int(min(shell.width, 1.6 * shell.height) * draw.uniform(0.3, 0.38))
    tall = max(12, int(size * 0.27))
    label = np.empty((tall, size, 3), np.uint8)
    label[:] = pick(draw, LABELS)
    margin = max(2, tall // 8)
    label[margin:-margin, margin : size // 2] = WHITE
    text = f"{int(draw.integers(1, 5))}{pick(draw, tuple('ABCDEFGHIJK'))}"
    scale = tall / 34
    at = (margin * 2, int(tall * 0.78))
    cv2.putText(label, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, DARK, max(1, round(2.4 * scale)), cv2.LINE_AA)
    tip = size // 2 - 2 * margin
    cv2.arrowedLine(
        label,
        (tip, int(0.78 * tall)),
        (tip, int(0.25 * tall)),
        DARK,
        max(1, round(2 * scale)),
        cv2.LINE_AA,
        tipLength=0.4,
    )
    code = np.where(draw.random((12, 12, 1)) < 0.5, np.array(DARK), np.array(WHITE)).astype(np.uint8)
    side = tall - 2 * margin
    x = int(size * 0.6)
    label[margin : margin + side, x : x + side] = cv2.resize(code, (side, side), interpolation=cv2.INTER_NEAREST)
    label[margin:-margin, x + side + margin : x + side + 3 * margin] = WHITE
    left = int(shell.width * draw.uniform(0.22, 0.42))
    top = edge + int(draw.uniform(4, 12)) if below else edge - int(draw.uniform(3, 9)) - tall
    pocket = np.full((tall + 8, size + 14, 3), shade(RIM, 1.08), np.uint8)  # clear plastic that holds it
    pocket[4:-4, 7:-7] = label
    turn = cv2.getRotationMatrix2D((size / 2, tall / 2), float(draw.normal(0, 1.5)), 1.0)
    turn[1, 2] += 10  # room for the turn
    first, last = max(0, top - 14), min(shell.height, top + tall + 14)
    if first >= last:
        return
    turn[:, 2] += (left - 7, top - 14 - first)
    strip = photo[first:last].copy()
    frame = (shell.width, last - first)
    cv2.warpAffine(pocket, turn, frame, dst=strip, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)
    photo[first:last] = strip
