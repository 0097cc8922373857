"""The endpoint's page in a real browser: a photo is dropped, the answer read."""

from __future__ import annotations

import base64

import pytest

from tests.browser import CHROMIUM, Tab, in_browser
from tests.dump import photo
from tests.end_to_end.conftest import TOKEN, Client

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)"),
]

DROP = """
(() => {
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "<b>bin</b>.jpg", { type: "image/jpeg" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
})()
"""
ENTER_TOKEN = f"document.getElementById('token').value = '{TOKEN}'"
ANSWERED = "new Promise((done) => { const look = () => document.getElementById('%s').hidden ? setTimeout(look, 50) : done(true); look(); })"


@pytest.fixture
def endpoint(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}/"


def drop(data: bytes) -> str:
    return DROP % base64.b64encode(data).decode()


def text(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def test_a_dropped_photo_is_counted_and_held_against_the_record(endpoint: str, browser: int) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate(ENTER_TOKEN)
        await tab.evaluate("document.getElementById('expected').value = '2'")
        await tab.evaluate(drop(photo(3, 7)))
        assert await tab.evaluate(ANSWERED % "answer")
        count = (await tab.evaluate(text("count"))).split()[0]
        assert await tab.evaluate(text("status")) == f"Counted: {await tab.evaluate(text('count'))}"
        assert int(count) in range(7)
        assert "Record 2: wrong with probability" in await tab.evaluate(text("record"))
        shares = await tab.evaluate("[...document.querySelectorAll('#bars .share')].map((bar) => bar.textContent)")
        assert len(shares) == 7
        assert await tab.evaluate("document.getElementById('picture').naturalWidth") > 0

    assert {
        asked.removeprefix(endpoint)
        for asked in in_browser(browser, endpoint, "!!document.getElementById('send')", steps)
    } == {
        "",
        "v1/count?expected_qty=2",
    }


def test_what_is_no_photo_is_answered_with_the_reason(endpoint: str, browser: int) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate(ENTER_TOKEN)
        await tab.evaluate(drop(b"<script>alert(1)</script>"))
        assert await tab.evaluate(ANSWERED % "problem")
        assert "image" in (await tab.evaluate(text("problem"))).lower()
        assert await tab.evaluate("document.getElementById('answer').hidden")
        # the browser itself reports every answer above 399 to the console
        tab.complaints = [line for line in tab.complaints if "Failed to load resource" not in line]

    in_browser(browser, endpoint, "!!document.getElementById('send')", steps)
