"""What stands between the bin and the photo's pixels: elastic bands, dim uneven light, blur, noise."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from jobs.sampling.shell import Shell

# RGB: the threads' own colour, and the two pairs of colours that their moiré swings between.
THREAD = (212.0, 196.0, 178.0)
ORANGE_BLUE = (26.0, 2.0, -26.0)
GREEN_VIOLET = (-14.0, 16.0, -12.0)


def stretch_bands(photo: np.ndarray, shell: Shell, draw: np.random.Generator) -> None:
    """The elastic that keeps the pieces in: one to three bands of pale threads, translucent between them."""
    inside = shell.bottom - shell.top
    kind = draw.random()
    if shell.open_top:
        bands = [(0.72, 0.4)]
    elif kind < 0.35:
        bands = [(0.5, 0.9)]
    elif kind < 0.6:
        bands = [(0.18, 0.2), (0.5, 0.2), (0.82, 0.2)]
    else:
        bands = [(0.24, 0.3), (0.72, 0.36)]
    dense = draw.uniform(0.55, 1.0)
    for middle, thickness in bands:
        _stretch_band(
            photo,
            middle=shell.top + inside * (middle + draw.normal(0, 0.04)),
            thickness=inside * thickness * draw.uniform(0.75, 1.2),
            slope=float(draw.normal(0, 0.02)) * photo.shape[0],
            dense=float(dense),
            draw=draw,
        )


def _stretch_band(
    photo: np.ndarray, *, middle: float, thickness: float, slope: float, dense: float, draw: np.random.Generator
) -> None:
    height, width = photo.shape[:2]
    across = np.linspace(-1, 1, width, dtype=np.float32)
    bow = slope * across + draw.normal(0, 3.0) * across**2
    # The ends are gathered where they are sewn on: the band is narrower there.
    spread = thickness * (1 - 0.12 * across**2 * draw.random())
    start = middle + bow - spread / 2
    top, bottom = max(0, int(start.min()) - 1), min(height, int((start + spread).max()) + 2)
    if bottom - top < 4:
        return
    rows = np.arange(top, bottom, dtype=np.float32)[:, None]
    place = (rows - start) / spread
    threads = max(6, round(thickness / draw.uniform(4.0, 7.5)))
    # Threads hang unevenly: their distance varies along the band's height.
    phase = place * threads + draw.uniform(0.1, 0.7) * np.sin(rows * (7 / thickness) + across * draw.uniform(0, 2))
    wave = 0.5 + 0.5 * np.cos(phase * np.float32(2 * np.pi))
    opacity = (0.22 + 0.68 * wave * wave) * dense
    if draw.random() < 0.5:
        knot = 0.04 + 0.05 * draw.random()
        opacity[:, np.abs(across) > 1 - knot] = 0.8
    opacity *= np.clip(np.minimum(place, 1 - place) * threads * 2, 0, 1)
    # Threads as fine as the sensor's pixels: the colours of moiré drift along the band.
    warm = np.sin(phase * np.pi + across * draw.uniform(2, 9)) * np.float32(draw.uniform(0, 1) ** 2)
    cool = np.sin(rows * (9 / thickness) + across * draw.uniform(1, 5)) * np.float32(0.4 * draw.uniform(0, 1))
    bright = np.float32(draw.uniform(0.85, 1.05))
    thread = cv2.merge(
        [
            (level * bright + orange * warm + violet * cool).astype(np.uint8)
            for level, orange, violet in zip(THREAD, ORANGE_BLUE, GREEN_VIOLET, strict=True)
        ]
    )
    photo[top:bottom] = cv2.blendLinear(thread, photo[top:bottom], opacity, 1 - opacity)


def stretch_cord(photo: np.ndarray, shell: Shell, draw: np.random.Generator) -> None:
    """On some bins a cord with a metal hook runs in front of the pieces; it is none of them."""
    if draw.random() > (0.5 if shell.open_top else 0.08):
        return
    height, width = photo.shape[:2]
    y = int(shell.top + (shell.bottom - shell.top) * draw.uniform(0.3, 0.75))
    cord, metal = ((214, 176, 96), (60, 54, 50))[int(draw.integers(2))], (176, 166, 156)
    end = y + int(draw.normal(0, 0.03) * height)
    cv2.line(photo, (0, y), (width, end), cord, max(2, height // 90), cv2.LINE_AA)
    if draw.random() < 0.6:
        x = int(width * draw.uniform(0.1, 0.9))
        for ring in range(int(draw.integers(1, 4))):
            centre = (x + ring * width // 8, y + (end - y) * x // width)
            cv2.ellipse(photo, centre, (width // 14, height // 45), 0, 0, 360, metal, max(3, height // 80), cv2.LINE_AA)


def crowd_out_light(photo: np.ndarray, shell: Shell, covered: float, draw: np.random.Generator) -> None:
    """Between the pieces of a full bin it is dark; an empty one's walls throw the light about.

    `covered` is the share of the opening that pieces cover, 0..1.
    """
    region = photo[shell.top : shell.bottom]
    region[:] = cv2.convertScaleAbs(region, alpha=1.0 - draw.uniform(0.1, 0.65) * covered)


def shade_inside(photo: np.ndarray, shell: Shell, draw: np.random.Generator) -> None:
    """The bin's depth takes the light away, from above most."""
    strength = draw.uniform(0.12, 0.5)
    down = np.linspace(1.0 - strength, 1.02, shell.bottom - shell.top, dtype=np.float32)
    region = photo[shell.top : shell.bottom]
    region[:] = cv2.multiply(
        region, cv2.merge([np.repeat(down[:, None], region.shape[1], axis=1)] * 3), dtype=cv2.CV_8U
    )


def expose(photo: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The camera: uneven light, lifted blacks, defocus or movement, sensor noise."""
    height, width = photo.shape[:2]
    coarse = draw.normal(1.0, 0.05, (4, 5)).astype(np.float32) * np.float32(np.clip(draw.normal(0.9, 0.11), 0.62, 1.12))
    light = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    haze = float(draw.uniform(0.05, 0.22))
    lit = cv2.multiply(photo, cv2.merge([light] * 3), scale=1 - haze, dtype=cv2.CV_8U)
    lit = cv2.add(lit, np.array((haze * 150, haze * 130, haze * 98, 0.0)))
    if draw.random() < 0.16:
        length = int(draw.integers(3, 12))
        lit = cv2.blur(lit, (length, 1 + length // 5))
    lit = cv2.GaussianBlur(lit, (0, 0), float(draw.gamma(3.0, 0.16)) + 0.55)
    grain = _grain()
    x, y = int(draw.integers(grain.shape[1] - width)), int(draw.integers(grain.shape[0] - height))
    return cv2.add(lit, grain[y : y + height, x : x + width], dtype=cv2.CV_8U)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Sensor noise, drawn once and cut anew for each photo: drawing it would take most of a photo's time."""
    draw = np.random.Generator(np.random.PCG64(0))
    return np.rint(draw.normal(0.0, 2.2, (1400, 1400, 3))).astype(np.int8)
