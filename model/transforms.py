"""Training-time augmentation that suits bins; the elastic tape across the front stays, as it is in every photo."""

from __future__ import annotations

import cv2
import numpy as np

from model.images import resize_image
from schemas.bundle import Preprocessing

# At strength 1.
MAX_SHIFT = 0.08
MAX_ROTATION_DEGREES = 3.0
MAX_SCALE = 0.18
MAX_STRETCH = 0.1
MAX_GAIN = 0.35
MAX_GAMMA = 0.25
MAX_TINT = 0.06
BLUR_SHARE = 0.2


def augment(pixels: np.ndarray, key: int, strength: float, preprocessing: Preprocessing) -> np.ndarray:
    """A photo, uint8 (height, width, 3), as the network sees it in training: (S, S, 3), S = `preprocessing.image_size`;
    mirrored in half of the cases, and moved, scaled, lit and blurred as far as `strength` (0 to 1) allows, as the 64-bit
    `key` says.

    It is moved at up to twice the final size and shrunk then, so that it comes out as sharp as a photo that was not
    moved: at the final size the resampling would cost a third of the fine detail, and the network would learn from
    softer photos than it is asked about.
    """
    generator = np.random.Generator(np.random.Philox(key=key))
    side = preprocessing.image_size
    canvas = preprocessing.model_copy(update={"image_size": int(np.clip(min(pixels.shape[:2]), side, 2 * side))})
    moved = resize_image(_move(resize_image(pixels, canvas), generator, strength), preprocessing)
    lit = _light(moved, generator, strength)
    if generator.random() < BLUR_SHARE * strength:
        lit = cv2.GaussianBlur(lit, (0, 0), float(generator.uniform(0.3, 1.1)) * side / 112)
    return lit


def _move(pixels: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    """Mirror, shift, scale, stretch and turn in one resampling; what comes into view mirrors the photo's rim."""
    side = len(pixels)
    centre = (side - 1) / 2
    scale = np.exp(strength * generator.uniform(-MAX_SCALE, MAX_SCALE))
    stretch = 1 + strength * generator.uniform(-MAX_STRETCH, MAX_STRETCH)
    angle = np.deg2rad(strength * generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    shift = strength * generator.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * side
    mirror = -1.0 if generator.random() < 0.5 else 1.0
    linear = np.array(
        [
            [mirror * scale * stretch * np.cos(angle), -scale * np.sin(angle)],
            [mirror * scale * np.sin(angle), scale / stretch * np.cos(angle)],
        ]
    )
    offset = np.array([centre, centre]) + shift - linear @ np.array([centre, centre])
    return cv2.warpAffine(
        pixels, np.column_stack([linear, offset]), (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )


def _light(pixels: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    """Gain, gamma and tint by one table per channel: bins are lit unevenly and cameras differ."""
    gain = np.exp(strength * generator.uniform(-MAX_GAIN, MAX_GAIN))
    gamma = np.exp(strength * generator.uniform(-MAX_GAMMA, MAX_GAMMA))
    tint = 1 + strength * generator.uniform(-MAX_TINT, MAX_TINT, 3)
    levels = (np.arange(256) / 255.0)[:, None] ** gamma * gain * tint * 255
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)  # (256, 3)
    return cv2.LUT(pixels, table.reshape(256, 1, 3).transpose(1, 0, 2))
