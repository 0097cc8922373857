"""Plots are inline SVG that the page colours and screen readers can name."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.pages.document import format_percent, format_signed, read_source
from jobs.pages.plots import bar_plot, box_plot, histogram_plot, line_plot, reliability_plot

POINTS = [{"confidence": 0.2, "accuracy": 0.25, "num_bins": 40}, {"confidence": 0.7, "accuracy": 0.6, "num_bins": 4}]


@pytest.fixture(scope="module")
def plots() -> list[str]:
    return draw_all()


def draw_all() -> list[str]:
    return [
        bar_plot(["0", "6+"], [3, 4], title="Bars", x="pieces"),
        histogram_plot(np.arange(50.0), title="Histogram", x="grey"),
        line_plot({"train": ([1, 2], [3, 4]), "selection": ([1, 2], [4, 3])}, title="Lines", x="epoch", y="loss"),
        box_plot({"0": [1, 2, 3], "1": [2, 3, 4]}, title="Boxes", x="pieces", y="detail"),
        reliability_plot(POINTS, title="Reliability"),
    ]


def test_every_plot_is_well_formed_named_and_coloured_by_the_page(plots: list[str]) -> None:
    for svg in plots:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert "var(--ink)" in svg
        assert not re.findall(r"#0[1-7]0[1-7]0[1-7]", svg)


def test_text_is_read_on_every_paper_by_day_and_by_night() -> None:
    """WCAG AA: a contrast of 4.5."""
    style = read_source("palette.css")
    colours = dict(re.findall(r"--([a-z-]+): light-dark\((.*?)\)", style))

    def luminance(name: str, night: int) -> float:
        value = colours[name].split(", ")[night].removeprefix("#")
        parts = np.array([int(value[place : place + 2], 16) / 255 for place in (0, 2, 4)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    papers = ("paper", "raised")
    pairs = [(text, paper) for text in ("ink", "quiet", "first", "second", "alarm") for paper in papers]
    pairs += [("ink", paper) for paper in ("mark", "soft-alarm", "soft-sound", "soft-caution")]
    pairs += [("caution", "soft-caution"), ("paper", "alarm"), ("paper", "first")]
    for night in (0, 1):
        for text, paper in pairs:
            low, high = sorted((luminance(text, night), luminance(paper, night)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, paper, night)


def test_every_colour_of_a_page_is_one_of_the_palette() -> None:
    for name in ("report.css", "serve.css", "figures_page.html"):
        used = set(re.findall(r"var\(--([a-z-]+)\)", read_source(name))) - {"share"}
        assert used <= set(re.findall(r"--([a-z-]+):", read_source("palette.css")))
        assert not re.findall(r"#[0-9a-f]{3,6}\b", read_source(name).split("<body>")[0])


def test_a_line_of_one_point_is_seen() -> None:
    drawn = (line_plot({"a": ([1], [y])}, title="Point", x="epoch", y="loss") for y in (2.0, np.nan))
    seen, nothing = (svg.count("<use") for svg in drawn)
    assert seen > nothing


def test_counted_values_are_drawn_as_if_each_stood_there() -> None:
    counts = np.array([2, 5, 1])
    drawn = (
        histogram_plot(np.array([1, 2, 7]), counts=counts, title="H", x="x"),
        histogram_plot(np.repeat([1, 2, 7], counts), title="H", x="x"),
    )
    first, second = (re.sub(r'(id=|href=|url\()"?[^" )]+', "", svg) for svg in drawn)
    assert "median 2" in first
    assert first == second


def test_ids_of_several_plots_on_one_page_do_not_clash(plots: list[str]) -> None:
    ids = [identifier for svg in plots for identifier in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))


def test_references_inside_a_plot_lead_somewhere(plots: list[str]) -> None:
    for svg in plots:
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
        assert used <= ids


def test_the_same_figures_give_the_same_plot(plots: list[str]) -> None:
    assert draw_all() == plots


def test_a_title_can_not_break_out_of_the_plot() -> None:
    svg = bar_plot(["a"], [1], title='"><script>alert(1)</script>', x="x")
    assert "<script>" not in svg
    ElementTree.fromstring(svg)


def test_figures_that_do_not_exist_are_dashes_and_zero_has_no_sign() -> None:
    assert format_percent(None) == "–"
    assert format_percent(0.4141) == "41.4\N{NO-BREAK SPACE}%"
    for share, digits, text in (
        (999_999 / 1e6, 1, "> 99.9 %"),
        (1 / 1.2e6, 1, "< 0.1 %"),
        (0.996, 0, "> 99 %"),
        (0.999, 1, "99.9 %"),
        (0.001, 1, "0.1 %"),
        (1.0, 1, "100.0 %"),
        (0.0, 2, "0.00 %"),
        (sum([0.1] * 10), 1, "100.0 %"),
    ):
        assert format_percent(share, digits).replace("\N{NO-BREAK SPACE}", " ") == text
    assert format_signed(-0.0004) == "0.000"
    assert format_signed(-0.5, 1) == "−0.5"
