"""What the health rules are told of a network: its weights before the first step, its gradients, its silent channels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn


def initial_weight_std(network: nn.Module) -> dict[str, float]:
    """`Observations.initial_weight_std` of a network before its first step."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            found[name] = float(module.weight.detach().std()) / math.sqrt(2 / fan_out)
    return found


def layer_ratios(network: nn.Module) -> dict[str, float]:
    """Norm of the gradient over norm of the weights, of every convolution and linear layer that trains."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
            weight = float(module.weight.detach().norm())
            found[name] = float(module.weight.grad.norm()) / max(weight, 1e-12)
    return found


class ActivationWatch:
    """Hooks on every ReLU; while `watching`, the share of its channels that are zero everywhere is kept."""

    def __init__(self, network: nn.Module) -> None:
        self.watching = False
        self.dead: dict[str, float] = {}
        for name, module in network.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
        def look(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if self.watching:
                silent = (output.detach() <= 0).all(dim=3).all(dim=2).all(dim=0)
                # a block's ReLU runs several times a pass: its worst moment counts
                self.dead[name] = max(self.dead.get(name, 0.0), float(silent.float().mean()))

        return look

    def take(self) -> dict[str, float]:
        """The shares since the last call, by the ReLU's name."""
        found, self.dead = self.dead, {}
        return found
