"""The parts of a training step: optimiser, learning rate, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from model.recipe import Recipe

MAX_GRADIENT_NORM = 5.0
NORMALISATION_MOMENTUM = 0.1
"""How far the running statistics of batch normalisation move in a step, torch's own."""


def set_momentum(normalisations: Sequence[nn.BatchNorm2d], index: int, number: int) -> None:
    """Makes the running statistics move, over the `number` micro-batches that a worker has of a batch (this is the one at
    `index`), NORMALISATION_MOMENTUM of the way to the mean of them all. One after the other they would move further on
    one worker than on two that have one each, and the same batches would end in other statistics."""
    share = NORMALISATION_MOMENTUM / number
    for normalisation in normalisations:
        normalisation.momentum = share / (1 - share * (number - 1 - index))


def make_optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum over what is not frozen; biases and normalisation, of one dimension, do not decay."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=True)


def learning_rate_at(step: int, num_steps: int, recipe: Recipe) -> float:
    """Learning rate of a step (from 0): a rise over a quarter (one-cycle; Smith 2018) or 5 % (cosine) of all steps,
    then half a cosine to zero."""
    warmup = max(1, round(num_steps * (0.25 if recipe.schedule == "one-cycle" else 0.05)))
    if step < warmup:
        low = recipe.learning_rate / 25
        rise = (
            (1 - math.cos(math.pi * (step + 1) / warmup)) / 2 if recipe.schedule == "one-cycle" else (step + 1) / warmup
        )
        return low + (recipe.learning_rate - low) * rise
    done = (step - warmup) / max(1, num_steps - warmup)
    return recipe.learning_rate * (1 + math.cos(math.pi * min(1.0, done))) / 2


class WeightAverage:
    """Exponential moving average of weights and normalisation statistics (Polyak and Juditsky 1992, as in Tarvainen 2017)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        # listed once: asking for it takes a millisecond, in every step
        current = network.state_dict()
        self.state = {name: value.detach().clone() for name, value in current.items()}
        floats = [name for name, value in current.items() if value.is_floating_point()]
        counters = [name for name, value in current.items() if not value.is_floating_point()]
        self._floats, self._counters = (
            ([self.state[name] for name in names], [current[name] for name in names]) for names in (floats, counters)
        )

    @torch.no_grad()
    def update(self) -> None:
        """Follows the network's tensors, which must be those of the start: changed in place only."""
        self.num_updates += 1
        # early on the average follows closely, as the first weights are worth nothing
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages, values = self._floats
        torch._foreach_lerp_(averages, values, 1 - decay)
        torch._foreach_copy_(*self._counters)

    def load(self, state: dict[str, torch.Tensor], *, num_updates: int) -> None:
        """Goes on from the `state` of an average that was kept, after `num_updates`."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.num_updates = num_updates


def averaging_decay(recipe: Recipe, steps_per_epoch: int) -> float:
    """Decay per step of a time constant given in epochs; 0 (the average is the last weights) where it is off."""
    if recipe.averaging_epochs == 0:
        return 0.0
    return math.exp(-1 / (recipe.averaging_epochs * steps_per_epoch))
