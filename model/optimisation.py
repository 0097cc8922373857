"""The parts of a training step: initial weights, what trains, optimiser, learning rate, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from model.recipe import Recipe
from model.targets import LEARNED_QUANTITY, LEARNED_SKUS

if TYPE_CHECKING:
    from torchvision.models import ResNet

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
MAX_GRADIENT_NORM = 5.0
NORMALISATION_MOMENTUM = 0.1
"""How far the running statistics of batch normalisation move in a step, torch's own."""


class CountingNetwork(nn.Module):
    """A ResNet and, beside its head, outputs for the exact quantity and the number of SKUs that only training uses."""

    def __init__(self, resnet: ResNet, *, auxiliary: bool) -> None:
        super().__init__()
        self.resnet = resnet
        self.auxiliary = (
            nn.Linear(resnet.fc.in_features, LEARNED_QUANTITY + 1 + LEARNED_SKUS + 1) if auxiliary else None
        )

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, 3, S, S) to logits (batch, K + 1) and auxiliary logits (batch, 16 + 9) or None."""
        r = self.resnet
        x = r.maxpool(r.relu(r.bn1(r.conv1(inputs))))
        x = r.layer4(r.layer3(r.layer2(r.layer1(x))))
        features = torch.flatten(r.avgpool(x), 1).float()
        # the heads stay in float32, as in the audit: a few thousand products, and the probabilities' tails hang on them
        with torch.autocast(features.device.type, enabled=False):
            return r.fc(features), self.auxiliary(features) if self.auxiliary is not None else None


INITIALISERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kaiming-normal": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "kaiming-uniform": lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"),
    "xavier-normal": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,
}


def initialise(network: nn.Module, distribution: str) -> None:
    """Draws the convolutions' weights from `distribution`, from torch's global generator (seed it before)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # drawn in the standard layout: the same draw in any, and orthogonal_ can't write into channels_last
            drawn = torch.empty(module.weight.shape)
            INITIALISERS[distribution](drawn)
            with torch.no_grad():
                module.weight.copy_(drawn)


def stage_of(name: str) -> str:
    """The stage of a parameter or module of CountingNetwork, by its name."""
    part = name.removeprefix("resnet.").split(".")[0]
    if part in ("conv1", "bn1"):
        return "stem"
    return part if part in STAGES else "head"


def trains(name: str, unfreeze: str) -> bool:
    """Whether a parameter or module of CountingNetwork, by its name, lies in the stage `unfreeze` or behind it."""
    return unfreeze == "all" or STAGES.index(stage_of(name)) >= STAGES.index(unfreeze)


def freeze(network: CountingNetwork, unfreeze: str) -> None:
    """Keeps what lies before the stage `unfreeze` as it is: no gradients."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains(name, unfreeze))


def set_training_mode(network: CountingNetwork, unfreeze: str) -> None:
    """Training mode where it trains; the normalisation of frozen stages keeps its statistics."""
    network.train()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not trains(name, unfreeze):
            module.eval()


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
        """Goes on from an average that was kept."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.num_updates = num_updates


def averaging_decay(recipe: Recipe, steps_per_epoch: int) -> float:
    """Decay per step of a time constant given in epochs; 0 (the average is the last weights) where it is off."""
    if recipe.averaging_epochs == 0:
        return 0.0
    return math.exp(-1 / (recipe.averaging_epochs * steps_per_epoch))
