"""Headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


class Tab:
    """A page in the browser: `evaluate` runs an expression in it, `complaints` is what it logged."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._last = socket, 0
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=120)
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(parameters["entry"]))
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {parameters}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


@asynccontextmanager
async def open_page(port: int, url: str, ready: str) -> AsyncIterator[Tab]:
    """In a tab of its own, closed at the end: what it emulated goes with it."""
    browser = f"http://127.0.0.1:{port}/json"
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{browser}/new") as answer:
            target = await answer.json()
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            deadline = time.monotonic() + 60
            while not await tab.evaluate(ready):
                assert time.monotonic() < deadline, f"the page is not ready: {tab.complaints}"
                await asyncio.sleep(0.05)
            yield tab
        async with session.get(f"{browser}/close/{target['id']}") as answer:
            assert answer.status == 200


def in_browser(port: int, url: str, ready: str, steps: Callable[[Tab], Awaitable[None]]) -> list[str]:
    """Opens `url`, waits until the expression `ready` holds, runs the steps, and holds the page to no complaint.
    Returns what it requested."""

    async def drive() -> list[str]:
        async with open_page(port, url, ready) as tab:
            await steps(tab)
            await tab.evaluate("new Promise((done) => setTimeout(done, 200))")
            assert tab.complaints == []
            return [asked for asked in tab.requests if not asked.startswith(("data:", "blob:"))]

    return asyncio.run(drive())
