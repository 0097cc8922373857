"""Training-time augmentation that suits bins; the elastic tape across the front stays, as it is in every photo."""

from __future__ import annotations

import cv2
import numpy as np

from model.images import finer_shape

# At strength 1.
MAX_SHIFT = 0.08
MAX_ROTATION_DEGREES = 3.0
MAX_SCALE = 0.18
MAX_STRETCH = 0.1
MAX_GAIN = 0.35
MAX_GAMMA = 0.25
MAX_TINT = 0.06
BLUR_SHARE = 0.2

MOST_SIDES = 3
"""A photo longer than so many times the final side is shrunk to them first: there are fewer pixels to move, of which OpenCV
takes no more than 32,767 a side. It costs a fiftieth of the fine detail at most."""


def augment(pixels: np.ndarray, key: int, strength: float, side: int) -> np.ndarray:
    """A photo, uint8 (height, width, 3), as the network sees it in training: (S, S, 3), S = `side`; mirrored in half of
    the cases, and moved, scaled, lit and blurred as far as `strength` (0 to 1) allows, as the 64-bit `key` says.

    It is moved on its way to the finer pixels whose means the network sees, in the one interpolation that a plain photo
    has too, so that it comes out as sharp: moved at the final size it would lose a third of its fine detail, and the
    network would learn from softer photos than it is asked about.
    """
    generator = np.random.Generator(np.random.Philox(key=key))
    if max(pixels.shape[:2]) > MOST_SIDES * side:
        height, width = (min(length, MOST_SIDES * side) for length in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    moved = cv2.resize(_move(pixels, side, generator, strength), (side, side), interpolation=cv2.INTER_AREA)
    lit = _light(moved, generator, strength)
    if generator.random() < BLUR_SHARE * strength:
        lit = cv2.GaussianBlur(lit, (0, 0), float(generator.uniform(0.3, 1.1)) * side / 112)
    return lit


def _move(pixels: np.ndarray, side: int, generator: np.random.Generator, strength: float) -> np.ndarray:
    """Mirror, shift, scale, stretch and turn in one resampling, to the `finer_shape` of `side`; what comes into view mirrors
    the photo's rim."""
    height, width = pixels.shape[:2]
    finer_height, finer_width = finer_shape(height, width, side)
    size, finer_size = np.array([width, height]), np.array([finer_width, finer_height])
    scale = np.exp(strength * generator.uniform(-MAX_SCALE, MAX_SCALE))
    stretch = 1 + strength * generator.uniform(-MAX_STRETCH, MAX_STRETCH)
    angle = np.deg2rad(strength * generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    shift = strength * generator.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    mirror = -1.0 if generator.random() < 0.5 else 1.0
    linear = np.array(
        [
            [mirror * scale * stretch * np.cos(angle), -scale * np.sin(angle)],
            [mirror * scale * np.sin(angle), scale / stretch * np.cos(angle)],
        ]
    )
    # about the photo's centre, in parts of its sides; then from pixel to pixel, whose centres lie half a pixel in
    offset = 0.5 + shift - linear @ np.array([0.5, 0.5])
    to_finer = finer_size[:, None] * linear / size
    matrix = np.column_stack([to_finer, finer_size * offset + to_finer @ np.array([0.5, 0.5]) - 0.5])
    # where a plain photo isn't interpolated at all, linear means would blur
    flags = cv2.INTER_CUBIC if (size == finer_size).all() else cv2.INTER_LINEAR
    return cv2.warpAffine(pixels, matrix, (finer_width, finer_height), flags=flags, borderMode=cv2.BORDER_REFLECT)


def _light(pixels: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    """Gain, gamma and tint by one table per channel: bins are lit unevenly and cameras differ."""
    gain = np.exp(strength * generator.uniform(-MAX_GAIN, MAX_GAIN))
    gamma = np.exp(strength * generator.uniform(-MAX_GAMMA, MAX_GAMMA))
    tint = 1 + strength * generator.uniform(-MAX_TINT, MAX_TINT, 3)
    levels = (np.arange(256) / 255.0)[:, None] ** gamma * gain * tint * 255
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)  # (256, 3)
    return cv2.LUT(pixels, table.reshape(256, 1, 3).transpose(1, 0, 2))
