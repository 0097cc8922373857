"""Photos for people: small copies of a few inside a page."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable

import cv2
import numpy as np
import simplejpeg

from jobs.stages.images import FetchPlan, Photo, fetch_allowed
from model.images import RejectedImage, UnreadableImage, read_pixels

SIDE = 224
QUALITY = 75


def read_thumbnails(image_uris: Iterable[str], plan: FetchPlan) -> dict[str, str]:
    """Data URIs by image URI, for a page's few photos; one outside the plan's roots, gone or not readable is left
    out."""
    found: dict[str, str] = {}
    for uri in image_uris:
        data = asyncio.run(fetch_allowed(uri, None, plan))
        if isinstance(data, Photo):
            continue
        try:
            found[uri] = encode_thumbnail(read_pixels(data))
        except (UnreadableImage, RejectedImage):
            continue
    return found


def encode_thumbnail(pixels: np.ndarray) -> str:
    """`data:image/jpeg;base64,…` of a photo (height, width, 3) uint8 RGB, its longer side at most SIDE pixels."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        target = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB")
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
