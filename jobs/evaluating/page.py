"""The evaluation's page."""

from __future__ import annotations

import json
from typing import Any

from jobs.evaluating.doubt import DEPTHS, RANKINGS
from jobs.evaluating.predictions import BinError
from jobs.pages.document import format_integer, render_page
from jobs.pages.plots import bar_plot, reliability_plot
from model.calibration_error import NUM_BINS

LEFT_OUT = {
    "unseen": "training learned from their photos",
    "test": "not among training's test photos",
    "all": "none with --split all",
}


def render_evaluation(figures: dict[str, Any], worst: list[BinError], thumbnails: dict[str, str]) -> str:
    """`figures`: what metrics.json holds. `thumbnails`: data URIs by image URI."""
    sizes = figures["prediction_sets"]["sizes"]
    rankings = figures["doubt"]["rankings"]
    first_scope = next(iter(figures["metrics"]))
    depths = list(rankings["p_expected"])
    return render_page(
        "evaluation.html",
        m=figures,
        first_scope=first_scope,
        first=figures["metrics"][first_scope],
        warnings=find_warnings(figures),
        left_out_reason=LEFT_OUT[figures["config"]["split"]],
        reliability=reliability_plot(figures["calibration"]["reliability"], title="Reliability diagram"),
        num_intervals=NUM_BINS,
        set_sizes=bar_plot(
            [str(size) for size in range(1, len(sizes) + 1)],
            sizes,
            title="Sizes of the 90 % sets",
            x="counts in the set",
        ),
        doubt_depths=depths,
        least_depth=min(DEPTHS),
        doubt_rows=[(RANKINGS[name], values) for name, values in rankings.items()] if depths else [],
        worst=worst,
        thumbnails=thumbnails,
        made=json.dumps(
            {name: figures[name] for name in ("config", "device", "precision", "versions", "git_commit")}, indent=1
        ),
    )


def find_warnings(figures: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    if figures["num_learned_from"]:
        found.append(
            f"{format_integer(figures['num_learned_from'])} of the {format_integer(figures['num_bins'])} photos are ones "
            "that training learned from, so these figures flatter (--split all)."
        )
    unscored = sum(figures["unscored"].values())
    if unscored:
        found.append(f"{format_integer(unscored)} photos have no score and are not in the figures; see “Which bins”.")
    if figures["num_ungrouped"]:
        found.append(
            f"{format_integer(figures['num_ungrouped'])} of {format_integer(figures['num_bins'])} bins name no group (or only "
            "themselves): bins with the same products count as independent, so the intervals are too narrow."
        )
    if figures["num_groups"] < 3:  # of as many `bootstrap_by_group` was tried
        found.append(
            f"Only {figures['num_groups']} groups of bins: the intervals rest on too few of them to be trusted."
        )
    return found
