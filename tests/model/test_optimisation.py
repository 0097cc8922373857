from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model.network import CountingNetwork, build_network
from model.optimisation import WeightAverage, averaging_decay, learning_rate_at, make_optimiser, set_momentum
from model.recipe import Recipe


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule: str) -> None:
    recipe = Recipe(schedule=schedule, learning_rate=0.01)  # type: ignore[arg-type]
    rates = [learning_rate_at(step, 100, recipe) for step in range(100)]
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates[0] < 0.004
    assert rates[-1] < 1e-4
    peak = int(np.argmax(rates))
    assert all(np.diff(rates[: peak + 1]) > 0)
    assert all(np.diff(rates[peak + 1 :]) < 0)


@pytest.fixture
def network() -> CountingNetwork:
    torch.manual_seed(0)
    return CountingNetwork(build_network("resnet18", 7), auxiliary=True)


def test_the_optimiser_and_the_schedule_are_those_asked_for(network: CountingNetwork) -> None:
    sgd = make_optimiser(network, Recipe(optimiser="sgd", learning_rate=0.05))
    assert isinstance(sgd, torch.optim.SGD)
    assert all((group["lr"], group["momentum"], group["nesterov"]) == (0.05, 0.9, True) for group in sgd.param_groups)
    assert isinstance(make_optimiser(network, Recipe()), torch.optim.AdamW)
    for schedule, peak in (("one-cycle", 25), ("cosine", 5)):
        rates = [learning_rate_at(step, 100, Recipe(schedule=schedule)) for step in range(100)]
        assert abs(int(np.argmax(rates)) - peak) <= 1
        assert rates[-1] < 1e-5 < rates[0] < max(rates) == pytest.approx(1e-3)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_running_statistics_are_those_of_a_worker_for_each_micro_batch(number: int) -> None:
    batches = [
        torch.randn((8, 4, 5, 5), generator=torch.Generator().manual_seed(seed)) + seed for seed in range(number)
    ]
    together, apart = nn.BatchNorm2d(4), [nn.BatchNorm2d(4) for _ in batches]
    for _ in range(3):
        for index, batch in enumerate(batches):
            set_momentum([together], index, number)
            together(batch)
        for norm, batch in zip(apart, batches, strict=True):
            norm(batch)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in apart]).mean(dim=0)
        assert torch.allclose(getattr(together, name), mean, atol=1e-6)


def test_the_average_follows_the_weights(network: CountingNetwork) -> None:
    average = WeightAverage(network, decay=0.9)
    with torch.no_grad():
        network.resnet.fc.bias.fill_(1.0)
    for _ in range(100):
        average.update()
    assert torch.allclose(average.state["resnet.fc.bias"], torch.ones(7), atol=1e-3)
    assert averaging_decay(Recipe(averaging_epochs=0), 100) == 0.0
    assert averaging_decay(Recipe(averaging_epochs=1), 100) == pytest.approx(0.99, abs=1e-3)
