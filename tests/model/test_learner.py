"""What a step does to the weights."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import learner
from model.health import SAMPLE_EVERY, Observations
from model.micro_batches import MicroBatch, PreparedBatch, plan_epoch
from model.targets import count_targets, quantity_targets
from tests.model.tiny_training import BINS, PHOTOS, copy_of, make_learner


@pytest.mark.parametrize(("batch_size", "share"), [(8, 1 / 2), (12, 2 / 3)])
def test_the_statistics_of_two_workers_are_averaged(batch_size: int, share: float) -> None:
    learning = make_learner(batch_size=batch_size, num_workers=2)
    before = [copy_of(state) for state in (learning.network.state_dict(), learning.average.state)]
    # the other one has 4 everywhere, and the rest of a batch's micro-batches
    learning.worker = SimpleNamespace(sum=lambda values: values.add_(4.0 * (1 - share)))  # type: ignore[assignment]
    learning.average_statistics()
    for state, was in zip((learning.network.state_dict(), learning.average.state), before, strict=True):
        for name, value in state.items():
            expected = share * was[name] + (1 - share) * 4 if "running_" in name else was[name]
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_batch_s_gradient_is_the_mean_over_its_micro_batches(num_workers: int) -> None:
    learning = make_learner(num_workers=num_workers)
    twin = copy.deepcopy(learning.network.train())
    for rows in (np.arange(4), np.arange(4, 8)):
        logits, auxiliary = twin(learning.worker.inputs(PHOTOS[rows]))
        fine, lines = auxiliary.split([16, 9], dim=1)
        counts, quantities = (t[BINS.expected_qty[rows]] for t in (count_targets(3, "ordinal"), quantity_targets()))
        extra = F.cross_entropy(fine, torch.from_numpy(quantities))
        extra = extra + F.cross_entropy(lines, torch.from_numpy(BINS.num_skus[rows]))
        ((F.cross_entropy(logits, torch.from_numpy(counts)) + 0.3 * extra) / 2).backward()
        learning.accumulate(MicroBatch(rows, 32, None), PHOTOS[rows], synchronise=True)
    for ours, expected in zip(learning.network.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None  # DDP divides by the workers
        torch.testing.assert_close(ours.grad, expected.grad * num_workers, rtol=1e-3, atol=1e-5)


def test_what_the_workers_tell_of_a_step_adds_up_to_the_batch_s_loss_on_counts_and_gradient() -> None:
    learning = make_learner(num_workers=2)
    twin = copy.deepcopy(learning)
    (batch,) = plan_epoch(BINS, learning.recipe, 0, worker=0, num_workers=2)[:1]
    seen = Observations(num_classes=4, label_histogram=[7] * 4)
    told = learning.step(0, iter([(batch, PreparedBatch(PHOTOS[batch.rows], {}))]), seen)
    logits, _ = twin.network.train()(twin.worker.inputs(PHOTOS[batch.rows]))
    counts = torch.from_numpy(count_targets(3, "ordinal")[BINS.expected_qty[batch.rows]])
    twin.accumulate(batch, PHOTOS[batch.rows], synchronise=True)
    norm = torch.stack([p.grad.norm() for p in twin.network.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(told, torch.stack([F.cross_entropy(logits, counts).detach(), norm]) / 2)


def test_a_training_that_goes_on_averages_its_weights_as_one_that_never_stopped() -> None:
    learning, other = make_learner(), make_learner()
    for _ in range(5):
        learning.average.update()
    other.load(copy.deepcopy(learning.state()))
    for each in (learning, other):
        with torch.no_grad():
            next(each.network.parameters()).add_(1.0)
        each.average.update()
    torch.testing.assert_close(other.average.state, learning.average.state)


def test_only_filters_decay() -> None:
    learning = make_learner()
    groups = learning.optimiser.param_groups
    decays = {(p.ndim > 1, group["weight_decay"]) for group in groups for p in group["params"]}
    assert decays == {(True, learning.recipe.weight_decay), (False, 0.0)}


def test_what_a_layer_receives_is_measured_before_its_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "MAX_GRADIENT_NORM", 1e-9)
    learning, seen = make_learner(), Observations(num_classes=4, label_histogram=[7] * 4)
    plan = plan_epoch(BINS, learning.recipe, 0, worker=0, num_workers=1)
    stream = iter([(batch, PreparedBatch(PHOTOS[batch.rows], {})) for batch in plan])
    for number in (0, 1, SAMPLE_EVERY):
        loss, norm = learning.step(number, stream, seen).tolist()
        assert 0 < loss < 10 and norm > 1e-6
    assert max(seen.layer_ratios[0].values()) > 1e-6
    assert len(seen.layer_ratios) == len(seen.dead_shares) == 2
    assert next(stream, None) is None, "a step takes the micro-batches of one batch"


def test_a_rehearsal_with_whole_photos_leaves_the_network_as_it_is_or_says_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learning = make_learner()
    before, sizes = copy_of(learning.network.state_dict()), []

    def look(pixels: np.ndarray) -> torch.Tensor:
        sizes.append(pixels.shape)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()

    monkeypatch.setattr(learning.worker, "inputs", look)
    learning.rehearse()
    assert sizes == [(4, 32, 32, 3)]
    assert all(torch.equal(value, before[name]) for name, value in learning.network.state_dict().items())
    assert all(parameter.grad is None for parameter in learning.network.parameters())

    def fail(pixels: np.ndarray) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(learning.worker, "inputs", fail)
    with pytest.raises(
        RuntimeError, match="4 photos of 32 pixels don't fit the GPU's memory: lower --micro-batch-size"
    ):
        learning.rehearse()
