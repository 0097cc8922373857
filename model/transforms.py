"""Training-time augmentation that suits bins; the elastic tape across the front stays, as it is in every photo."""

from __future__ import annotations

import cv2
import numpy as np

MAX_SHIFT = 0.08
MAX_ROTATION_DEGREES = 3.0
SCALE = (0.85, 1.2)
ASPECT = 0.1
GAIN = (0.7, 1.35)
TINT = 0.06
BLUR_SHARE = 0.2


def augment(pixels: np.ndarray, key: int) -> np.ndarray:
    """A photo, uint8 (S, S, 3), flipped, moved, scaled, lit and blurred as the 64-bit `key` says; a new array."""
    generator = np.random.Generator(np.random.Philox(key=key))
    moved = _move(pixels, generator)
    lit = _light(moved, generator)
    if generator.random() < BLUR_SHARE:
        lit = cv2.GaussianBlur(lit, (0, 0), float(generator.uniform(0.3, 1.1)) * len(lit) / 112)
    return lit


def _move(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirror, shift, scale, stretch and turn in one resampling; what comes into view mirrors the photo's rim."""
    side = len(pixels)
    centre = (side - 1) / 2
    scale = generator.uniform(*SCALE)
    stretch = 1 + generator.uniform(-ASPECT, ASPECT)
    angle = np.deg2rad(generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    shift = generator.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * side
    mirror = -1.0 if generator.random() < 0.5 else 1.0
    linear = np.array(
        [
            [mirror * scale * stretch * np.cos(angle), -scale * np.sin(angle)],
            [mirror * scale * np.sin(angle), scale / stretch * np.cos(angle)],
        ]
    )
    offset = np.array([centre, centre]) + shift - linear @ np.array([centre, centre])
    return cv2.warpAffine(
        pixels, np.column_stack([linear, offset]), (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


def _light(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gain, gamma and tint by one table per channel: bins are lit unevenly and cameras differ."""
    gain = np.exp(generator.uniform(*np.log(GAIN)))
    gamma = np.exp(generator.uniform(-0.25, 0.25))
    tint = 1 + generator.uniform(-TINT, TINT, 3)
    levels = (np.arange(256) / 255.0)[:, None] ** gamma * gain * tint * 255
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)  # (256, 3)
    return cv2.LUT(pixels, table.reshape(256, 1, 3).transpose(1, 0, 2))
