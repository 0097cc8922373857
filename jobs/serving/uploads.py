"""From a request to the photos in it: a raw body, or the files of a form."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from jobs.serving.problems import Problem
from schemas.arrow import MAX_QUANTITY

Body = TypeVar("Body")

MAX_PHOTOS = 64
"""Of one batch."""


@dataclass
class Upload:
    """One photo as it came."""

    data: bytes
    name: str | None
    expected_qty: int | None

    def take(self) -> bytes:
        """The photo's bytes, kept no longer: once they are decoded, waiting for the network needs none of them."""
        data, self.data = self.data, b""
        return data


async def read_upload(request: Request, expected_qty: int | None, timeout_s: float) -> Upload:
    """The one photo of a request. Raises Problem."""
    _check_query(request, "expected_qty")
    kind = _media_type(request)
    if kind == "multipart/form-data":
        files, recorded = await _read_form(request, 1, timeout_s)
        if not files:
            raise Problem("invalid_request", "expected one file in the form field `file`, found none")
        if recorded and expected_qty is not None:
            raise Problem("invalid_request", "expected_qty: expected in the query or in the form, found in both")
        if len(recorded) > 1:
            raise Problem("invalid_request", f"expected_qty: expected one, found {len(recorded)}")
        return replace(files[0], expected_qty=recorded[0] if recorded else expected_qty)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Upload(await _in_time(_read_body(request), timeout_s), None, expected_qty)
    raise Problem(
        "unsupported_media_type",
        "Content-Type: expected image/* or application/octet-stream, or multipart/form-data with the field `file`, "
        f"found {kind or 'none'}",
    )


async def read_uploads(request: Request, timeout_s: float) -> list[Upload]:
    """The photos of a batch: form fields `file`, and as many `expected_qty` as files or none. Raises Problem."""
    _check_query(request)
    kind = _media_type(request)
    if kind != "multipart/form-data":
        raise Problem("unsupported_media_type", f"Content-Type: expected multipart/form-data, found {kind or 'none'}")
    files, recorded = await _read_form(request, MAX_PHOTOS, timeout_s)
    if not files:
        raise Problem("invalid_request", "expected one or more files in the form field `file`, found none")
    if recorded and len(recorded) != len(files):
        raise Problem(
            "invalid_request",
            f"expected_qty: expected none or one per file ({len(files)}; empty where there is no record), "
            f"found {len(recorded)}",
        )
    quantities = recorded or [None] * len(files)
    return [replace(file, expected_qty=quantity) for file, quantity in zip(files, quantities, strict=True)]


def _check_query(request: Request, known: str | None = None) -> None:
    """Raises Problem for a parameter that would be passed over: another one than `known`, or one that stands there twice."""
    found = [name for name, _ in request.query_params.multi_items()]
    if found not in ([], [known]):
        expected = f"at most one {known}" if known else "nothing, and quantities in the form"
        raise Problem("invalid_request", f"query: expected {expected}, found {', '.join(found)[:100]}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()[:100]


async def _read_body(request: Request) -> bytes:
    # not request.body(): it would keep the bytes until the answer is sent
    return b"".join([chunk async for chunk in request.stream()])


async def _read_form(request: Request, max_files: int, timeout_s: float) -> tuple[list[Upload], list[int | None]]:
    """The files in the field `file` and the quantities in the field `expected_qty`. Raises Problem."""
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.strip().lower() not in ("utf-8", "utf8"):
        # the form's parser would look it up among Python's codecs, which hold more than charsets
        raise Problem("unsupported_media_type", f"charset: expected utf-8 or none, found {charset[:100]}")
    reading = request.form(max_files=max_files, max_fields=MAX_PHOTOS, max_part_size=1024)
    try:
        form = await _in_time(reading, timeout_s)
    except HTTPException as error:  # a broken form, or more in it than is taken
        raise Problem("invalid_request", str(error.detail)) from error
    try:
        if unknown := sorted(set(form) - {"file", "expected_qty"}):
            found = _clean(", ".join(unknown))[:100]
            raise Problem("invalid_request", f"form: expected the fields file and expected_qty, found {found}")
        files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
        if len(files) < len(form.getlist("file")):
            raise Problem("invalid_request", "file: expected files, each with a filename, found text in the form field")
        recorded = [_parse_quantity(value) for value in form.getlist("expected_qty")]
        return [Upload(await file.read(), file.filename and _clean(file.filename), None) for file in files], recorded
    finally:
        await form.close()


def _clean(name: str) -> str:
    """A lone surrogate could not be written into the answer."""
    return name.encode("utf-8", "replace").decode()


async def _in_time(reading: Awaitable[Body], timeout_s: float) -> Body:
    try:
        return await asyncio.wait_for(reading, timeout_s)
    except TimeoutError as error:
        raise Problem("body_timed_out", f"expected the whole body within {timeout_s:g} s") from error


def is_whole_number(text: str) -> bool:
    """Digits alone: 1.000 is a thousand to many, and Python takes 1_000 for one."""
    return text.isascii() and text.isdecimal()


def _parse_quantity(value: UploadFile | str) -> int | None:
    text = value.strip() if isinstance(value, str) else "a file"
    if not text:
        return None
    if not is_whole_number(text) or len(text) > 10 or int(text) > MAX_QUANTITY:
        raise Problem("invalid_request", f"expected_qty: expected a whole number from 0 to {MAX_QUANTITY}")
    return int(text)
