"""The planner's page in a real browser: headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.config.report import ReportConfig
from jobs.reporting.files import write_report
from tests.browser import CHROMIUM, Tab
from tests.browser import in_browser as open_in_browser
from tests.night import NASTY_TEXTS, write_nights

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")

TONIGHT = "2026-03-03"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a night with photos, history and nasty names."""
    output = tmp_path_factory.mktemp("audits")
    photos = []
    for number in range(4):
        photo = output / f"photo-{number}.jpg"
        Image.fromarray(np.full((240, 320, 3), 50 * number, np.uint8)).save(photo)
        photos.append(str(photo))
    dates = ["2026-03-01", "2026-03-02", TONIGHT]
    write_nights(output, dates, num_bins=900, recount_budget=60, texts=NASTY_TEXTS, photos=photos)
    write_report(ReportConfig(output_uri=str(output), audit_date=TONIGHT, report_uri=str(output / "report")))
    return output / "report" / "report.html"


def in_browser(port: int, page: Path, steps: Callable[[Tab], Awaitable[None]]) -> None:
    """Runs the steps on the page, which needs nothing beyond itself."""
    assert open_in_browser(port, page.as_uri(), "document.documentElement?.dataset.ready === 'true'", steps) == [
        page.as_uri()
    ]


COLUMN = "[...document.querySelectorAll('#bins tbody td.{name}')].map((cell) => cell.textContent)"


def column(name: str) -> str:
    return COLUMN.format(name=name)


def click(selector: str) -> str:
    return f"document.querySelector({selector!r}).click()"


def enter(field: str, text: str) -> str:
    return (
        f"(() => {{ const field = document.getElementById({field!r}); field.value = {text!r}; "
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def header(name: str) -> str:
    return f"#bins th[data-name={name}] button"


def test_the_list_sorts_by_a_column_in_both_directions(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        assert await tab.evaluate(column("rank") + ".slice(0, 3)") == ["1", "2", "3"]
        await tab.evaluate(click(header("expected")))
        ascending = [int(text) for text in await tab.evaluate(column("expected"))]
        assert len(ascending) == 100
        assert ascending == sorted(ascending)
        assert await tab.evaluate("document.querySelector('#bins th[data-name=expected]').ariaSort") == "ascending"
        await tab.evaluate(click(header("expected")))
        descending = [int(text) for text in await tab.evaluate(column("expected"))]
        assert descending == sorted(descending, reverse=True)
        assert descending[0] > ascending[0]
        await tab.evaluate(click(header("risk")))
        risks = [float(text.replace(",", "")) for text in await tab.evaluate(column("risk"))]
        assert risks == sorted(risks, reverse=True)

    in_browser(browser, page, steps)


@pytest.mark.parametrize("has_column", [True, False])
def test_the_list_sorts_by_the_sku_that_it_shows(browser: int, tmp_path: Path, has_column: bool) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=80, recount_budget=20)
    for part in tmp_path.glob("results/*/*.parquet"):
        table = pq.read_table(part, partitioning=None)
        rows = [row if has_column else {**row, "sku": None} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    write_report(ReportConfig(output_uri=str(tmp_path), audit_date=TONIGHT, report_uri=str(tmp_path / "report")))
    shown = "[...document.querySelectorAll('#bins td.sku > :first-child')].map((cell) => cell.textContent)"

    async def steps(tab: Tab) -> None:
        for last in (1, -1):
            await tab.evaluate(click(header("sku")))
            found = await tab.evaluate(shown)
            codes = [int(text.removeprefix("SKU")) for text in found if text.startswith("SKU")]
            assert codes == sorted(codes)[::last]
            assert 20 < len(codes) < 80
            assert all(text.startswith("mixed") for text in found[len(codes) :])

    in_browser(browser, tmp_path / "report" / "report.html", steps)


def test_the_list_filters_searches_and_resets(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        assert (
            await tab.evaluate("document.getElementById('shown').textContent") == "900 of 900 bins, the first 100 shown"
        )
        await tab.evaluate(enter("filter-zone", "Z3"))
        assert set(await tab.evaluate(column("zone"))) == {"Z3"}
        await tab.evaluate(enter("filter-direction", "short"))
        assert all("short" in text for text in await tab.evaluate(column("direction")))
        await tab.evaluate(enter("filter-recount", "priority"))
        assert all("priority" in text for text in await tab.evaluate(column("verdict")))
        await tab.evaluate("document.getElementById('reset').click()")
        await tab.evaluate("new Promise((done) => setTimeout(done, 50))")
        await tab.evaluate(enter("search", "b-000123"))
        assert await tab.evaluate(column("bin")) == ["B-000123"]
        await tab.evaluate(enter("search", ""))
        await tab.evaluate(enter("filter-sku", "DROP TABLE"))
        assert await tab.evaluate(column("sku") + ".length") == 1
        # of this name the page shows the first 160 characters
        await tab.evaluate(enter("filter-sku", "x" * 400))
        assert await tab.evaluate(column("sku") + ".length") == 1
        await tab.evaluate(enter("search", "no such bin"))
        assert await tab.evaluate("document.getElementById('shown').textContent") == "No bin fits the filters."
        await tab.evaluate("document.getElementById('reset').click()")
        await tab.evaluate("new Promise((done) => setTimeout(done, 50))")
        await tab.evaluate("document.getElementById('all').click()")
        assert await tab.evaluate(column("bin") + ".length") == 900

    in_browser(browser, page, steps)


def test_paper_gets_the_whole_plan_however_long_and_sorted(browser: int, tmp_path: Path) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=400, recount_budget=150)
    write_report(ReportConfig(output_uri=str(tmp_path), audit_date=TONIGHT, report_uri=str(tmp_path / "report")))
    planned = "[...document.querySelectorAll('#bins td.verdict')].filter((cell) => /priority|random/.test(cell.textContent)).length"

    async def steps(tab: Tab) -> None:
        assert await tab.evaluate(planned) == 100
        await tab.call("Page.printToPDF")
        assert await tab.evaluate(planned) == 150
        await tab.evaluate(click(header("bin")))
        assert await tab.evaluate(planned) < 150
        await tab.call("Page.printToPDF")
        assert await tab.evaluate(planned) == 150

    in_browser(browser, tmp_path / "report" / "report.html", steps)


def test_a_photo_opens_larger_and_the_keyboard_turns_and_closes_it(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate("document.querySelector('#bins .thumb').focus()")
        await tab.call(
            "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
        await tab.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
        assert await tab.evaluate("document.getElementById('photo').open")
        names = await tab.evaluate(column("bin") + ".slice(0, 2)")
        assert await tab.evaluate("document.getElementById('photo-title').textContent") == f"Bin {names[0]}"
        await tab.evaluate("document.querySelector('#photo-image img').decode()")
        assert await tab.evaluate("document.querySelector('#photo-image img').naturalWidth") == 320
        await tab.press("ArrowRight", 39)
        assert await tab.evaluate("document.getElementById('photo-title').textContent") == f"Bin {names[1]}"
        await tab.press("Escape", 27)
        assert not await tab.evaluate("document.getElementById('photo').open")

    in_browser(browser, page, steps)


def test_the_photo_s_keys_work_at_the_last_bin_too(browser: int, page: Path) -> None:
    title = "document.getElementById('photo-title').textContent"

    async def steps(tab: Tab) -> None:
        await tab.evaluate(enter("filter-recount", "priority"))
        names = await tab.evaluate(column("bin"))
        await tab.evaluate("[...document.querySelectorAll('#bins .thumb')].at(-1).click()")
        await tab.evaluate(
            "document.getElementById('photo-previous').click(); document.getElementById('photo-next').focus()"
        )
        for _ in range(2):
            for kind, text in (("keyDown", "\r"), ("keyUp", "")):
                await tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text=text)
        assert await tab.evaluate(title) == f"Bin {names[-1]}"
        assert await tab.evaluate("document.activeElement.id") == "photo-next"
        assert await tab.evaluate("document.getElementById('photo-next').ariaDisabled") == "true"
        await tab.press("ArrowLeft", 37)
        assert await tab.evaluate(title) == f"Bin {names[-2]}"
        assert await tab.evaluate("document.getElementById('photo-next').ariaDisabled") == "false"

    in_browser(browser, page, steps)


def test_an_interval_of_counts_is_not_said_to_be_the_set(browser: int, page: Path) -> None:
    wide = """(() => {
      const ends = (line) => line.querySelector(".camera .set")?.textContent.match(/90 %: (\\d+)–(\\d+)/);
      [...document.querySelectorAll("#bins tbody tr")].find((line) => ends(line)?.[2] - ends(line)?.[1] > 1).querySelector(".thumb").click();
    })()"""

    async def steps(tab: Tab) -> None:
        assert "counts between may be left out" in await tab.evaluate("document.querySelector('#list p').textContent")
        await tab.evaluate(wide)
        facts = await tab.evaluate("document.getElementById('photo-facts').textContent")
        assert "; counts between may be left out)" in facts

    in_browser(browser, page, steps)


def test_the_page_is_dark_on_demand_and_where_the_system_is(browser: int, page: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"

    async def steps(tab: Tab) -> None:
        assert await tab.evaluate(background) == "rgb(255, 255, 255)"
        await tab.evaluate("document.getElementById('theme').click()")
        dark = await tab.evaluate(background)
        assert dark == "rgb(18, 23, 29)"
        assert await tab.evaluate("document.getElementById('theme').ariaPressed") == "true"
        await tab.evaluate("document.getElementById('theme').click()")
        assert await tab.evaluate(background) == "rgb(255, 255, 255)"
        await tab.evaluate("document.documentElement.style.colorScheme = ''")
        await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert await tab.evaluate(background) == dark
        await tab.evaluate("document.documentElement.style.colorScheme = 'dark'")
        await tab.call("Emulation.setEmulatedMedia", media="print")
        assert await tab.evaluate(background) == "rgb(255, 255, 255)"

    in_browser(browser, page, steps)


def test_nasty_names_are_shown_and_do_nothing(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate("document.getElementById('all').click()")
        assert await tab.evaluate("document.querySelectorAll('main script, main img:not(.thumb img)').length") == 0
        shown = await tab.evaluate("document.querySelector('main').textContent")
        for text in (
            "<script>alert(1)</script>",
            '=HYPERLINK("http://evil.example","x")',
            '"; DROP TABLE bins; --',
            "📦",
            "صندوق",
        ):
            assert text in shown
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")

    in_browser(browser, page, steps)


def test_a_screen_reader_hears_no_count_as_sure_or_ruled_out(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate("document.getElementById('all').click()")
        labels = await tab.evaluate("[...document.querySelectorAll('.bars')].map((bars) => bars.ariaLabel)")
        shares = {share for label in labels for share in re.findall(r": (.*?%)", label)}
        assert "< 0.1 %" in shares and not shares & {"0 %", "0.0 %", "100 %", "100.0 %"}

    in_browser(browser, page, steps)


def test_a_narrow_screen_shows_cards_without_scrolling_sideways(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        await tab.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        assert await tab.evaluate("document.documentElement.scrollWidth") == 400
        assert await tab.evaluate("getComputedStyle(document.querySelector('#bins tbody tr')).display") == "flex"
        await tab.evaluate(enter("sort", "expected true"))
        found = [int(text) for text in await tab.evaluate(column("expected"))]
        assert found == sorted(found, reverse=True)

    in_browser(browser, page, steps)


@pytest.mark.parametrize(("width", "num_buttons"), [(760, 0), (1400, 11)])
def test_the_focus_goes_to_nothing_out_of_sight(browser: int, page: Path, width: int, num_buttons: int) -> None:
    names = "[...document.querySelectorAll('#bins thead button')].filter((button) => { button.focus(); return button === document.activeElement; }).length"

    async def steps(tab: Tab) -> None:
        await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        assert await tab.evaluate(names) == num_buttons
        await tab.call("Accessibility.enable")
        nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        found = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "columnheader"]
        assert {"Rank", "Photo", "Bin", "Verdict"} <= set(found)

    in_browser(browser, page, steps)


def test_a_first_night_says_what_is_assumed_and_fits_a_narrow_screen(browser: int, tmp_path: Path) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=100, recount_budget=20)
    write_report(ReportConfig(output_uri=str(tmp_path), audit_date=TONIGHT, report_uri=str(tmp_path / "report")))

    async def steps(tab: Tab) -> None:
        await tab.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        assert "record model: assumed" in await tab.evaluate("document.querySelector('.headline').innerText")
        assert await tab.evaluate("document.documentElement.scrollWidth") == 400

    in_browser(browser, tmp_path / "report" / "report.html", steps)


def test_every_control_has_a_name_for_a_screen_reader(browser: int, page: Path) -> None:
    async def steps(tab: Tab) -> None:
        await tab.call("Accessibility.enable")
        nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        roles = {"button", "combobox", "searchbox", "textbox", "link", "table", "image", "img", "dialog"}
        unnamed = [
            node["role"]["value"]
            for node in nodes
            if not node.get("ignored")
            and node.get("role", {}).get("value") in roles
            and not (node.get("name") or {}).get("value", "").strip()
        ]
        assert [role for role in unnamed if role != "table"] == []
        headings = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "heading"]
        assert headings[0].startswith("Stock audit")
        assert "Promises kept" in headings

    in_browser(browser, page, steps)
