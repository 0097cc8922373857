"""What a training has come to: its epochs, the best weights so far, and whether it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from model.health import Finding
from model.recipe import Recipe

UNHEALTHY = "unhealthy"
NOT_FINITE = "the loss is not a finite number"


@dataclass
class TrainingProgress:
    """A training by `recipe`, after the epochs in `history`."""

    recipe: Recipe
    history: list[dict[str, float]] = field(default_factory=list)
    """By epoch its number (from 0), `image_size`, `learning_rate`, `train_loss`, `seconds`, `wait_share` and the
    `selection_figures` of its average of the weights."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """Each rule's first `Finding`."""
    best_epoch: int = -1
    best_nll: float = math.inf
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of CountingNetwork, on the CPU; empty before an epoch on photos of the whole size."""
    stopped: str | None = None
    """Why the training ends before its last epoch."""

    def diverge(self) -> None:
        """Stops in the epoch after `history`: a loss, a gradient or an answer is no number."""
        self.stopped = (
            f"{NOT_FINITE} in epoch {len(self.history) + 1}: lower --learning-rate (a tenth), "
            "and check --weights if they were given"
        )

    def add_epoch(self, entry: dict[str, float], state: dict[str, torch.Tensor]) -> None:
        """Adds the next epoch, whose average of the weights is `state`: the best one so far or not. Stops where its NLL is not
        finite, or too many epochs have come since the best."""
        epoch, nll = len(self.history), entry["selection_nll"]
        if not math.isfinite(nll):
            self.diverge()
        # an epoch on smaller photos can't be the best: its weights don't know the bundle's size yet
        elif entry["image_size"] == self.recipe.image_size and nll < self.best_nll:
            self.best_epoch, self.best_nll = epoch, nll
            self.best_state = {name: value.cpu().clone() for name, value in state.items()}
        elif self.best_epoch >= 0 and self.recipe.is_out_of_patience(self.best_epoch, epoch):
            self.stopped = f"early: no better selection NLL in {self.recipe.patience} epochs"
        self.history.append(entry)

    def add_findings(self, findings: Sequence[Finding]) -> list[Finding]:
        """Keeps and returns those whose rule fires for the first time."""
        known = {finding["rule"] for finding in self.findings}
        new = [finding for finding in findings if finding.rule not in known]
        self.findings += [asdict(finding) for finding in new]
        return new

    def stop_unhealthy(self, rules: Sequence[str]) -> None:
        """Stops after an epoch because of the health `rules` that fire; a loss that is not finite stays the reason, since
        --on-unhealthy warn must not go on from such weights."""
        if not (self.stopped or "").startswith(NOT_FINITE):
            self.stopped = f"{UNHEALTHY} in epoch {len(self.history)}: {', '.join(rules)}"

    def end(self, rules: Sequence[str]) -> None:
        """Stops early, as without patience, because of the health `rules` that fire after an epoch."""
        if self.stopped is None and len(self.history) < self.recipe.max_epochs:
            self.stopped = f"early: {', '.join(rules)} in epoch {len(self.history)}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: value for name, value in vars(self).items() if name != "recipe"}

    def load(self, state: dict[str, Any], *, on_unhealthy: str) -> None:
        """Goes on from what `state` gave; where it stopped because it was told to, and `on_unhealthy` is warn now, it no longer
        does."""
        for name in self.state():
            setattr(self, name, state[name])
        self.best_state = {name: value.cpu() for name, value in self.best_state.items()}
        if on_unhealthy == "warn" and (self.stopped or "").startswith(UNHEALTHY):
            self.stopped = None
