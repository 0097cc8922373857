"""Photos for people: where they may be read from, and small copies of a few inside a page."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable

import cv2
import numpy as np
import simplejpeg

from jobs import storage
from jobs.stages.images import FetchPlan, Photo, fetch_bytes
from jobs.stages.manifest import Manifest
from model.images import RejectedImage, UnreadableImage, read_pixels
from schemas.errors import InputError

SIDE = 224
QUALITY = 75


def settle_roots(manifest: Manifest, allowed_root: tuple[str, ...]) -> tuple[str, ...]:
    """Below these URIs photos may be read: --allowed-root, else the manifest's images_uri.

    Raises InputError where neither is given.
    """
    if allowed_root:
        return tuple(storage.absolute(root) for root in allowed_root)
    if manifest.images_uri is None:
        raise InputError(
            f"{manifest.uri}: no images_uri in the file metadata; say with --allowed-root where photos may be read from"
        )
    return (storage.absolute(manifest.images_uri),)


def read_thumbnails(image_uris: Iterable[str], plan: FetchPlan) -> dict[str, str]:
    """Data URIs by image URI, for a page's few photos; one outside the plan's roots, gone or not readable is left
    out."""
    found: dict[str, str] = {}
    for uri in image_uris:
        data = asyncio.run(fetch_bytes(uri, None, plan))
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
