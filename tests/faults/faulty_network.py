"""An S3 server that can be stopped, and the network between the audit and it, with the faults that a test switches on.

Requests pass through unchanged (the Host header too, which signatures cover); the server behind is a real one.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from tests.conftest import free_port, start_s3_server

Requests = Callable[[str, str], bool]
"""Chooses requests by method and path."""

HOP_HEADERS = {"Connection", "Keep-Alive", "Transfer-Encoding", "Expect"}


class Server:
    """`weed mini`, which can be stopped and started again with what it holds."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self._process = start_s3_server(self._folder, self._port)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


@dataclass
class Faults:
    """What goes wrong at present. Shares are dealt out in turn, so that a third is every third request."""

    refuse_every: int = 0
    """Every so many-th request is answered 503 SlowDown."""
    cut_every: int = 0
    """The body of every so many-th GET stops half-way."""
    delay: float = 0.0
    """Seconds before each request is passed on."""
    deny: Requests | None = None
    """These are answered 403 AccessDenied."""
    drop: Requests | None = None
    """These never arrive: the connection breaks."""
    hold: Requests | None = None
    """These wait for as long as this is set."""
    num_held: int = 0
    """Requests that wait at present."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request that was passed on."""
    watchers: list[tuple[Requests, Callable[[], None]]] = field(default_factory=list)
    """On the first such request, before it is passed on, the function is called (once, in a thread of its own)."""
    num_injected: int = 0


class FaultyNetwork:
    """A proxy in front of an S3 server, in a thread of this process."""

    def __init__(self, port: int, server: str) -> None:
        self.faults = Faults()
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-network", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(port), self._loop).result(timeout=30)

    def heal(self) -> None:
        self.faults = Faults()

    def watch(self, requests: Requests, call: Callable[[], None]) -> None:
        self.faults.watchers.append((requests, call))

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()

    async def _start(self, port: int) -> None:
        self._client = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        faults, (method, path) = self.faults, await _name(request)
        for watcher in [one for one in faults.watchers if one[0](method, path)]:
            faults.watchers.remove(watcher)
            await asyncio.to_thread(watcher[1])
        if faults.hold is not None and faults.hold(method, path):
            faults.num_held += 1
            while self.faults.hold is not None and self.faults.hold(method, path) and request.transport is not None:
                await asyncio.sleep(0.05)
            faults.num_held -= 1
        if request.transport is None:
            return web.Response()  # who asked has gone, and may ask again: once is enough
        if faults.delay:
            faults.num_injected += 1
            await asyncio.sleep(faults.delay)
        if faults.drop is not None and faults.drop(method, path):
            faults.num_injected += 1
            return _break_off(request)
        if faults.deny is not None and faults.deny(method, path):
            faults.num_injected += 1
            return _refusal(403, "AccessDenied")
        faults.seen.append((method, path))
        if faults.refuse_every and len(faults.seen) % faults.refuse_every == 0:
            faults.num_injected += 1
            return _refusal(503, "SlowDown")
        return await self._pass_on(request)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.title() not in HOP_HEADERS]
        body = await request.read()
        # the path as it came: decoding it would spoil the signature
        url = URL(self._server + request.raw_path, encoded=True)
        try:
            async with self._client.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as found:
                data = await found.read()
        except aiohttp.ClientError:
            return _break_off(request)
        kept = [(name, value) for name, value in found.headers.items() if name.title() not in HOP_HEADERS]
        answer = web.StreamResponse(status=found.status, reason=found.reason, headers=kept)
        answer.content_length = int(found.headers.get("Content-Length", len(data)))
        await answer.prepare(request)
        faults = self.faults
        if request.method == "GET" and data and faults.cut_every and len(faults.seen) % faults.cut_every == 0:
            faults.num_injected += 1
            await answer.write(data[: len(data) // 2])
            return _break_off(request, answer)
        await answer.write(data)
        await answer.write_eof()
        return answer


async def _name(request: web.Request) -> tuple[str, str]:
    """Method and path. A deletion comes as a POST to the bucket with the keys in its body: it is named after the first."""
    method, path = request.method, request.rel_url.path
    if method == "POST" and "delete" in request.rel_url.query:
        key, *_ = re.findall("<Key>(.*?)</Key>", await request.text())
        return "DELETE", f"{path.rstrip('/')}/{key}"
    return method, path


def _refusal(status: int, code: str) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


def _break_off(request: web.Request, answer: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return answer if answer is not None else web.Response()
