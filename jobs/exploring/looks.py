"""What photos look like: size, brightness, contrast and detail of a sample that the same seed always draws."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from jobs.stages.images import IN_FLIGHT, FetchPlan, OutageWatch, Photo, fetch_bytes
from model.images import RejectedImage, UnreadableImage, read_pixels, resize_image
from schemas.bundle import Preprocessing
from schemas.results import ImageStatus

LOOK = Preprocessing(image_size=112)
"""Brightness, contrast and detail are measured at one size, so that photos of several sizes compare."""


def draw_sample(bin_ids: list[str], share: float, seed: int) -> list[bool]:
    """Which bins are in the sample: those whose keyed hash falls below `share`, whatever the other bins."""
    key = f"explore-{seed}".encode()
    limit = share * 2.0**64
    return [
        int.from_bytes(hashlib.blake2b(bin_id.encode(), digest_size=8, key=key).digest()) < limit for bin_id in bin_ids
    ]


def look_at(rows: pa.Table, plan: FetchPlan) -> list[dict[str, Any]]:
    """One dict per manifest row: bin_id, image_uri, expected_qty, status, error, and for a readable photo num_bytes,
    width, height, brightness and contrast (mean and standard deviation of grey, 0..255), detail (mean absolute
    Laplacian of grey), sha256."""
    return asyncio.run(_look_at_all(rows, plan))


async def _look_at_all(rows: pa.Table, plan: FetchPlan) -> list[dict[str, Any]]:
    slots, watch = asyncio.Semaphore(IN_FLIGHT), OutageWatch()

    async def look(row: dict[str, Any]) -> dict[str, Any]:
        async with slots:
            found = await fetch_bytes(row["image_uri"], row["image_etag"], plan)
            watch.note(row["image_uri"], found)
            described = _describe(found)
        return {name: row[name] for name in ("bin_id", "image_uri", "expected_qty")} | described

    columns = rows.select(["bin_id", "image_uri", "image_etag", "expected_qty"])
    return list(await asyncio.gather(*(look(row) for row in columns.to_pylist())))


def _describe(found: bytes | Photo) -> dict[str, Any]:
    if isinstance(found, Photo):
        return {"status": str(found.status), "error": found.error}
    try:
        pixels = read_pixels(found)
    except UnreadableImage as error:
        return {"status": str(ImageStatus.UNREADABLE_IMAGE), "error": str(error)}
    except RejectedImage as error:
        return {"status": str(ImageStatus.IMAGE_REJECTED), "error": str(error)}
    grey = cv2.cvtColor(resize_image(pixels, LOOK), cv2.COLOR_RGB2GRAY)
    return {
        "status": str(ImageStatus.SCORED),
        "error": None,
        "num_bytes": len(found),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "detail": float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean()),
        "sha256": hashlib.sha256(found).hexdigest(),
    }
