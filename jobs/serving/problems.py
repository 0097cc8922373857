"""Errors as a caller sees them: RFC 9457 problem details, one type per cause."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from ray.serve.metrics import Counter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

logger = logging.getLogger("ray.serve")

MEDIA_TYPE = "application/problem+json"

HUNG_UP = 499
"""The status that Serve's proxy notes for a caller who went before the answer."""

CAUSES: dict[str, tuple[int, str]] = {
    "invalid_request": (422, "The request doesn't fit the API's description"),
    "unreadable_image": (422, "The photo can't be read"),
    "image_rejected": (422, "The photo is larger than photos of bins are"),
    "unsupported_media_type": (415, "The body is neither a photo nor a form in UTF-8"),
    "body_too_large": (413, "The body is larger than this endpoint takes"),
    "body_timed_out": (408, "The body didn't arrive in time"),
    "unauthorized": (401, "A bearer token is needed"),
    "overloaded": (429, "More photos are waiting than can be counted soon"),
    "shutting_down": (503, "The endpoint is shutting down"),
    "unavailable": (503, "The network can't be reached just now"),
    "timed_out": (504, "The photo wasn't counted in time"),
    "internal_error": (500, "A defect of the endpoint; its log has the details"),
}
"""Cause -> status and title. The cause is the last part of the problem's `type`."""


class ProblemDetails(BaseModel):
    """RFC 9457; `request_id` finds the request in the endpoint's logs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """urn:stock-audit:<cause>; tell problems apart by this."""
    title: str
    """The cause in words, the same for every problem of the type."""
    status: int
    """The HTTP status."""
    detail: str
    """What was found this time."""
    request_id: str | None = None
    """As in the X-Request-ID header."""
    errors: list[dict[str, str]] | None = None
    """Of an invalid request: each place and what is wrong there."""


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """Raised anywhere in a request; answered as `application/problem+json`."""

    def __init__(self, cause: str, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.cause = cause
        self.status, self.title = CAUSES[cause]
        self.detail = detail
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        if cause == "unauthorized":
            self.headers["WWW-Authenticate"] = "Bearer"

    def details(self, request_id: str | None) -> ProblemDetails:
        """The body of its answer."""
        return ProblemDetails(
            type=f"urn:stock-audit:{self.cause}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            request_id=request_id,
        )


def answer_problem(problem: Problem, request_id: str | None) -> JSONResponse:
    """The whole answer, with headers such as Retry-After."""
    return _respond(problem.details(request_id), problem.headers)


def install_handlers(api: FastAPI, photos: Counter) -> None:
    """Every error of `api` becomes problem details, FastAPI's and Starlette's own included; `photos` counts those whose
    settings are refused before a route begins."""

    @api.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> JSONResponse:
        return answer_problem(problem, find_request_id(request.headers))

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # the value itself is left out: it may be long, and it is the caller's
        errors = [{"place": ".".join(map(str, each["loc"])), "message": str(each["msg"])} for each in error.errors()]
        text = "; ".join(f"{each['place']}: {each['message']}" for each in errors)
        problem = Problem("invalid_request", text)
        photos.inc(tags={"outcome": problem.cause})
        details = problem.details(find_request_id(request.headers))
        return _respond(details.model_copy(update={"errors": errors}), {})

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        details = ProblemDetails(
            type="about:blank",
            title=title,
            status=error.status_code,
            detail=str(error.detail),
            request_id=find_request_id(request.headers),
        )
        return _respond(details, dict(error.headers or {}))

    @api.exception_handler(ClientDisconnect)
    async def _hung_up(request: Request, error: ClientDisconnect) -> Response:
        # nobody reads it, but the proxy fails a check of its own where it gets no answer at all
        return Response(status_code=HUNG_UP)

    @api.exception_handler(Exception)
    async def _defect(request: Request, error: Exception) -> JSONResponse:
        return answer_problem(log_defect(error), find_request_id(request.headers))


def log_defect(error: Exception) -> Problem:
    """What a caller is told of an error that nobody foresaw; the log has the rest."""
    logger.error("defect: %s", type(error).__name__, exc_info=error)
    return Problem("internal_error", "see the endpoint's log for this request_id")


def find_request_id(headers: Mapping[str, str]) -> str | None:
    """The caller's X-Request-ID, or the one that Serve's proxy gave the request; it also puts it on the answer."""
    return headers.get("x-request-id")


def _respond(details: ProblemDetails, headers: dict[str, str]) -> JSONResponse:
    content = details.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, details.status, headers, media_type=MEDIA_TYPE)
