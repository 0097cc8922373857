"""The endpoint's page in a real browser, without the endpoint: what it makes of an answer."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.serving.answers import Judge
from jobs.serving.pages import render_drop_page
from model.posterior import build_assessor
from model.record_model import assume_record_model
from tests.browser import CHROMIUM, Tab, in_browser
from tests.dump import photo
from tests.planned_night import TOP_CLASS, bundle_info

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")

ANSWER = """
(() => {
  window.fetch = async () => new Response(%s);
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "bin.jpg", { type: "image/jpeg" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  return new Promise((done) => { const look = () => document.getElementById("answer").hidden ? setTimeout(look, 50) : done(true); look(); });
})()
"""


@pytest.mark.parametrize(
    ("probabilities", "members", "said"),
    [
        ([0.3, 0.06, 0.03, 0.02, 0.03, 0.06, 0.5], [0, 6], "90 % set: 0, 6 or more"),
        ([0.02, 0.02, 0.9, 0.02, 0.02, 0.01, 0.01], [2], "90 % set: 2 alone"),
        ([0.16, 0.14, 0.14, 0.14, 0.14, 0.14, 0.14], [0], "90 % set: 0 alone"),
        ([0.05, 0.15, 0.45, 0.15, 0.1, 0.05, 0.05], [1, 2, 3], "90 % set: 1, 2, 3"),
    ],
    ids=["gap", "one", "none-reaches-it", "in-a-row"],
)
def test_only_the_counts_of_the_set_are_coloured_and_named(
    browser: int, tmp_path: Path, probabilities: list[float], members: list[int], said: str
) -> None:
    threshold = 0.85
    assessor = build_assessor([100] * (TOP_CLASS + 1), 0.02, assume_record_model([1.0] * (TOP_CLASS + 1)))
    judge = Judge(assessor, threshold, "assumed", "0123456789ab")
    pixels = np.zeros((8, 8, 3), np.uint8)
    answer = judge.answer(np.array(probabilities, np.float32), None, pixels, seen_in_training=False)
    bundle = bundle_info().model_copy(update={"prediction_set_threshold": threshold})
    page = tmp_path / "page.html"
    page.write_text(render_drop_page(bundle, needs_token=False)[0], encoding="utf-8")

    async def steps(tab: Tab) -> None:
        body = json.dumps(answer.model_dump_json())
        assert await tab.evaluate(ANSWER % (body, base64.b64encode(photo(3, 7)).decode()))
        assert await tab.evaluate("document.getElementById('set').textContent") == said
        bars = "[...document.querySelectorAll('#bars li')].map((bar) => bar.classList.contains('inside'))"
        assert [place for place, inside in enumerate(await tab.evaluate(bars)) if inside] == members

    in_browser(browser, page.as_uri(), "!!document.getElementById('send')", steps)
