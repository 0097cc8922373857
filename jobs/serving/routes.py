"""The API's routes and its description."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, BeforeValidator

from jobs.serving import metrics
from jobs.serving.answers import EXAMPLE, Answer, BatchAnswer, BatchItem
from jobs.serving.description import (
    BATCH_BODY,
    BATCH_EXAMPLE,
    BUNDLE_EXAMPLE,
    COUNT_BODY,
    METRICS_EXAMPLE,
    ok,
    problems,
    without_places,
)
from jobs.serving.pages import render_docs, render_drop_page
from jobs.serving.problems import Problem, find_request_id, install_handlers
from jobs.serving.uploads import Upload, is_whole_number, read_upload, read_uploads
from schemas.arrow import MAX_QUANTITY
from schemas.bundle import BundleInfo

if TYPE_CHECKING:
    from jobs.serving.front import Front


Read = TypeVar("Read")


def _check_digits(value: object) -> object:
    """As in a form: pydantic would take 1.000 for 1."""
    if isinstance(value, str) and not is_whole_number(value):
        raise ValueError("expected a whole number")
    return value


class Health(BaseModel):
    """Says that there is an answer at all."""

    status: str


async def _read(reading: Awaitable[Read], front: Front) -> Read:
    """What a request holds; one that is refused meanwhile is a photo that was not counted."""
    try:
        return await reading
    except Problem as problem:
        front.photos.inc(tags={"outcome": problem.cause})
        raise


def build_api(front: Front) -> FastAPI:
    """The FastAPI application of one front replica."""
    api = FastAPI(
        title="Stock audit: the count endpoint",
        version="1",
        description="One photo of a bin, one answer: the same bundle, preprocessing and network as the nightly audit.",
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere
        redoc_url=None,
    )
    install_handlers(api, front.photos)
    timeout_s = front.settings.request_timeout_s
    # the gate asks for it; here it only stands in the API's description
    token = [Depends(HTTPBearer(auto_error=False))] if front.settings.token_digest is not None else []
    refusals = (
        *("body_timed_out", "body_too_large", "unsupported_media_type", "overloaded", "shutting_down"),
        *("invalid_request", "timed_out", "unavailable", "unauthorized", "internal_error"),
    )

    @api.post(
        "/v1/count",
        summary="Counts one photo",
        responses=ok(EXAMPLE) | problems(*refusals, "unreadable_image", "image_rejected"),
        dependencies=token,
        openapi_extra=COUNT_BODY,
    )
    async def count(
        request: Request,
        expected_qty: Annotated[
            int | None,
            BeforeValidator(_check_digits),
            Query(ge=0, le=MAX_QUANTITY, description="The recorded quantity."),
        ] = None,
    ) -> Answer:
        return await front.count(await _read(read_upload(request, expected_qty, timeout_s), front))

    @api.post(
        "/v1/count/batch",
        summary="Counts several photos; each gets an answer or a problem of its own",
        responses=ok(BATCH_EXAMPLE) | problems(*refusals),
        dependencies=token,
        openapi_extra=BATCH_BODY,
    )
    async def count_batch(request: Request) -> BatchAnswer:
        request_id = find_request_id(request.headers)
        uploads = await _read(read_uploads(request, timeout_s), front)

        async def count_one(upload: Upload) -> Answer | Problem:
            try:
                return await front.count(upload)
            except Problem as problem:
                return problem

        try:
            with front.room.more(len(uploads) - 1):
                found = await asyncio.gather(*map(count_one, uploads))
        except Problem as problem:
            front.photos.inc(len(uploads), tags={"outcome": problem.cause})
            raise
        counted = any(isinstance(each, Answer) for each in found)
        passing = [each for each in found if isinstance(each, Problem) and "Retry-After" in each.headers]
        if passing and not counted:
            raise passing[0]  # in a 200 its Retry-After would be seen by no client
        items = [
            BatchItem(file=upload.name, answer=each)
            if isinstance(each, Answer)
            else BatchItem(file=upload.name, problem=each.details(request_id))
            for upload, each in zip(uploads, found, strict=True)
        ]
        return BatchAnswer(items=items)

    @api.get(
        "/v1/bundle",
        summary="What the bundle says of itself",
        responses=ok(BUNDLE_EXAMPLE) | problems("unauthorized"),
        dependencies=token,
    )
    async def bundle() -> BundleInfo:
        return without_places(front.bundle)

    @api.get("/healthz", summary="The process answers", responses=ok({"status": "ok"}))
    async def healthz() -> Health:
        return Health(status="ok")

    @api.get(
        "/readyz",
        summary="A photo would be counted",
        responses=ok({"status": "ready"}) | problems("unavailable", "shutting_down"),
    )
    async def readyz() -> Health:
        await front.check_ready()
        return Health(status="ready")

    @api.get(
        "/metrics",
        summary="Prometheus: Ray Serve's figures and ours, of all nodes",
        response_class=PlainTextResponse,
        responses=ok(METRICS_EXAMPLE, "text/plain") | problems("unauthorized", "unavailable"),
        dependencies=token,
    )
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(await metrics.gather_metrics(), media_type=metrics.MEDIA_TYPE)

    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        html, policy = render_drop_page(front.bundle, needs_token=front.settings.token_digest is not None)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        html, policy = render_docs(api.openapi())
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    return api
