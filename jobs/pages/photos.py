"""Photos for people: small copies of a few inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

SIDE = 224
QUALITY = 75


def encode_thumbnail(pixels: np.ndarray, side: int = SIDE, quality: int = QUALITY) -> str:
    """`data:image/jpeg;base64,…` of a photo (height, width, 3) uint8 RGB, its longer side at most `side` pixels."""
    photo = Image.fromarray(pixels)
    photo.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    sink = io.BytesIO()
    photo.save(sink, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
