"""The training loop in this process: what it hands to the rules and the profile, and what a checkpoint brings back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import training
from model.health import Finding
from model.micro_batches import PreparedBatch
from model.optimisation import averaging_decay, learning_rate_at
from model.progress import NOT_FINITE, UNHEALTHY
from model.training import STATE_FILE, TrainingLoop
from tests.model.tiny_training import copy_of, make_loop


def note_steps(loop: TrainingLoop) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Of each step of a loop that runs from now on: learning rate, and the weights after it."""
    steps, take = [], loop.learner.optimiser.step

    def step() -> None:
        take()
        steps.append((loop.learner.optimiser.param_groups[0]["lr"], copy_of(loop.learner.network.state_dict())))

    loop.learner.optimiser.step = step  # type: ignore[method-assign, assignment]
    return steps


def test_the_weights_that_are_kept_are_the_average_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(monkeypatch, max_epochs=1, averaging_epochs=0.2)
    expected, steps = copy_of(loop.learner.network.state_dict()), note_steps(loop)
    loop.run()
    assert len(steps) == 3
    for number, (_, state) in enumerate(steps, start=1):
        kept = min(averaging_decay(loop.recipe, 3), (1 + number) / (10 + number))
        for name, value in state.items():
            expected[name] = kept * expected[name] + (1 - kept) * value if value.is_floating_point() else value
    for name, value in loop.progress.best_state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_the_learning_rate_is_planned_over_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(monkeypatch)
    steps = note_steps(loop)
    loop.run()
    expected = [learning_rate_at(step, 6, loop.recipe) for step in range(6)]
    assert [rate for rate, _ in steps] == pytest.approx(expected)


def test_a_killed_loop_ends_as_one_that_was_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def keep(loop: TrainingLoop, entry: dict[str, float]) -> None:
        torch.save(loop.state(), tmp_path / STATE_FILE)
        raise RuntimeError("killed by the test")

    whole, cut = make_loop(monkeypatch), make_loop(monkeypatch)
    whole.run()
    monkeypatch.setattr(TrainingLoop, "report", keep)
    with pytest.raises(RuntimeError, match="killed by the test"):
        cut.run()
    resumed = make_loop(monkeypatch, checkpoint=tmp_path)
    resumed.run()
    nlls = [[entry["selection_nll"] for entry in loop.progress.history] for loop in (resumed, whole)]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-3)
    for name, value in whole.learner.average.state.items():
        torch.testing.assert_close(resumed.learner.average.state[name], value, rtol=1e-3, atol=1e-4)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    torch.save(state | {"best_nll": 0.0}, tmp_path / STATE_FILE)  # nothing after the kill is better
    again = make_loop(monkeypatch, checkpoint=tmp_path)
    again.run()
    assert (again.progress.best_epoch, again.progress.best_nll) == (0, 0.0)
    assert all(torch.equal(value, state["best_state"][name]) for name, value in again.progress.best_state.items())


def slow(*_: Any, **__: Any) -> None:
    time.sleep(0.1)


def after_a_while(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: (slow(), call(*given, **named))[1]


def make_slow(loop: TrainingLoop, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of one phase of a loop."""
    if phase == "wait for photos":
        photos = loop.photos
        loop.photos = lambda plan: map(after_a_while(lambda batch: batch), photos(plan))
    elif phase == "transfer":
        monkeypatch.setattr(loop.worker, "send", after_a_while(loop.worker.send))
    elif phase in ("forward", "validation"):
        in_training = phase == "forward"
        loop.learner.network.register_forward_pre_hook(
            lambda module, given: slow() if module.training == in_training else None
        )
    elif phase == "backward":
        loop.learner.network.resnet.layer4.register_full_backward_hook(slow)
    elif phase == "optimiser":
        monkeypatch.setattr(loop.learner.optimiser, "step", after_a_while(loop.learner.optimiser.step))
    else:
        monkeypatch.setattr(TrainingLoop, "report", slow)


@pytest.mark.parametrize(
    "phase", ["wait for photos", "transfer", "forward", "backward", "optimiser", "validation", "checkpoint"]
)
def test_what_is_slow_is_found_in_its_row_of_the_profile(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    loop = make_loop(monkeypatch, max_epochs=1, averaging_epochs=0)
    read = loop.photos
    seconds = {"fetch": 1.0, "decode": 2.0, "augment": 3.0}
    loop.photos = lambda plan: (PreparedBatch(batch.pixels, seconds) for batch in read(plan))
    make_slow(loop, phase, monkeypatch)
    outcome = loop.run()
    assert outcome is not None
    profile = outcome["profile"]
    num_calls = {"optimiser": 3, "validation": 2, "checkpoint": 1}.get(phase, 6)  # six micro-batches in three steps
    assert profile[phase] >= 0.1 * num_calls
    assert {name: profile[name] for name in seconds} == {name: 6 * value for name, value in seconds.items()}


def test_the_health_rules_are_told_what_the_loop_did(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(monkeypatch, max_epochs=2)
    make_slow(loop, "wait for photos", monkeypatch)
    with torch.no_grad():  # of the last block the first normalisation lets nothing through
        loop.learner.network.resnet.layer4[1].bn1.weight.fill_(0)
        loop.learner.network.resnet.layer4[1].bn1.bias.fill_(-1)
    loop.run()
    seen = loop.seen
    # five waits of a tenth of a second and six: the first is no part of an epoch
    waited = [share * entry["seconds"] for share, entry in zip(seen.wait_shares, loop.progress.history, strict=True)]
    assert waited[0] >= 0.5 and waited[1] >= 0.6 and max(seen.wait_shares) < 1 and len(waited) == 2
    assert seen.dead_shares[0]["resnet.layer4.1.relu"] == 1.0 and min(seen.dead_shares[0].values()) < 0.6
    assert len(set(seen.gradient_norms)) == 6 and min(seen.gradient_norms) > 0
    assert 0 < seen.guess_nll < 3
    assert (seen.image_sizes, seen.settled_epochs, seen.from_scratch) == ([32, 32], 1, True)
    assert all(0.2 < ratio < 5 for ratio in seen.initial_weight_std.values()) and len(seen.initial_weight_std) > 15
    assert len(seen.layer_ratios) == len(seen.dead_shares) >= 1
    assert len(seen.step_losses) == 6 and len(seen.train_losses) == len(seen.selection_nlls) == 2


@pytest.mark.parametrize("trained", [False, True])
def test_a_trace_that_can_not_be_had_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: bool
) -> None:
    loop = make_loop(monkeypatch, batch_size=16, max_epochs=1)
    if trained:
        loop.run()
        torch.save(loop.state(), tmp_path / STATE_FILE)
        loop = make_loop(monkeypatch, batch_size=16, max_epochs=1, checkpoint=tmp_path)
    loop.settings = replace(loop.settings, trace_steps=3)
    outcome = loop.run()
    assert outcome is not None and outcome["trace"] is None
    said = "the training had ended before this try" if trained else "the first two steps are not recorded"
    assert f"no trace: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(("spoiled_after", "num_steps"), [(0, 1), (3, 3)], ids=["by the loss", "by the answers"])
def test_weights_that_are_no_numbers_stop_the_loop_with_nothing_kept(
    monkeypatch: pytest.MonkeyPatch, spoiled_after: int, num_steps: int
) -> None:
    loop = make_loop(monkeypatch)
    steps = note_steps(loop)
    take = loop.learner.optimiser.step

    def spoil_after() -> None:
        if len(steps) == spoiled_after:
            loop.learner.network.resnet.fc.bias.data.fill_(math.nan)

    def step() -> None:
        take()
        spoil_after()

    loop.learner.optimiser.step = step  # type: ignore[method-assign, assignment]
    spoil_after()
    outcome = loop.run()
    assert outcome is not None and outcome["stopped"].startswith(f"{NOT_FINITE} in epoch 1")
    assert [entry["selection_nll"] for entry in outcome["history"]] == [math.inf]
    assert (loop.progress.best_state, outcome["best_epoch"], len(steps)) == ({}, -1, num_steps)


def test_an_unhealthy_loop_stops_after_its_epoch_and_goes_on_where_it_is_to_warn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [Finding("few of one class", {}, rule="class_imbalance", epoch=1)]
    monkeypatch.setattr(training, "check_health", lambda seen: found)
    loop = make_loop(monkeypatch, on_unhealthy="stop")
    loop.check_health()
    assert loop.progress.stopped is None, "such a finding stops nothing"
    found.append(Finding("alike", {}, rule="poor_initialisation", epoch=1))
    monkeypatch.setattr(TrainingLoop, "report", lambda loop, entry: torch.save(loop.state(), tmp_path / STATE_FILE))
    outcome = loop.run()
    assert outcome is not None and outcome["stopped"] == f"{UNHEALTHY} in epoch 1: poor_initialisation"
    assert len(outcome["history"]) == 1
    resumed = make_loop(monkeypatch, checkpoint=tmp_path)
    resumed.run()
    assert (len(resumed.progress.history), resumed.progress.stopped) == (2, None)
