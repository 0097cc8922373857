"""Plots as inline SVG for self-contained pages: the page's style sheet colours them, in light, dark and on paper.

Each function returns markup to put into a page as it is. The colours are those of `palette.css`: `--ink`,
`--quiet`, `--line`, `--first`, `--second` and `--alarm`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins while matplotlib draws; `to_svg` puts the CSS variables in their place.
INK, QUIET, GRID = "#010101", "#020202", "#030303"
FIRST, SECOND, ALARM = "#040404", "#050505", "#060606"
_VARIABLES = {INK: "--ink", QUIET: "--quiet", GRID: "--line", FIRST: "--first", SECOND: "--second", ALARM: "--alarm"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}

SIZE = (5.6, 2.7)
"""Width and height of a plot in inches."""


def bar_plot(
    names: Sequence[str],
    values: Sequence[float],
    *,
    title: str,
    x: str,
    y: str = "bins",
    size: tuple[float, float] = SIZE,
) -> Markup:
    """One bar per name, its value written above it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(size, x, y)
        bars = axes.bar(range(len(names)), values, color=FIRST, width=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], fontsize=8, padding=2, color=QUIET)
        axes.margins(y=0.12)
        return to_svg(figure, title)


def histogram_plot(
    values: np.ndarray, *, title: str, x: str, y: str = "photos", counts: np.ndarray | None = None
) -> Markup:
    """How values (n,) are spread, over intervals of equal width; the median as a line. With `counts` (n,), the values are
    ascending and each stands for so many."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(SIZE, x, y)
        axes.hist(values, bins=40, weights=counts, color=FIRST)
        if len(values):
            middle = np.median(values) if counts is None else values[np.searchsorted(counts.cumsum(), counts.sum() / 2)]
            median = float(middle)
            axes.axvline(median, color=SECOND, linewidth=1.5)
            axes.margins(y=0.18)
            axes.annotate(
                f"median {median:,.4g}", (median, 1), xycoords=("data", "axes fraction"), xytext=(4, -11),
                textcoords="offset points", fontsize=9, color=SECOND,
            )  # fmt: skip
        return to_svg(figure, title)


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    size: tuple[float, float] = SIZE,
) -> Markup:
    """One or two named lines, each (x values, y values); x counts something (epochs, steps)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(size, x, y)
        for (name, (places, values)), colour, dash in zip(series.items(), (FIRST, SECOND), ("-", "--"), strict=False):
            marker = "o" if len(places) == 1 else None  # a line of one point is none
            axes.plot(places, values, dash, color=colour, label=name, linewidth=1.6, marker=marker, markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if len(series) > 1:
            axes.legend(fontsize=9)
        return to_svg(figure, title)


def curves_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    marked: str | None,
    title: str,
    x: str,
    y: str,
) -> Markup:
    """Any number of lines, each (x values, y values) with its name at its end; the one `marked` stands out."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(SIZE, x, y)
        for name, (places, values) in curves.items():
            colour, width = (FIRST, 2.2) if name == marked else (QUIET, 1.0)
            axes.plot(places, values, color=colour, linewidth=width, marker="o", markersize=3)
            if len(places):
                axes.annotate(
                    name, (places[-1], values[-1]), xytext=(4, -3), textcoords="offset points", fontsize=8, color=colour
                )
        return to_svg(figure, title)


def box_plot(groups: Mapping[str, Sequence[float]], *, title: str, x: str, y: str) -> Markup:
    """The spread of each named group: middle half and median, whiskers from 5 % to 95 %."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(SIZE, x, y)
        line = {"color": FIRST}
        axes.boxplot(
            list(groups.values()), whis=(5, 95), showfliers=False, widths=0.6,
            boxprops=line, whiskerprops=line, capprops=line, medianprops={"color": SECOND, "linewidth": 2},
        )  # fmt: skip
        axes.set_xticks(range(1, len(groups) + 1), list(groups))
        return to_svg(figure, title)


def reliability_plot(points: Sequence[Mapping[str, float]], *, title: str) -> Markup:
    """Claimed probability against the share that was right; `points` as `model.metrics.reliability` gives them.

    Vertical lines: 95 % of the shares that a perfectly calibrated counter would show (normal approximation).
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes((4.2, 4.2), "probability of the camera's count", "share equal to the record")
        axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1, label="perfectly calibrated")
        claimed = np.array([point["confidence"] for point in points])
        right = np.array([point["accuracy"] for point in points])
        num_bins = np.array([point["num_bins"] for point in points])
        reach = 1.96 * np.sqrt(claimed * (1 - claimed) / num_bins)
        axes.vlines(
            claimed, np.maximum(claimed - reach, 0), np.minimum(claimed + reach, 1), color=QUIET, linewidth=1,
            label="95 % of perfect ones",
        )  # fmt: skip
        axes.plot(claimed, right, color=FIRST, linewidth=1.2)
        areas = 12 + 160 * num_bins / num_bins.max()
        axes.scatter(claimed, right, s=areas, color=FIRST, zorder=3, label="this bundle (area: bins)")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(fontsize=8, loc="upper left")
        return to_svg(figure, title)


def to_svg(figure: Figure, title: str) -> Markup:
    """The figure as an `<svg>` element that screen readers announce as `title`."""
    # Ids of clip paths and markers are hashes of content and salt; the salt keeps figures of one page apart, and
    # being no random one it keeps a page the same for the same figures.
    with matplotlib.rc_context({"svg.hashsalt": title}):
        svg = draw_svg(figure, re.sub(r"\W+", "-", title.lower()))
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def draw_svg(figure: Figure, prefix: str) -> str:
    """The figure as an `<svg>` element whose ids begin with `prefix`, with CSS variables in the places of the colours that
    stand for them. Matplotlib's `svg.hashsalt` must be set, else its ids are random ones."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = sink.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _axes(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes
