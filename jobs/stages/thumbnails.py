"""Small copies of a few photos for a page, fetched by the audit's rules."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from jobs.pages.photos import encode_thumbnail
from jobs.stages.images import FetchPlan, Photo, fetch_allowed
from model.images import RejectedImage, UnreadableImage, read_pixels


def read_thumbnails(image_uris: Iterable[str], plan: FetchPlan) -> dict[str, str]:
    """Data URIs by image URI, for a page's few photos, all fetched at once: a storage that is away is waited for once.
    One outside the plan's roots, gone or not readable is left out."""

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
