"""The planner's page: one HTML file that needs no network, built from a night and the nights before it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from markupsafe import Markup

from jobs.counting.estimates import Estimates, estimate_window
from jobs.counting.history import BinToCount, History
from jobs.pages.document import format_integer, format_percent, read_source, read_style, render_page, source_hash
from jobs.platform.texts import script_json, shorten, visible_text
from jobs.reporting import pictures
from jobs.reporting.nights import Night, explain_no_accuracy
from jobs.reporting.overview import Overview
from jobs.reporting.photos import Thumbnail
from jobs.reporting.promises import MAX_OFFENDERS, currencies_of, find_offenders, keep_certificates, keep_promises

MAX_LINES = 8
MAX_TEXT = 160
"""Lines of a mixed bin, and characters of a name, that the page shows; the tables have them whole."""

MAX_SEARCH_TEXT = 3_000_000
"""Characters of SKUs and names that the page doesn't show and yet finds, over all its bins."""

NET_VALUE = ("net_variance_value", "net_variance_value_low", "net_variance_value_high")

LOW_COVERAGE = 0.95

LITTLE_DOUBT = 0.01
"""Below this probability that a record is wrong, the page names no direction."""


def render_report(
    *,
    night: Night,
    run: dict[str, Any],
    overview: Overview,
    thumbnails: list[Thumbnail],
    nights: list[Night],
    history: History,
    second_counts: Sequence[BinToCount],
) -> str:
    """The page as HTML text. What comes from records is escaped: by Jinja2 in the HTML, by JSON in the list's data,
    and a content security policy names the one script that may run.

    `history`: with the counts that are in by now; the night's summary has what was known when its audit began.
    `second_counts`: each mismatch that waits for one, a bin once for each of its nights.
    """
    promises, offenders, so_far = keep_promises(history), find_offenders(history), estimate_window(history)
    script = read_source("report.js")
    whole, tonight = night.whole, overview.currencies
    trend = [{**one.whole, "audit_date": one.audit_date} for one in nights]
    # without unit values, by the wrong records that are expected
    zones = sorted(night.scopes("zone"), key=lambda row: (-(row["value_at_risk"] or 0), -(row["expected_wrong"] or 0)))
    return render_page(
        "report.html",
        filters={"plain": plain},
        night=night,
        whole=whole,
        claims_assumed=whole["record_model"] == "assumed",
        unclaimed=explain_no_accuracy(whole),
        so_far_accuracy=None if whole["num_random_window"] or not whole["num_random"] else _accuracy(so_far),
        worries=list_worries(whole, overview),
        list_value=money(overview.list_value),
        whole_money={
            **{name: one_currency_money(whole[name], tonight) for name in ("shortage_value", "overage_value")},
            # from the counts of the window, which may have been valued otherwise than tonight
            **{name: one_currency_money(whole[name], tonight | currencies_of(promises)) for name in NET_VALUE},
        },
        overview=overview,
        trend=trend,
        zones=zones,
        promises=promises,
        assumed_nights={row["audit_date"] for row in trend if row["record_model"] == "assumed"},
        certificates=keep_certificates(history),
        offenders=offenders,
        all_offenders=len(offenders) < MAX_OFFENDERS,
        so_far=so_far,
        num_second_counts=len(second_counts),
        num_second_bins=len({bin.bin_id for bin in second_counts}),
        settings=flatten_settings(run),
        pictures={
            "accuracy": pictures.accuracy_picture(trend),
            "precision": pictures.precision_picture(promises),
            "value": pictures.value_picture(promises),
            "drift": pictures.drift_picture(trend),
            "zones": pictures.zone_picture(zones),
        },
        data=script_json(list_rows(overview, thumbnails)),
        script=Markup(script),
        style=Markup(read_style("report.css")),
        script_hash=source_hash(script),
    )


def _accuracy(found: Estimates) -> str | None:
    if found.ira is None or found.error_rate_low is None or found.error_rate_high is None:
        return None
    low, high = format_percent(1 - found.error_rate_high), format_percent(1 - found.error_rate_low)
    return f"{format_percent(found.ira)} (95 %: {low} to {high})"


def list_rows(overview: Overview, thumbnails: Sequence[Thumbnail]) -> list[dict[str, Any]]:
    """The listed bins as the page's script reads them."""
    listed, room = [], MAX_SEARCH_TEXT
    for row, thumbnail in zip(overview.top.to_pylist(), thumbnails, strict=True):
        search = hidden_text(row)[:room]
        room -= len(search)
        listed.append(_list_row(row, thumbnail) | {"search": search})
    return listed


def hidden_text(row: dict[str, Any]) -> str:
    """All SKUs and names of a bin, each once, where the page shows only some of them or only their beginnings; the
    search and the SKU filter read it. Empty where they are all in sight."""
    texts = [row["sku"], *(text for line in row["skus"] for text in (line["sku"], line["name"]))]
    whole = list(dict.fromkeys(visible_text(text) for text in texts if text is not None))
    in_sight = len(row["skus"]) <= MAX_LINES and all(len(text) <= MAX_TEXT for text in whole)
    return "" if in_sight else "\n".join(whole)


def _list_row(row: dict[str, Any], thumbnail: Thumbnail) -> dict[str, Any]:
    lines = [[line["quantity"], plain(line["sku"]), plain(line["name"])] for line in row["skus"][:MAX_LINES]]
    short, over = row["p_short"], row["p_over"]
    return {
        "rank": row["rank"],
        "bin": visible_text(row["bin_id"]),
        "zone": plain(row["zone"]),
        "abc": plain(row["abc_class"]),
        "sku": plain(row["sku"]),
        "lines": lines,
        "moreLines": len(row["skus"]) - len(lines),
        "numSkus": row["num_skus"],
        "expected": row["expected_qty"],
        "camera": row["camera_qty"],
        "cameraTop": bool(row["camera_is_top_class"]),
        "low": row["qty_low"],
        "high": row["qty_high"],
        "likely": row["likely_qty"],
        "probabilities": [round(value, 4) for value in row["probabilities"] or []],
        "wrong": _rounded(row["p_record_wrong"]),
        "short": _rounded(short),
        "over": _rounded(over),
        "direction": None if short is None or short + over < LITTLE_DOUBT else "short" if short >= over else "over",
        "risk": None if row["value_at_risk"] is None else round(row["value_at_risk"], 2),
        "currency": row["currency"],
        "verdict": row["verdict"],
        "reason": row["reason"],
        "recount": row["recount"],
        "certifiedAt": _rounded(row["certified_at"]),
        "counted": None
        if row["last_counted_at"] is None
        else f"{row['last_counted_qty']} on {row['last_counted_at']:%Y-%m-%d} (UTC)",
        "uri": shorten(visible_text(row["image_uri"]), 300),
        "photo": thumbnail.source,
        "problem": plain(thumbnail.problem),
    }


def list_worries(whole: dict[str, Any], overview: Overview) -> list[str]:
    """What to look at before trusting the night; empty for a sound one."""
    worries = []
    if whole["drift_alarm"]:
        worries.append("Drift alarm: camera or records have changed. The ranking stands, certificates are suspended.")
    if whole["num_assessed"] < LOW_COVERAGE * whole["num_bins"]:
        # what lies just below the limit is not rounded up to it
        share = min(whole["num_assessed"] / whole["num_bins"], LOW_COVERAGE - 0.001)
        worries.append(f"Only {format_percent(share)} of the bins were assessed.")
    failed = whole["num_bins"] - whole["num_scored"]
    if failed > (1 - LOW_COVERAGE) * whole["num_bins"]:
        worries.append(f"{format_integer(failed)} photos could not be scored.")
    if overview.num_rows != whole["num_bins"]:
        found, expected = format_integer(overview.num_rows), format_integer(whole["num_bins"])
        worries.append(f"The results hold {found} bins, the summary {expected}.")
    return worries


def flatten_settings(settings: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """`run.json` as (dotted name, value); long lists and texts are cut."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten_settings(value, f"{within}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{within}{key}", shorten(visible_text(text), 200) or ""


def money(values: dict[str, float]) -> str | None:
    """`EUR 1,722`; several currencies are never added up."""
    if not values:
        return None
    return " + ".join(f"{currency} {value:,.0f}".strip() for currency, value in sorted(values.items()))


def one_currency_money(value: float | None, currencies: AbstractSet[str | None]) -> str | None:
    """The same for a sum over bins of these currencies; None where it is not known or not in one currency."""
    if value is None or len(currencies) != 1:
        return None
    return money({currency or "": value for currency in currencies})


def plain(text: str | None) -> str | None:
    """Text from a record as the page shows it: control characters visible, cut at MAX_TEXT."""
    return None if text is None else shorten(visible_text(text), MAX_TEXT)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
