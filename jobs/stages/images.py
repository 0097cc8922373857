"""Fetches and decodes the photos of a shard on CPU workers: many requests in flight, each photo decoded as it comes.

Ray's `download()` expression is not used: it turns every failure into a null and has lost existing files at random.
Here every row keeps a status and an error.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
import ray

from jobs.platform import fetching, s3
from jobs.platform.fetching import OUTAGE_FAILURES, FailureStreak, Fault, NotFetched
from jobs.platform.roots import is_allowed, names_no_object
from jobs.platform.uris import UNSTORABLE, is_s3
from model.images import MAX_IMAGE_BYTES, RejectedImage, UnreadableImage, decode_image
from schemas.bundle import Preprocessing
from schemas.errors import GateError
from schemas.manifest import MANIFEST_SCHEMA
from schemas.results import ImageStatus

Used = TypeVar("Used")

IN_FLIGHT = 32
"""Requests at once per worker process: enough to hide latency, and at most IN_FLIGHT * MAX_IMAGE_BYTES of memory."""

MIN_CONTRAST = 2.0
"""Standard deviation of grey values, of 255: below it a photo tells nothing (a blank frame of whatever colour). The flattest
of 8,001 real bin photos has 10.0 at 112 pixels, and the noise of a dark frame, 14 levels strong, 3.5 once it is shrunk to 32."""

STATUS_OF = dict.fromkeys(Fault, ImageStatus.FETCH_FAILED) | {
    Fault.MISSING: ImageStatus.MISSING_IMAGE,
    Fault.NO_KEY: ImageStatus.IMAGE_REJECTED,
    Fault.TOO_LARGE: ImageStatus.IMAGE_REJECTED,
}

PHOTO_COLUMNS = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("training_photo", pa.bool_(), nullable=False),
    pa.field("contrast", pa.float32()),
    pa.field("pixels", pa.binary()),
]
"""Added to a shard's rows; `pixels` is (S, S, 3) uint8 in row-major order, null where there is no whole photo."""

LISTED_COLUMNS = ("image_uri", "image_etag", "image_bytes")
"""Of the manifest: where a photo is, and what it was when it was listed; null where nobody says."""

FETCHED_SCHEMA = pa.schema([*MANIFEST_SCHEMA, *PHOTO_COLUMNS])


@dataclass(frozen=True)
class FetchPlan:
    """What every worker must know to fetch."""

    preprocessing: Preprocessing
    allowed_roots: tuple[str, ...]
    anonymous: bool
    training_photos: ray.ObjectRef | None
    """(n, 32) uint8: SHA-256 of the photos that the bundle has learned from."""


@dataclass
class Photo:
    """What became of one row's image."""

    status: ImageStatus
    error: str | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)
    """No part of the text of a Photo: asyncio.run writes that of its result into an error that Python drops."""
    sha256: bytes = b""
    contrast: float | None = None
    gave_up: bool = False
    """The storage did not deliver, after all retries or for a reason that is not the photo's; see Fault.GAVE_UP."""


def fetch_rows(rows: pa.Table, plan: FetchPlan) -> pa.Table:
    """Adds PHOTO_COLUMNS to manifest rows: one photo per row, in the same order."""
    photos = fetch_photos(rows, plan)
    known = _training_photos(plan.training_photos)
    columns = [
        pa.array([str(photo.status) for photo in photos], pa.string()),
        pa.array([photo.error for photo in photos], pa.string()),
        pa.array([photo.sha256 in known for photo in photos], pa.bool_()),
        pa.array([photo.contrast for photo in photos], pa.float32()),
        _pixels_column([photo.pixels for photo in photos]),
    ]
    return pa.Table.from_arrays([*rows.select(MANIFEST_SCHEMA.names).columns, *columns], schema=FETCHED_SCHEMA)


def fetch_photos(rows: pa.Table, plan: FetchPlan) -> list[Photo]:
    """What became of each row's photo, in the same order; as `fetch_each`."""
    return fetch_each(rows, plan, partial(_decode, preprocessing=plan.preprocessing))


def explain_poor(contrast: float | None) -> str | None:
    """Why a photo of so little contrast tells nothing of its bin; None where it may tell something, or can't be read."""
    if contrast is None or contrast >= MIN_CONTRAST:
        return None
    return f"contrast {contrast:.1f}, expected {MIN_CONTRAST:g} or more: a blank frame"


def measure_contrast(pixels: np.ndarray) -> float:
    """Standard deviation of the grey values of a photo (S, S, 3) uint8, so that a frame of one colour has none."""
    return float(cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[1].item())


def _pixels_column(photos: list[np.ndarray | None]) -> pa.Array:
    """Binary; every photo is copied once, where pyarrow's own way from arrays would take two copies."""
    ends = np.cumsum([0, *(0 if photo is None else photo.size for photo in photos)]).astype(np.int32)
    data = np.concatenate([np.empty(0, np.uint8), *(photo.ravel() for photo in photos if photo is not None)])
    is_valid = pa.array([photo is not None for photo in photos], pa.bool_()).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(photos), [is_valid, pa.py_buffer(ends), pa.py_buffer(data)])


def pixels_of(rows: pa.Table, preprocessing: Preprocessing) -> np.ndarray:
    """The photos of the rows that have one: (n, S, S, 3) uint8, in the order of the rows, read-only: where every row
    has one they are where Arrow holds them, as a copy of a shard costs half a percent of its scoring."""
    side = preprocessing.image_size
    column = rows["pixels"].drop_null() if rows["pixels"].null_count else rows["pixels"]
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if len(whole) == 0:
        return np.empty((0, side, side, 3), np.uint8)
    _, offsets, data = whole.buffers()
    ends = np.frombuffer(offsets, np.int32)[whole.offset : whole.offset + len(whole) + 1]
    assert (np.diff(ends) == side * side * 3).all(), "every photo has one size"
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].reshape(len(whole), side, side, 3)


def fetch_each(rows: pa.Table, plan: FetchPlan, use: Callable[[bytes | Photo], Used]) -> list[Used]:
    """What `use` makes of each photo while other requests are under way, in the order of `rows` (LISTED_COLUMNS). Raises
    GateError where the storage stopped delivering: waiting for its retries photo by photo would take hours."""

    async def fetch_all() -> list[Used]:
        slots = asyncio.Semaphore(IN_FLIGHT)
        streak = FailureStreak()

        async def fetch(uri: str, etag: str | None, num_bytes: int | None) -> Used:
            async with slots:
                # of a manifest without ETags, as from an inventory of yesterday, the size isn't today's either
                found = await fetch_allowed(uri, plan, etag=etag, num_bytes=num_bytes if etag else None)
                if not (isinstance(found, Photo) and found.gave_up):
                    streak.end()
                elif streak.add():
                    server = (s3.endpoint() or "S3") if is_s3(uri) else "local files"
                    raise GateError(
                        f"{server}: the storage stopped delivering: {uri}: {found.error}, like "
                        f"{OUTAGE_FAILURES - 1} photos before it; when storage is back, the same command goes on"
                    )
                return use(found)

        listed = zip(*(rows[name].to_pylist() for name in LISTED_COLUMNS), strict=True)
        return await asyncio.gather(*(fetch(*one) for one in listed))

    return asyncio.run(fetch_all())


async def fetch_allowed(
    uri: str, plan: FetchPlan, *, etag: str | None = None, num_bytes: int | None = None
) -> bytes | Photo:
    """The whole object, or what became of it instead. An ETag (in S3) and a size other than None must be the object's
    still."""
    if is_s3(uri) and names_no_object(uri):
        return Photo(ImageStatus.IMAGE_REJECTED, "a key with an empty part, . or .. in it; rename the object")
    if UNSTORABLE.search(uri):
        return Photo(ImageStatus.IMAGE_REJECTED, "a control character in its name; rename the file")
    if not is_allowed(uri, plan.allowed_roots):
        return Photo(ImageStatus.IMAGE_REJECTED, "outside the allowed roots; see --allowed-root")
    try:
        return await fetching.fetch_bytes(
            uri, anonymous=plan.anonymous, most_bytes=MAX_IMAGE_BYTES, etag=etag, num_bytes=num_bytes
        )
    except NotFetched as reason:
        return Photo(STATUS_OF[reason.fault], str(reason), gave_up=reason.fault is Fault.GAVE_UP)


def _decode(data: bytes | Photo, preprocessing: Preprocessing) -> Photo:
    if isinstance(data, Photo):
        return data
    digest = hashlib.sha256(data).digest()
    try:
        pixels = decode_image(data, preprocessing)
    except (UnreadableImage, RejectedImage) as error:
        return Photo(error.status, str(error), sha256=digest)
    return Photo(ImageStatus.SCORED, pixels=pixels, contrast=measure_contrast(pixels), sha256=digest)


@lru_cache(maxsize=2)
def _training_photos(reference: ray.ObjectRef | None) -> frozenset[bytes]:
    if reference is None:
        return frozenset()
    return frozenset(digest.tobytes() for digest in ray.get(reference))
