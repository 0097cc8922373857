"""Plots as SVG to stand inside the page: text stays text, and colours are the page's own, so that dark works too."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from jobs.pages.plots import draw_svg
from jobs.reporting.history import Promise, currencies_of

# Matplotlib writes these into the SVG, where the page's variables take their place.
INK, QUIET, GRID, FIRST, SECOND, ALARM = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {
    **{INK: "--ink", QUIET: "--quiet", GRID: "--grid"},
    **{FIRST: "--first", SECOND: "--second", ALARM: "--alarm"},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
}

Days: TypeAlias = NDArray[np.datetime64]

MAX_ZONES = 25


def accuracy_picture(nights: Sequence[dict[str, Any]]) -> Markup | None:
    """Record accuracy with its 95 % interval by night; None where no night has one. `nights` are summary rows."""
    known = [night for night in nights if night["ira"] is not None]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        days = _days([night["audit_date"] for night in known])
        low = [1 - night["error_rate_high"] for night in known]
        high = [1 - night["error_rate_low"] for night in known]
        axes.fill_between(days, low, high, color=FIRST, alpha=0.18, linewidth=0, label="95 % interval")
        axes.plot(
            days, [night["ira"] for night in known], color=FIRST, marker="o", markersize=3, label="record accuracy"
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))

    return _paint("accuracy", draw, days=_spread(_days([night["audit_date"] for night in known])))


def precision_picture(promises: Sequence[Promise]) -> Markup | None:
    """Precision of the priority list, claimed against found, by night; None before a list is 90 % resolved."""
    known = [promise for promise in promises if promise.num_compared]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        days = _days([promise.audit_date for promise in known])
        found = [promise.found_hits / promise.num_compared for promise in known]
        intervals = [promise.found_interval or (0.0, 1.0) for promise in known]
        bars = [
            [max(0.0, share - low) for share, (low, _) in zip(found, intervals, strict=True)],
            [max(0.0, high - share) for share, (_, high) in zip(found, intervals, strict=True)],
        ]
        axes.errorbar(days, found, yerr=bars, fmt="o", markersize=4, linewidth=1, color=SECOND, label="found (95 %)")
        claimed = [promise.claimed_hits / promise.num_compared for promise in known]
        axes.plot(days, claimed, color=FIRST, linewidth=1.8, label="claimed")
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return _paint("precision", draw, days=_spread(_days([promise.audit_date for promise in known])))


def value_picture(promises: Sequence[Promise]) -> Markup | None:
    """Value of differences on the priority list, claimed against found, added up over the nights; None where nights are
    valued in several currencies."""
    known = [promise for promise in promises if promise.claimed_value is not None and promise.found_value is not None]
    if not known or len(currencies_of(known)) > 1:
        return None

    def draw(axes: Axes) -> None:
        days = _days([promise.audit_date for promise in known])
        claimed = _running([promise.claimed_value or 0.0 for promise in known])
        found = _running([promise.found_value or 0.0 for promise in known])
        axes.plot(days, found, color=SECOND, marker="o", markersize=3, label="found, added up")
        axes.plot(days, claimed, color=FIRST, linewidth=1.8, label="claimed, added up")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return _paint("value", draw, days=_spread(_days([promise.audit_date for promise in known])))


def drift_picture(nights: Sequence[dict[str, Any]]) -> Markup | None:
    """Share of records outside the camera's 90 % set by night, alarms marked."""
    known = [night for night in nights if night["record_outside_set_share"] is not None]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        shares = [night["record_outside_set_share"] for night in known]
        axes.plot(
            _days([night["audit_date"] for night in known]),
            shares,
            color=FIRST,
            marker="o",
            markersize=3,
            label="records outside the set",
        )
        alarms = [night for night in known if night["drift_alarm"]]
        if alarms:
            outside = [night["record_outside_set_share"] for night in alarms]
            axes.plot(
                _days([night["audit_date"] for night in alarms]), outside, "D", color=ALARM, markersize=7, label="alarm"
            )
        axes.set_ylim(0, max(0.2, 1.15 * max(shares)))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return _paint("drift", draw, days=_spread(_days([night["audit_date"] for night in known])))


def zone_picture(zones: Sequence[dict[str, Any]]) -> Markup | None:
    """The same share by zone, the largest first; zones beyond MAX_ZONES stay in the table.

    None is an alarm: the share that an alarm is measured against was calibrated over all kinds of bins, and a zone
    holds its own.
    """
    known = [zone for zone in zones if zone["record_outside_set_share"] is not None]
    known = sorted(known, key=lambda zone: -zone["record_outside_set_share"])[:MAX_ZONES]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        names = [_plain(zone["scope_value"]) for zone in known]
        axes.barh(range(len(known)), [zone["record_outside_set_share"] for zone in known], color=FIRST, height=0.65)
        axes.set_yticks(range(len(known)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return _paint("zones", draw, height=0.6 + 0.22 * len(known))


def _paint(name: str, draw: Callable[[Axes], None], *, height: float = 2.5, days: Days | None = None) -> Markup:
    """An SVG whose ids begin with `name`, so that several can stand in one document."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(6.2, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if days is not None:
            axes.set_xticks(days, [f"{day.day} {day:%b}" for day in days.astype(object)])
            axes.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=3, borderaxespad=0)
        with warnings.catch_warnings():
            # about Matplotlib's own font, which only measures here: the reader's fonts draw the text
            warnings.filterwarnings("ignore", message=".*(Glyph .* missing|natively)")
            svg = draw_svg(figure, name, _VARIABLES)
    # the figure around it carries the description
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r'<svg aria-hidden="true" \1', svg.replace("\n", " "))
    return Markup(svg)


def _plain(text: str) -> str:
    """A label that Matplotlib shows as it is: no formulas between $ signs, no characters that XML forbids."""
    visible = "".join(sign if sign.isprintable() else "·" for sign in text).replace("$", r"\$")
    return visible if len(visible) <= 24 else visible[:23] + "…"


def _days(audit_dates: Sequence[str]) -> Days:
    return np.array(audit_dates, dtype="datetime64[D]")


def _spread(days: Days) -> Days:
    """At most seven of the nights, evenly: what the axis names."""
    step = max(1, math.ceil((len(days) - 1) / 6))
    return days[::step]


def _running(values: Sequence[float]) -> list[float]:
    return [math.fsum(values[: end + 1]) for end in range(len(values))]
