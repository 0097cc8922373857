from __future__ import annotations

import math

import pytest
import torch

from model.health import Finding
from model.progress import NOT_FINITE, UNHEALTHY, TrainingProgress
from model.recipe import Recipe


def add(progress: TrainingProgress, nll: float, image_size: int = 32) -> None:
    """The next epoch, whose weights hold its NLL."""
    entry = {"epoch": len(progress.history), "image_size": image_size, "selection_nll": nll}
    progress.add_epoch(entry, {"weight": torch.tensor(nll)})


def make_progress(**settings: int) -> TrainingProgress:
    return TrainingProgress(Recipe(image_size=32, **settings))  # type: ignore[arg-type]


def test_the_best_epoch_s_weights_are_kept_of_those_on_whole_photos() -> None:
    progress = make_progress(max_epochs=5)
    for nll, image_size in ((0.5, 16), (1.5, 32), (1.2, 32), (1.3, 32)):
        add(progress, nll, image_size)
    assert (progress.best_epoch, progress.best_nll, progress.stopped) == (2, 1.2, None)
    assert progress.best_state == {"weight": torch.tensor(1.2)}


def test_a_training_stops_where_it_is_out_of_patience() -> None:
    progress = make_progress(max_epochs=10, patience=2)
    for nll in (1.0, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1):
        add(progress, nll)
    assert progress.stopped is None, "the first six are not settled"
    add(progress, 1.1)
    assert progress.stopped == "early: no better selection NLL in 2 epochs"


@pytest.mark.parametrize("nll", [math.inf, math.nan])
def test_what_is_no_number_stops_a_training_and_stays_the_reason(nll: float) -> None:
    progress = make_progress(max_epochs=5)
    add(progress, nll)
    progress.stop_unhealthy(["exploding_gradients"])
    progress.end(["overfitting"])
    assert progress.stopped is not None and progress.stopped.startswith(f"{NOT_FINITE} in epoch 1: lower")
    assert (progress.best_epoch, progress.best_state, len(progress.history)) == (-1, {}, 1)


def test_a_training_that_is_unhealthy_stops_and_goes_on_only_where_it_is_to_warn() -> None:
    progress = make_progress(max_epochs=5)
    add(progress, 1.0)
    progress.stop_unhealthy(["dead_activations", "poor_initialisation"])
    assert progress.stopped == f"{UNHEALTHY} in epoch 1: dead_activations, poor_initialisation"
    for on_unhealthy, stopped in (("stop", progress.stopped), ("warn", None)):
        again = make_progress(max_epochs=5)
        again.load(progress.state(), on_unhealthy=on_unhealthy)
        assert (again.stopped, again.best_nll, again.history) == (stopped, 1.0, progress.history)


def test_the_last_epoch_s_learning_by_heart_ends_nothing() -> None:
    progress = make_progress(max_epochs=2)
    add(progress, 1.0)
    progress.end(["overfitting"])
    assert progress.stopped == "early: overfitting in epoch 1"
    progress.stopped = None
    add(progress, 1.1)
    progress.end(["overfitting"])
    assert progress.stopped is None


def test_a_rule_s_first_finding_stands() -> None:
    progress = make_progress(max_epochs=5)
    first, again = (Finding("few", {}, rule="class_imbalance", epoch=epoch) for epoch in (1, 2))
    other = Finding("slow", {}, rule="stalled_on_data", epoch=2)
    assert progress.add_findings([first]) == [first]
    assert progress.add_findings([again, other]) == [other]
    assert [(found["rule"], found["epoch"]) for found in progress.findings] == [
        ("class_imbalance", 1),
        ("stalled_on_data", 2),
    ]
