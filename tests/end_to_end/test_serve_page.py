"""The endpoint's page in a real browser: a photo is dropped, the answer read."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from jobs.config.serve import ServeConfig
from jobs.serve import start_endpoint
from tests.browser import CHROMIUM, Tab, in_browser
from tests.conftest import free_port
from tests.dump import photo, write_bundle

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
ANSWERED = "new Promise((done) => { const look = () => document.getElementById('%s').hidden ? setTimeout(look, 50) : done(true); look(); })"


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    port = free_port()
    start_endpoint(ServeConfig(bundle_uri=str(write_bundle(tmp_path_factory.mktemp("bundle"))), port=port))
    yield f"http://127.0.0.1:{port}/"
    serve.shutdown()


def drop(data: bytes) -> str:
    return DROP % base64.b64encode(data).decode()


def text(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def test_a_dropped_photo_is_counted_and_held_against_the_record(endpoint: str, browser: int) -> None:
    async def steps(tab: Tab) -> None:
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
        await tab.evaluate(drop(b"<script>alert(1)</script>"))
        assert await tab.evaluate(ANSWERED % "problem")
        assert "image" in (await tab.evaluate(text("problem"))).lower()
        assert await tab.evaluate("document.getElementById('answer').hidden")
        # the browser itself reports every answer above 399 to the console
        tab.complaints = [line for line in tab.complaints if "Failed to load resource" not in line]

    in_browser(browser, endpoint, "!!document.getElementById('send')", steps)
