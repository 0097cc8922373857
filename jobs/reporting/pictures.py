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

from jobs.pages.plots import ALARM, FIRST, GRID, QUIET, SECOND, STYLE, draw_svg
from jobs.reporting.promises import Promise, currencies_of

_STYLE = STYLE | {"font.size": 9, "axes.edgecolor": GRID, "axes.grid.axis": "both", "grid.linewidth": 0.6}
_STYLE |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), QUIET)

Days: TypeAlias = NDArray[np.datetime64]

MAX_ZONES = 25


def accuracy_picture(nights: Sequence[dict[str, Any]]) -> Markup | None:
    """Record accuracy with its 95 % interval by night; None where no night has one. `nights` are summary rows."""
    known = [night for night in nights if night["ira"] is not None]

    def draw(axes: Axes, days: Days) -> None:
        low = [1 - night["error_rate_high"] for night in known]
        high = [1 - night["error_rate_low"] for night in known]
        axes.fill_between(days, low, high, color=FIRST, alpha=0.18, linewidth=0, label="95 % interval")
        accuracy = [night["ira"] for night in known]
        axes.plot(days, accuracy, color=FIRST, marker="o", markersize=3, label="record accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))

    return _paint_nights("accuracy", [night["audit_date"] for night in known], draw)


def precision_picture(promises: Sequence[Promise]) -> Markup | None:
    """Precision of the priority list, claimed against found, by night; None before a list is 90 % resolved."""
    known = [promise for promise in promises if promise.num_compared]

    def draw(axes: Axes, days: Days) -> None:
        claimed, found = np.array([(promise.claimed_precision, promise.found_precision) for promise in known]).T
        low, high = np.array([promise.found_interval for promise in known]).T
        bars = np.maximum(0, [found - low, high - found])
        axes.errorbar(days, found, yerr=bars, fmt="o", markersize=4, linewidth=1, color=SECOND, label="found (95 %)")
        axes.plot(days, claimed, color=FIRST, linewidth=1.8, label="claimed")
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return _paint_nights("precision", [promise.audit_date for promise in known], draw)


def value_picture(promises: Sequence[Promise]) -> Markup | None:
    """Value of differences on the priority list, claimed against found, added up over the nights; None where nights are
    valued in several currencies."""
    known = [promise for promise in promises if promise.claimed_value is not None and promise.found_value is not None]
    if len(currencies_of(known)) > 1:
        return None

    def draw(axes: Axes, days: Days) -> None:
        claimed, found = np.cumsum([(promise.claimed_value, promise.found_value) for promise in known], axis=0).T
        axes.plot(days, found, color=SECOND, marker="o", markersize=3, label="found, added up")
        axes.plot(days, claimed, color=FIRST, linewidth=1.8, label="claimed, added up")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return _paint_nights("value", [promise.audit_date for promise in known], draw)


def drift_picture(nights: Sequence[dict[str, Any]]) -> Markup | None:
    """Share of records outside the camera's 90 % set by night, alarms marked."""
    known = [night for night in nights if night["record_outside_set_share"] is not None]

    def draw(axes: Axes, days: Days) -> None:
        shares = np.array([night["record_outside_set_share"] for night in known])
        axes.plot(days, shares, color=FIRST, marker="o", markersize=3, label="records outside the set")
        alarmed = np.array([night["drift_alarm"] for night in known], dtype=bool)
        if alarmed.any():
            axes.plot(days[alarmed], shares[alarmed], "D", color=ALARM, markersize=7, label="alarm")
        axes.set_ylim(0, max(0.2, 1.15 * shares.max()))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))

    return _paint_nights("drift", [night["audit_date"] for night in known], draw)


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
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))

    return _paint("zones", draw, height=0.6 + 0.22 * len(known))


def _paint_nights(name: str, audit_dates: Sequence[str], draw: Callable[[Axes, Days], None]) -> Markup | None:
    """What `draw` makes of the nights, of which the axis names at most seven, evenly; None without any."""
    if not audit_dates:
        return None
    days = np.array(audit_dates, dtype="datetime64[D]")
    named = days[:: max(1, math.ceil((len(days) - 1) / 6))]

    def draw_nights(axes: Axes) -> None:
        draw(axes, days)
        axes.set_xticks(named, [f"{day.day} {day:%b}" for day in named.astype(object)])
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=3, borderaxespad=0)

    return _paint(name, draw_nights)


def _paint(name: str, draw: Callable[[Axes], None], *, height: float = 2.5) -> Markup:
    """An SVG whose ids begin with `name`, so that several can stand in one document."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(6.2, height), layout="constrained")
        draw(figure.add_subplot())
        with warnings.catch_warnings():
            # about Matplotlib's own font, which only measures here: the reader's fonts draw the text
            warnings.filterwarnings("ignore", message=".*(Glyph .* missing|natively)")
            svg = draw_svg(figure, name)
    # the figure around it carries the description
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r'<svg aria-hidden="true" \1', svg.replace("\n", " "))
    return Markup(svg)


def _plain(text: str) -> str:
    """A label that Matplotlib shows as it is: no formulas between $ signs, no characters that XML forbids."""
    visible = "".join(sign if sign.isprintable() else "·" for sign in text).replace("$", r"\$")
    return visible if len(visible) <= 24 else visible[:23] + "…"
