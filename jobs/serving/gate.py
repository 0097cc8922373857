"""What every request passes before any of it is read: token, room, size; and what is noted about it afterwards."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray.serve.metrics import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.serving.access import is_authorized
from jobs.serving.problems import Problem, answer_problem, find_request_id

logger = logging.getLogger("ray.serve")

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
"""Answered without a token: they tell nothing about bins, and of the bundle its id and classes at most."""

WORK_PREFIX = "/v1/count"
"""Requests below it hold a photo, and a place."""

MAX_HELD_BYTES = 512 * 1024 * 1024
"""Of bodies that one front replica holds at once: by their number alone, large ones would fill its memory."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass
class Room:
    """How many photos a front replica works on, how many bytes they hold, and whether it takes more."""

    limit: int
    in_flight: int = 0
    held_bytes: int = 0
    draining: bool = False
    typical_seconds: float = 1.0
    """A moving average, for Retry-After."""
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        """Raises Problem where no request is taken."""
        if self.draining:
            raise Problem("shutting_down", "send the photo to another replica", retry_after_s=5)
        self._take(1)
        self.empty.clear()

    @contextmanager
    def more(self, places: int) -> Iterator[None]:
        """Places for a batch beside its request's own. Raises Problem where there are not so many; a batch that is
        larger than the room may have it alone."""
        places = min(places, self.limit - 1)
        self._take(places)
        try:
            yield
        finally:
            self.in_flight -= places

    def _take(self, places: int) -> None:
        if self.in_flight + places > self.limit:
            raise self.overloaded(f"{self.in_flight} photos are in flight, there is no room for {places} more")
        self.in_flight += places

    def hold(self, num_bytes: int) -> None:
        """Raises Problem where there is no memory for so many bytes more."""
        if self.held_bytes + num_bytes > MAX_HELD_BYTES:
            raise self.overloaded(f"{self.held_bytes} bytes are held, there is no room for {num_bytes} more")
        self.held_bytes += num_bytes

    def let_go(self, num_bytes: int) -> None:
        """Of what `hold` took."""
        self.held_bytes -= num_bytes

    def leave(self, seconds: float) -> None:
        """Ends what `enter` began, `seconds` ago."""
        self.in_flight -= 1
        self.typical_seconds += 0.1 * (seconds - self.typical_seconds)
        if not self.in_flight:
            self.empty.set()

    async def drain(self, timeout_s: float) -> int:
        """Takes nothing more and waits for what is in flight; how many photos are left when time is up."""
        self.draining = True
        if self.in_flight:
            try:
                await asyncio.wait_for(self.empty.wait(), timeout_s)
            except TimeoutError:
                return self.in_flight
        return 0

    def overloaded(self, found: str) -> Problem:
        """What a caller is told who is to come back after about as long as a photo takes."""
        return Problem("overloaded", found, retry_after_s=max(1, math.ceil(self.typical_seconds)))


class Gate:
    """ASGI middleware around the whole API."""

    def __init__(
        self, app: ASGIApp, room: Room, photos: Counter, token_digest: bytes | None, max_body_bytes: int
    ) -> None:
        self._app = app
        self._room = room
        self._photos = photos
        self._token_digest = token_digest
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        seen = {"status": 0, "bytes": 0, "held": 0}

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                answer_headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer_headers.setdefault(name, value)
            await send(message)

        async def receive_some() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                seen["bytes"] += len(message.get("body", b""))
                self._check_more(seen)  # what it raises leaves through the application, which counts and answers it
            return message

        # Serve leaves the route_prefix of a deployment in the path
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        holds_photo = path.startswith(WORK_PREFIX)
        entered = False
        try:
            self._check_token(path, headers)
            if holds_photo:
                announced = self._check_length(headers)
                self._room.enter()
                entered = True
                self._room.hold(announced)
                seen["held"] = announced
            await self._app(scope, receive_some, send_on)
        except Problem as problem:
            if holds_photo:
                self._photos.inc(tags={"outcome": problem.cause})
            await answer_problem(problem, find_request_id(headers))(scope, receive, send_on)
        finally:
            seconds = time.monotonic() - started
            self._room.let_go(seen["held"])
            if entered:
                self._room.leave(seconds)
            # the path that was asked for stays out where it is no route of ours: it may hold anything
            route = scope.get("route")
            facts = {
                "method": scope["method"],
                "path": getattr(route, "path", None),
                # 499: the caller hung up in mid-upload; none: while it waited, or a defect (logged by itself)
                "status": seen["status"] or None,
                "seconds": round(seconds, 4),
                "body_bytes": seen["bytes"],
                # one line per photo on the driver's console would cost more than the photo
                "log_to_stderr": False,
            }
            # Serve's filters add request_id, replica and application to it
            logger.info("request", extra=facts)

    def _check_token(self, path: str, headers: Headers) -> None:
        if self._token_digest is None or path in OPEN_PATHS:
            return
        header = headers.get("authorization", "").encode("latin-1", "replace")
        if not is_authorized(header, self._token_digest):
            found = "another token" if header else "no Authorization header"
            raise Problem("unauthorized", f"expected Authorization: Bearer <token>, found {found}")

    def _check_length(self, headers: Headers) -> int:
        """The length that the body is said to have; 0 where nothing is said."""
        length = headers.get("content-length", "")[:20]
        if not length.isdecimal():
            return 0
        if int(length) > self._max_body_bytes:
            raise self._too_large(length)
        return int(length)

    def _check_more(self, seen: dict[str, int]) -> None:
        if seen["bytes"] > self._max_body_bytes:
            raise self._too_large("more")
        if seen["bytes"] > seen["held"]:  # no length was announced
            self._room.hold(seen["bytes"] - seen["held"])
            seen["held"] = seen["bytes"]

    def _too_large(self, found: str) -> Problem:
        return Problem("body_too_large", f"expected at most {self._max_body_bytes} bytes, found {found}")
