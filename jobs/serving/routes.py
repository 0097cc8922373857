"""The API's routes and its description."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel

from jobs.serving import metrics
from jobs.serving.answers import EXAMPLE, Answer, BatchAnswer, BatchItem
from jobs.serving.pages import render_docs, render_drop_page
from jobs.serving.problems import CAUSES, MEDIA_TYPE, Problem, ProblemDetails, find_request_id, install_handlers
from jobs.serving.uploads import MAX_QTY, Upload, read_upload, read_uploads
from schemas.bundle import BundleInfo

if TYPE_CHECKING:
    from jobs.serving.front import Front

PHOTO = {"type": "string", "format": "binary", "description": "A JPEG, PNG or WebP photo of one bin."}
QUANTITY = {"type": "integer", "minimum": 0, "maximum": MAX_QTY, "description": "The recorded quantity."}
COUNT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": PHOTO},
            "application/octet-stream": {"schema": PHOTO},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": PHOTO, "expected_qty": QUANTITY},
                }
            },
        },
    },
    "x-example": "curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/v1/count?expected_qty=3'",
}
BATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": PHOTO, "minItems": 1, "maxItems": 64},
                        "expected_qty": {"type": "array", "items": QUANTITY, "description": "One per file, or none."},
                    },
                }
            }
        },
    },
    "x-example": "curl -F file=@a.jpg -F file=@b.jpg -F expected_qty=3 -F expected_qty=0 http://127.0.0.1:8000/v1/count/batch",
}


class Health(BaseModel):
    """Says that there is an answer at all."""

    status: str


def build_api(front: Front) -> FastAPI:
    """The FastAPI application of one front replica."""
    api = FastAPI(
        title="Stock audit: the count endpoint",
        version="1",
        description="One photo of a bin, one answer: the same bundle, preprocessing and network as the nightly audit.",
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere
        redoc_url=None,
    )
    install_handlers(api)
    timeout_s = front.settings.request_timeout_s
    bounded = _problems("body_timed_out", "body_too_large", "unsupported_media_type", "overloaded", "shutting_down")

    @api.post(
        "/v1/count",
        summary="Counts one photo",
        responses=_ok(EXAMPLE) | bounded | _problems("invalid_request", "timed_out", "unauthorized"),
        openapi_extra=COUNT_BODY,
    )
    async def count(
        request: Request,
        expected_qty: Annotated[int | None, Query(ge=0, le=MAX_QTY, description="The recorded quantity.")] = None,
    ) -> Answer:
        return await front.count(await read_upload(request, expected_qty, timeout_s))

    @api.post(
        "/v1/count/batch",
        summary="Counts several photos; each gets an answer or a problem of its own",
        responses=bounded | _problems("invalid_request", "unauthorized"),
        openapi_extra=BATCH_BODY,
    )
    async def count_batch(request: Request) -> BatchAnswer:
        request_id = find_request_id(request.headers)

        async def count_one(upload: Upload) -> BatchItem:
            try:
                return BatchItem(file=upload.name, answer=await front.count(upload))
            except Problem as problem:
                return BatchItem(file=upload.name, problem=problem.details(request_id))

        uploads = await read_uploads(request, timeout_s)
        return BatchAnswer(items=list(await asyncio.gather(*map(count_one, uploads))))

    @api.get("/v1/bundle", summary="What the bundle says of itself", responses=_problems("unauthorized"))
    async def bundle() -> BundleInfo:
        return front.bundle

    @api.get("/healthz", summary="The process answers")
    async def healthz() -> Health:
        return Health(status="ok")

    @api.get("/readyz", summary="A photo would be counted", responses=_problems("unavailable"))
    async def readyz() -> Health:
        await front.check_ready()
        return Health(status="ready")

    @api.get(
        "/metrics",
        summary="Prometheus: Ray Serve's figures and ours, of all nodes",
        response_class=PlainTextResponse,
        responses=_problems("unauthorized", "unavailable"),
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


def _ok(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


def _problems(*causes: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of these causes."""
    schema = ProblemDetails.model_json_schema()
    responses: dict[int | str, dict[str, Any]] = {}
    for cause in causes:
        status, title = CAUSES[cause]
        example = Problem(cause, "…").details("a2c7…").model_dump(exclude_none=True)
        responses[status] = {"description": title, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}
    return responses
