"""What photos look like: size, brightness, contrast and detail of a sample that the same seed always draws."""

from __future__ import annotations

import hashlib
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from jobs.stages.images import FetchPlan, Photo, fetch_each, measure_contrast
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
    names = ["bin_id", "image_uri", "expected_qty"]
    looks = fetch_each(rows, plan, _describe)
    return [row | look for row, look in zip(rows.select(names).to_pylist(), looks, strict=True)]


def _describe(found: bytes | Photo) -> dict[str, Any]:
    if isinstance(found, Photo):
        return {"status": str(found.status), "error": found.error}
    try:
        pixels = read_pixels(found)
    except (UnreadableImage, RejectedImage) as error:
        return {"status": str(error.status), "error": str(error)}
    resized = resize_image(pixels, LOOK)
    grey = cv2.cvtColor(resized, cv2.COLOR_RGB2GRAY)
    return {
        "status": ImageStatus.SCORED,
        "error": None,
        "num_bytes": len(found),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "brightness": float(grey.mean()),
        "contrast": measure_contrast(resized),
        "detail": float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean()),
        "sha256": hashlib.sha256(found).hexdigest(),
    }
