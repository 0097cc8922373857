"""Photos of the listed bins as small JPEG data URIs; one that can't be had shows why instead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.pages.photos import encode_thumbnail
from jobs.platform.fetching import Fault, NotFetched, fetch_bytes
from jobs.platform.roots import is_allowed
from jobs.platform.uris import bucket_of
from model.images import MAX_IMAGE_BYTES, RejectedImage, UnreadableImage, read_pixels
from schemas.errors import InputError
from schemas.results import ImageStatus

LARGE_SIDE, SMALL_SIDE = 320, 96
"""Longest side in pixels of the photos at the top of the list, which open larger, and of the rest."""

LARGE_PHOTOS = 150

MAX_PHOTO_BYTES = 5_000_000
"""Of data URIs on one page; photos further down the list stay out beyond it."""

MAX_SECONDS = 120.0
"""Spent on photos in all: a storage server that is away must not hold up the list."""

IN_FLIGHT = 16

GONE = {Fault.MISSING: "no longer there", Fault.CHANGED: "replaced since the audit"}
"""What a report says of a photo that the audit had."""


@dataclass(frozen=True)
class Thumbnail:
    """`source` is a data URI, or None with the `problem` in words."""

    source: str | None
    problem: str | None = None


def fetch_thumbnails(
    rows: list[dict[str, Any]], allowed_roots: Sequence[str] | None, *, anonymous: bool, audited_at: datetime | None
) -> list[Thumbnail]:
    """One per row (`image_uri`, `status`), in order. Only photos that the audit scored are fetched, and only below its
    allowed roots (None: its run did not write them down): since then one may have become a link that leads elsewhere. One
    that was replaced after the audit ended, at `audited_at` where that is known, is another photo than the one whose count
    stands beside it."""
    thumbnails = asyncio.run(_fetch_all(rows, allowed_roots, anonymous, audited_at))
    spent, kept = 0, []
    for thumbnail in thumbnails:
        spent += len(thumbnail.source or "")
        too_much = thumbnail.source is not None and spent > MAX_PHOTO_BYTES
        kept.append(Thumbnail(None, "left out to keep the page small") if too_much else thumbnail)
    return kept


async def _fetch_all(
    rows: list[dict[str, Any]], allowed_roots: Sequence[str] | None, anonymous: bool, audited_at: datetime | None
) -> list[Thumbnail]:
    slots = asyncio.Semaphore(IN_FLIGHT)
    deadline = time.monotonic() + MAX_SECONDS
    # bucket -> why it can't be opened; looking for credentials takes seconds where there are none: once, not per photo
    closed: dict[str, str] = {}

    async def fetch(place: int, row: dict[str, Any]) -> Thumbnail:
        if row["status"] != ImageStatus.SCORED:
            return Thumbnail(None, str(row["status"]).replace("_", " "))
        if allowed_roots is not None and not is_allowed(row["image_uri"], allowed_roots):
            return Thumbnail(None, "outside the audit's allowed roots")
        bucket = bucket_of(row["image_uri"])
        async with slots:
            if bucket in closed:
                return Thumbnail(None, closed[bucket])
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    data = await fetch_bytes(
                        row["image_uri"],
                        anonymous=anonymous,
                        most_bytes=MAX_IMAGE_BYTES,
                        unchanged_since=audited_at,
                    )
                side = LARGE_SIDE if place < LARGE_PHOTOS else SMALL_SIDE
                return Thumbnail(await asyncio.to_thread(_shrink, data, side))
            except TimeoutError:
                return Thumbnail(None, "not fetched in time")
            except NotFetched as reason:
                return Thumbnail(None, GONE.get(reason.fault, str(reason)))
            except InputError as error:  # its store can't be opened
                problem = str(error).partition(";")[0]  # the rest is advice on flags that this job doesn't have
                if bucket is not None:
                    closed[bucket] = problem
                return Thumbnail(None, problem)
            except (UnreadableImage, RejectedImage) as error:
                return Thumbnail(None, str(error))

    return list(await asyncio.gather(*(fetch(place, row) for place, row in enumerate(rows))))


def _shrink(data: bytes, side: int) -> str:
    return encode_thumbnail(read_pixels(data), side, quality=62)
