"""The training loop in this process: what a step does to the weights, and what a checkpoint brings back."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F

from model import training
from model.health import Finding
from model.micro_batches import MicroBatch, PreparedBatch, TrainingSet
from model.network import CountingNetwork, build_network
from model.optimisation import averaging_decay, learning_rate_at
from model.recipe import Recipe
from model.splitting import id_hashes
from model.targets import count_targets, quantity_targets
from model.training import NOT_FINITE, STATE_FILE, UNHEALTHY, LoopSettings, _Loop

NUMBERS = np.arange(44)  # 28 train in three batches of eight, 8 select, 8 test
BINS = TrainingSet(
    id_hashes([str(number) for number in NUMBERS]),
    NUMBERS % 4,
    NUMBERS % 3,
    np.where(NUMBERS < 28, "train", np.where(NUMBERS < 36, "selection", "test")),
)
PHOTOS = np.random.default_rng(0).integers(0, 256, (44, 32, 32, 3), dtype=np.uint8)


def make_loop(
    monkeypatch: pytest.MonkeyPatch,
    *,
    num_workers: int = 1,
    checkpoint: Path | None = None,
    on_unhealthy: Literal["warn", "stop"] = "warn",
    device: str = "cpu",
    **changes: Any,
) -> _Loop:
    settings: dict[str, Any] = {"architecture": "resnet18", "image_size": 32, "top_class": 3, "max_epochs": 2}
    settings |= {"batch_size": 8, "micro_batch_size": 4, "mixed_precision": False}
    recipe = Recipe(**(settings | changes))
    torch.manual_seed(0)
    state = CountingNetwork(build_network("resnet18", 4), auxiliary=True).state_dict()
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: num_workers)
    kept = checkpoint and SimpleNamespace(as_directory=lambda: nullcontext(str(checkpoint)), path=str(checkpoint))
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: kept)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(device))
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda network, **given: network)
    monkeypatch.setattr(_Loop, "_report", lambda loop, entry: None)

    def read(plan: Any) -> Any:
        return (PreparedBatch(PHOTOS[batch.rows], {}) for batch in plan)

    threads = torch.get_num_threads()
    return _Loop(LoopSettings(recipe, lambda: (BINS, state, read), threads, on_unhealthy=on_unhealthy, conclude=()))


def copy_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


def note_steps(loop: _Loop) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Of each step of a loop that runs from now on: learning rate, and the weights after it."""
    steps, take = [], loop.optimiser.step

    def step() -> None:
        take()
        steps.append((loop.optimiser.param_groups[0]["lr"], copy_of(loop.network.state_dict())))

    loop.optimiser.step = step  # type: ignore[method-assign, assignment]
    return steps


def test_the_weights_that_are_kept_are_the_average_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(monkeypatch, max_epochs=1, averaging_epochs=0.2)
    expected, steps = copy_of(loop.network.state_dict()), note_steps(loop)
    loop.run()
    assert len(steps) == 3
    for number, (_, state) in enumerate(steps, start=1):
        kept = min(averaging_decay(loop.recipe, 3), (1 + number) / (10 + number))
        for name, value in state.items():
            expected[name] = kept * expected[name] + (1 - kept) * value if value.is_floating_point() else value
    for name, value in loop.best_state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "share"), [(8, 1 / 2), (12, 2 / 3)])
def test_the_statistics_of_two_workers_are_averaged(
    batch_size: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(monkeypatch, batch_size=batch_size)
    before = [copy_of(state) for state in (loop.network.state_dict(), loop.average.state)]
    # the other one has 4 everywhere, and the rest of a batch's micro-batches
    loop.worker = SimpleNamespace(rank=0, num_workers=2, sum=lambda values: values.add_(4.0 * (1 - share)))
    loop._average_statistics()
    for state, was in zip((loop.network.state_dict(), loop.average.state), before, strict=True):
        for name, value in state.items():
            expected = share * was[name] + (1 - share) * 4 if "running_" in name else was[name]
            torch.testing.assert_close(value, expected)


def test_each_epoch_has_an_order_and_an_augmentation_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, train = make_loop(monkeypatch), BINS.rows_of("train")
    plans = [loop._micro_batches(train, epoch) for epoch in range(12)]
    orders = [np.concatenate([batch.rows for batch in plan]).tolist() for plan in plans]
    assert orders[0] != orders[1]
    assert {row for order in orders for row in order} == set(train.tolist()), "another rest waits each time"
    assert [{batch.augment_epoch for batch in plan} for plan in plans] == [{epoch} for epoch in range(12)]


def test_the_learning_rate_is_planned_over_all_epochs_and_only_filters_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(monkeypatch)
    steps = note_steps(loop)
    loop.run()
    expected = [learning_rate_at(step, 6, loop.recipe) for step in range(6)]
    assert [rate for rate, _ in steps] == pytest.approx(expected)
    decays = {(p.ndim > 1, group["weight_decay"]) for group in loop.optimiser.param_groups for p in group["params"]}
    assert decays == {(True, loop.recipe.weight_decay), (False, 0.0)}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_batch_s_gradient_is_the_mean_over_its_micro_batches(
    monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    loop = make_loop(monkeypatch, num_workers=num_workers)
    twin = copy.deepcopy(loop.network.train())
    for rows in (np.arange(4), np.arange(4, 8)):
        logits, auxiliary = twin(loop.worker.inputs(PHOTOS[rows]))
        fine, lines = auxiliary.split([16, 9], dim=1)
        counts, quantities = (t[BINS.expected_qty[rows]] for t in (count_targets(3, "ordinal"), quantity_targets()))
        extra = F.cross_entropy(fine, torch.from_numpy(quantities))
        extra = extra + F.cross_entropy(lines, torch.from_numpy(BINS.num_skus[rows]))
        ((F.cross_entropy(logits, torch.from_numpy(counts)) + 0.3 * extra) / 2).backward()
        loop._accumulate(MicroBatch(rows, 32, None), PHOTOS[rows], 2, synchronise=True)
    for ours, expected in zip(loop.network.parameters(), twin.parameters(), strict=True):  # DDP divides by the workers
        torch.testing.assert_close(ours.grad, expected.grad * num_workers, rtol=1e-3, atol=1e-5)


def test_a_killed_loop_ends_as_one_that_was_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def keep(loop: _Loop, entry: dict[str, float]) -> None:
        torch.save(loop._state(), tmp_path / STATE_FILE)
        raise RuntimeError("killed by the test")

    whole, cut = make_loop(monkeypatch), make_loop(monkeypatch)
    whole.run()
    monkeypatch.setattr(_Loop, "_report", keep)
    with pytest.raises(RuntimeError, match="killed by the test"):
        cut.run()
    resumed = make_loop(monkeypatch, checkpoint=tmp_path)
    resumed.run()
    nlls = [[entry["selection_nll"] for entry in loop.history] for loop in (resumed, whole)]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-3)
    for name, value in whole.average.state.items():
        torch.testing.assert_close(resumed.average.state[name], value, rtol=1e-3, atol=1e-4)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    torch.save(state | {"best_nll": 0.0}, tmp_path / STATE_FILE)  # nothing after the kill is better
    again = make_loop(monkeypatch, checkpoint=tmp_path)
    again.run()
    assert (again.best_epoch, again.best_nll) == (0, 0.0)
    assert all(torch.equal(value, state["best_state"][name]) for name, value in again.best_state.items())


def slow(*_: Any, **__: Any) -> None:
    time.sleep(0.1)


def after_a_while(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: (slow(), call(*given, **named))[1]


def make_slow(loop: _Loop, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of one phase of a loop."""
    if phase == "wait for photos":
        photos = loop.photos
        loop.photos = lambda plan: map(after_a_while(lambda batch: batch), photos(plan))
    elif phase == "transfer":
        monkeypatch.setattr(loop.worker, "send", after_a_while(loop.worker.send))
    elif phase in ("forward", "validation"):
        in_training = phase == "forward"
        loop.network.register_forward_pre_hook(lambda module, given: slow() if module.training == in_training else None)
    elif phase == "backward":
        loop.network.resnet.layer4.register_full_backward_hook(slow)
    elif phase == "optimiser":
        monkeypatch.setattr(loop.optimiser, "step", after_a_while(loop.optimiser.step))
    else:
        monkeypatch.setattr(_Loop, "_report", slow)


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
        loop.network.resnet.layer4[1].bn1.weight.fill_(0)
        loop.network.resnet.layer4[1].bn1.bias.fill_(-1)
    loop.run()
    seen = loop.seen
    assert all(0.2 < share < 1 for share in seen.wait_shares) and len(seen.wait_shares) == 2
    assert seen.dead_shares[0]["resnet.layer4.1.relu"] == 1.0 and min(seen.dead_shares[0].values()) < 0.6
    assert len(set(seen.gradient_norms)) == 6 and min(seen.gradient_norms) > 0
    assert 0 < seen.guess_nll < 3
    assert (seen.image_sizes, seen.settled_epochs, seen.from_scratch) == ([32, 32], 1, True)
    assert all(0.2 < ratio < 5 for ratio in seen.initial_weight_std.values()) and len(seen.initial_weight_std) > 15
    assert len(seen.layer_ratios) == len(seen.dead_shares) >= 1
    assert len(seen.step_losses) == 6 and len(seen.train_losses) == len(seen.selection_nlls) == 2


def test_plain_classes_are_learned_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, soft = (make_loop(monkeypatch, targets=targets)._targets for targets in ("classes", "ordinal"))
    assert torch.equal(plain[:4], torch.eye(4)) and not torch.equal(plain, soft)


@pytest.mark.parametrize("trained", [False, True])
def test_a_trace_that_can_not_be_had_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: bool
) -> None:
    loop = make_loop(monkeypatch, batch_size=16, max_epochs=1)
    if trained:
        loop.run()
        torch.save(loop._state(), tmp_path / STATE_FILE)
        loop = make_loop(monkeypatch, batch_size=16, max_epochs=1, checkpoint=tmp_path)
    loop.settings = replace(loop.settings, trace_steps=3)
    outcome = loop.run()
    assert outcome is not None and outcome["trace"] is None
    said = "the training had ended before this try" if trained else "the first two steps are not recorded"
    assert f"no trace: {said}" in capsys.readouterr().out


def test_what_a_layer_receives_is_measured_before_its_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_GRADIENT_NORM", 1e-9)
    loop = make_loop(monkeypatch)
    loop.run()
    assert max(loop.seen.layer_ratios[0].values()) > 1e-6


@pytest.mark.parametrize(("spoiled_after", "num_steps"), [(0, 1), (3, 3)], ids=["by the loss", "by the answers"])
def test_weights_that_are_no_numbers_stop_the_loop_with_nothing_kept(
    monkeypatch: pytest.MonkeyPatch, spoiled_after: int, num_steps: int
) -> None:
    loop = make_loop(monkeypatch)
    steps = note_steps(loop)
    take = loop.optimiser.step

    def spoil_after() -> None:
        if len(steps) == spoiled_after:
            loop.network.resnet.fc.bias.data.fill_(math.nan)

    def step() -> None:
        take()
        spoil_after()

    loop.optimiser.step = step  # type: ignore[method-assign, assignment]
    spoil_after()
    outcome = loop.run()
    assert outcome is not None and outcome["stopped"].startswith(f"{NOT_FINITE} in epoch 1")
    assert [entry["selection_nll"] for entry in outcome["history"]] == [math.inf]
    assert (loop.best_state, outcome["best_epoch"], len(steps)) == ({}, -1, num_steps)


def test_an_unhealthy_loop_stops_after_its_epoch_and_goes_on_where_it_is_to_warn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [Finding("few of one class", {}, rule="class_imbalance", epoch=1)]
    monkeypatch.setattr(training, "check_health", lambda seen: found)
    loop = make_loop(monkeypatch, on_unhealthy="stop")
    loop._check_health(0)
    assert loop.stopped is None, "such a finding stops nothing"
    found.append(Finding("alike", {}, rule="poor_initialisation", epoch=1))
    monkeypatch.setattr(_Loop, "_report", lambda loop, entry: torch.save(loop._state(), tmp_path / STATE_FILE))
    outcome = loop.run()
    assert outcome is not None and outcome["stopped"] == f"{UNHEALTHY} in epoch 1: poor_initialisation"
    assert len(outcome["history"]) == 1
    resumed = make_loop(monkeypatch, checkpoint=tmp_path)
    resumed.run()
    assert (len(resumed.history), resumed.stopped) == (2, None)


def test_a_rehearsal_with_whole_photos_leaves_the_network_as_it_is_or_says_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = make_loop(monkeypatch)
    before, sizes = copy_of(loop.network.state_dict()), []

    def look(pixels: np.ndarray) -> torch.Tensor:
        sizes.append(pixels.shape)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()

    monkeypatch.setattr(loop.worker, "inputs", look)
    loop._rehearse()
    assert sizes == [(4, 32, 32, 3)]
    assert all(torch.equal(value, before[name]) for name, value in loop.network.state_dict().items())
    assert all(parameter.grad is None for parameter in loop.network.parameters())

    def fail(pixels: np.ndarray) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.worker, "inputs", fail)
    with pytest.raises(
        RuntimeError, match="4 photos of 32 pixels don't fit the GPU's memory: lower --micro-batch-size"
    ):
        loop._rehearse()


def test_answers_that_ignore_the_photo_are_no_better_than_a_guess_whatever_the_selection_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else `nothing_learned` could not tell: biases that are fitted to the selection know what is common there."""
    loop = make_loop(monkeypatch)
    loop.labels = np.where(BINS.splits == "selection", 0, loop.labels)
    histogram = loop.seen.label_histogram
    loop.seen.train_losses.append(1.0)
    loop.seen.wait_shares.append(0.0)
    constant = np.tile(np.log(np.array(histogram) / sum(histogram)), (8, 1))
    monkeypatch.setattr(loop.evaluation, "logits", lambda *given, **named: constant)
    loop._finish_epoch(0)
    assert loop.history[0]["selection_nll"] > 1  # a guess has log 4; biases that were fitted to it 0.25
