"""The training report: figures, curves, calibration, health and profile on one self-contained page."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from jobs.config.train import TrainConfig
from jobs.pages.document import render_page
from jobs.pages.plots import bar_plot, line_plot, reliability_plot
from model.calibration import FittedCalibration
from model.health import RULES
from model.metrics import confusion, reliability, scope_name
from model.profile import DATA_PHASES, PHASES
from schemas.bundle import class_names

PLOT_SIZE = (4.9, 2.7)
MAX_NORM_SHOWN = 50.0
FIGURES = (
    ("exact", "exact", "percent"),
    ("within_one", "within one", "percent"),
    ("mae", "MAE", "decimal"),
    ("mae_median", "MAE of median", "decimal"),
    ("rmse", "RMSE", "decimal"),
    ("bias", "bias", "signed"),
    ("nll", "NLL", "decimal"),
)


def render_training_report(
    *,
    config: TrainConfig,
    outcome: dict[str, Any],
    metrics: dict[str, Any],
    fitted: FittedCalibration,
    probabilities: np.ndarray,
    labels: np.ndarray,
    split_sizes: dict[str, dict[str, Any]],
    left_out: dict[str, int],
    provenance: dict[str, Any],
) -> str:
    """HTML. `probabilities` (n, K + 1) and `labels` (n,) are the test bins'; `outcome` is the training
    loop's; `left_out`: see `LabelledBins`."""
    history = outcome["history"]
    epochs = [entry["epoch"] + 1 for entry in history]
    steps = list(range(1, len(outcome["step_losses"]) + 1))
    classes = class_names(config.top_class)
    table = confusion(probabilities.argmax(axis=1), labels, len(classes))
    profile = outcome["profile"]
    wall = sum(profile[name] for name in PHASES)
    counts = scope_name("1..5", config.top_class) if config.top_class > 2 else None  # of one class there are no figures
    return render_page(
        "training.html",
        config=config,
        figure_names=FIGURES,
        scopes=[scope for scope in metrics["test"] if scope != "calibration_error"],
        counts=counts,
        test=metrics["test"],
        selection=metrics["selection"],
        error=metrics["test"]["calibration_error"],
        history=history,
        best_epoch=outcome["best_epoch"] + 1,
        stopped=outcome["stopped"],
        precision=outcome["precision"],
        loss_plot=line_plot(
            {
                "training loss": (epochs, [entry["train_loss"] for entry in history]),
                "selection NLL": (epochs, [entry["selection_nll"] for entry in history]),
            },
            title="Loss by epoch",
            x="epoch",
            y="nats per photo",
            size=PLOT_SIZE,
        ),
        count_plot=None
        if counts is None
        else line_plot(
            {
                "exact share": (epochs, [entry.get("selection_exact", np.nan) for entry in history]),
                "MAE": (epochs, [entry.get("selection_mae", np.nan) for entry in history]),
            },
            title="Counts by epoch",
            x="epoch",
            y=f"selection bins of {counts}",
            size=PLOT_SIZE,
        ),
        step_plot=line_plot(
            {"loss": (steps, outcome["step_losses"])}, title="Loss by step", x="step", y="loss", size=PLOT_SIZE
        ),
        gradient_plot=line_plot(
            {"gradient norm": (steps, [min(norm, MAX_NORM_SHOWN) for norm in outcome["gradient_norms"]])},
            title="Gradient norm by step",
            x="step",
            y="gradient norm",
            size=PLOT_SIZE,
        ),
        reliability=reliability_plot(reliability(probabilities, labels), title="Reliability on test bins"),
        fitted=fitted,
        methods=fitted.calibration.held_out_nll,
        classes=classes,
        confusion=table.tolist(),
        findings=outcome["findings"],
        silent=[rule.__name__ for rule in RULES if rule.__name__ not in {f["rule"] for f in outcome["findings"]}],
        rules={rule.__name__: (rule.__doc__ or "").strip() for rule in RULES},
        profile=[(name, profile[name], profile[name] / max(wall, 1e-9)) for name in PHASES],
        profile_plot=bar_plot(
            list(PHASES), [profile[name] for name in PHASES], title="Seconds by phase", x="", y="seconds", size=(9, 2.8)
        ),
        tasks=[(name, profile[name]) for name in DATA_PHASES],
        wall=wall,
        splits=split_sizes,
        left_out=left_out,
        made=json.dumps({"config": config.model_dump(mode="json"), **provenance}, indent=1),
    )
