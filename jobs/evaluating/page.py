"""The evaluation's page."""

from __future__ import annotations

import json
from typing import Any

from jobs.evaluating.doubt import DEPTHS, RANKINGS
from jobs.evaluating.predictions import BinError
from jobs.pages.document import format_integer, render_page
from jobs.pages.plots import bar_plot, reliability_plot
from model.calibration_error import NUM_BINS
from model.metrics import format_interval

MAX_MIX_DIFFERENCE, MAX_MIX_CHANCE = 0.1, 0.001
"""Beyond such a difference between the evaluated bins' classes and training's, which is not one by chance, the figures must be
read with care."""

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
    mix = figures["own_mix"]
    if mix["difference"] > MAX_MIX_DIFFERENCE and mix["p_value"] < MAX_MIX_CHANCE:
        found.append(
            f"These bins' quantities are mixed otherwise than training's ({100 * mix['difference']:.0f} % of them would have to "
            "be others). The camera's probabilities keep training's mix, in its counts and 90 % sets too; an audit divides it "
            "out where it doubts records (p_record_wrong). With these bins' own mix the NLL of all classes would be "
            f"{format_interval(mix['nll'], '.3f')} and the calibration error above its noise floor {mix['calibration_error']:.4f}."
        )
    if figures["num_groups"] < 3:  # of as many `bootstrap_by_group` was tried
        found.append(
            f"Only {figures['num_groups']} groups of bins: the intervals rest on too few of them to be trusted."
        )
    return found
