"""8-bit integers between the convolutions of a trained ResNet, for processors that multiply them fast (VNNI).

Post-training quantisation: weights by a scale per output channel, activations by a scale per tensor that covers the range
which they have on training photos (Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342). The stem
and the head stay in float32: few products, and the ones that rounding harms most. The operators are those of oneDNN that
torch.compile lowers a quantised network to, without a compiler and its minutes.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from model.inference import RESIDUAL_STAGES, FusedConvolution, convolutions, fold_normalisation

LEVELS = 255
COVERED = 0.9999
"""Share of a batch's values below the upper end of a range, and above its lower end: the few beyond are cut, else they
would cost all others resolution."""
SAMPLE = 1 << 20
"""So many values of a tensor, evenly chosen, tell its range."""

Range = tuple[float, float]


class Grid(NamedTuple):
    """The numbers that 8 bits stand for: scale * (code - zero_point), code 0..LEVELS."""

    scale: float
    zero_point: int

    @classmethod
    def over(cls, limits: Range) -> Grid:
        """From the lower to the upper limit; 0 lies on it exactly."""
        low, high = limits
        scale = (high - low) / LEVELS or 1.0  # of a tensor that is always 0, any
        return cls(scale, round(-low / scale))


def activation_ranges(network: nn.Module, inputs: Iterable[torch.Tensor]) -> dict[str, Range]:
    """From where to where the activations of a torchvision ResNet go on these inputs, float32 (n, 3, S, S) each, by
    the name of the module that makes them: all that `quantise_network` rounds. Means over the batches."""
    ready = fold_normalisation(copy.deepcopy(network).eval().requires_grad_(False))
    found: dict[str, list[Range]] = defaultdict(list)

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, __: object, outputs: torch.Tensor) -> None:
            values = outputs.flatten()
            values = values[:: max(1, len(values) // SAMPLE)]
            rank = max(1, round(COVERED * len(values)))
            high = float(values.kthvalue(rank).values)
            low = float(values.kthvalue(len(values) + 1 - rank).values)
            found[name].append((min(low, 0.0), max(high, 0.0)))

        module.register_forward_hook(note)

    watch("maxpool", ready.get_submodule("maxpool"))
    for stage in RESIDUAL_STAGES:
        for number, block in ready.get_submodule(stage).named_children():
            name = f"{stage}.{number}"
            watch(name, block)
            shortcut = [] if block.downsample is None else ["downsample.0"]
            for inner in [*convolutions(block)][:-1] + shortcut:
                watch(f"{name}.{inner}", block.get_submodule(inner))
    with torch.inference_mode():
        for batch in inputs:
            ready(batch)
    means = {name: np.mean(limits, axis=0).tolist() for name, limits in found.items()}
    return {name: (low, high) for name, (low, high) in means.items()}


def quantise_network(network: nn.Module, ranges: Mapping[str, Range]) -> nn.Module:
    """A copy of a torchvision ResNet for processors, in evaluation mode: float32 (n, 3, S, S), channels_last, to logits,
    float32. `ranges`: of `activation_ranges`."""
    ready = fold_normalisation(copy.deepcopy(network).eval().requires_grad_(False))
    ready = ready.to(memory_format=torch.channels_last)
    ready.conv1, ready.relu = FusedConvolution(ready.conv1, "relu"), nn.Identity()  # type: ignore[arg-type]
    grid = Grid.over(ranges["maxpool"])
    ready.maxpool = nn.Sequential(ready.maxpool, Quantise(grid))  # type: ignore[arg-type]
    for stage in RESIDUAL_STAGES:
        blocks = []
        for number, block in ready.get_submodule(stage).named_children():
            blocks.append(QuantisedBlock(block, grid, ranges, f"{stage}.{number}"))
            grid = blocks[-1].grid
        setattr(ready, stage, nn.Sequential(*blocks))
    ready.avgpool = DequantisedMean(grid)
    return ready


class Quantise(nn.Module):
    """float32 without negative numbers to uint8 codes."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.factor = 1 / grid.scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.factor).round_().clamp_(0, LEVELS).to(torch.uint8)


class DequantisedMean(nn.Module):
    """uint8 codes (n, C, H, W) without negative numbers to the mean over each channel, float32 (n, C, 1, 1)."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.scale = grid.scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.float().mean((2, 3), keepdim=True) * self.scale


class QuantisedConvolution(nn.Module):
    """A convolution from codes to codes, and what follows it ("relu", or "none")."""

    def __init__(self, convolution: nn.Conv2d, given: Grid, made: Grid, then: str) -> None:
        super().__init__()
        weight, bias = convolution.weight, convolution.bias
        scales = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        codes = (weight / scales.view(-1, 1, 1, 1)).round().to(torch.int8, memory_format=torch.channels_last)
        stride, padding, dilation = (list(convolution.__dict__[name]) for name in ("stride", "padding", "dilation"))
        shape = (stride, padding, dilation, convolution.groups)
        packed = torch.ops.onednn.qconv_prepack(codes, scales, *given, *shape, None)
        zero_points = torch.zeros(len(scales), dtype=torch.int32)
        self.given, self.weights = given, (packed, scales, zero_points)
        self.rest = (bias, *shape, *made, torch.uint8)
        self.then = then

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qconv2d_pointwise(inputs, *self.given, *self.weights, *self.rest, self.then, [], "")

    def add_to(self, kept: torch.Tensor, grid: Grid, inputs: torch.Tensor) -> torch.Tensor:
        """relu(kept + convolution(inputs)), written to `kept`, whose codes are of `grid`."""
        return torch.ops.onednn.qconv2d_pointwise.binary(
            inputs, *self.given, *self.weights, kept, *self.rest, *grid, "sum", 1.0, "relu", [], ""
        )


class QuantisedBlock(nn.Module):
    """A residual block (BasicBlock or Bottleneck) from codes of `given` to codes of its `grid`."""

    def __init__(self, block: nn.Module, given: Grid, ranges: Mapping[str, Range], name: str) -> None:
        super().__init__()
        self.grid = Grid.over(ranges[name])
        self.kept_grid, self.shortcut = given, nn.Identity()
        if block.downsample is not None:
            self.kept_grid = Grid.over(ranges[f"{name}.downsample.0"])
            first: nn.Conv2d = block.downsample[0]  # type: ignore[assignment, index]
            self.shortcut = QuantisedConvolution(first, given, self.kept_grid, "none")  # type: ignore[assignment]
        *inner, (_, last) = convolutions(block).items()
        before = []
        for part, convolution in inner:
            made = Grid.over((0.0, ranges[f"{name}.{part}"][1]))  # cut at zero
            before.append(QuantisedConvolution(convolution, given, made, "relu"))
            given = made
        self.before = nn.Sequential(*before)
        self.last = QuantisedConvolution(last, given, self.grid, "none")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # the shortcut after the chain: it may be `inputs` itself, which `add_to` overwrites
        outputs = self.before(inputs)
        return self.last.add_to(self.shortcut(inputs), self.kept_grid, outputs)
