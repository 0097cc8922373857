"""Photos for people: small copies of a few inside a page."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model.images import RejectedImage, UnreadableImage, read_pixels

if TYPE_CHECKING:
    from jobs.stages.images import FetchPlan

SIDE = 224
QUALITY = 75


def read_thumbnails(image_uris: Iterable[str], plan: FetchPlan) -> dict[str, str]:
    """Data URIs by image URI, for a page's few photos, all fetched at once: a storage that is away is waited for once.
    One outside the plan's roots, gone or not readable is left out."""
    from jobs.stages.images import Photo, fetch_allowed  # with Ray, which a report does without

    async def read(uri: str) -> str | None:
        data = await fetch_allowed(uri, plan)
        if isinstance(data, Photo):
            return None
        try:
            return encode_thumbnail(read_pixels(data))
        except (UnreadableImage, RejectedImage):
            return None

    async def read_all() -> list[str | None]:
        return await asyncio.gather(*map(read, uris))

    uris = list(image_uris)
    return {uri: source for uri, source in zip(uris, asyncio.run(read_all()), strict=True) if source is not None}


def encode_thumbnail(pixels: np.ndarray, side: int = SIDE, quality: int = QUALITY) -> str:
    """`data:image/jpeg;base64,…` of a photo (height, width, 3) uint8 RGB, its longer side at most `side` pixels."""
    photo = Image.fromarray(pixels)
    photo.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    sink = io.BytesIO()
    photo.save(sink, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
