"""A trained ResNet made ready for use: the same answers, up to rounding in the last bits, for less work.

On processors normalisation is folded into the convolutions, and the residual sums and the cuts at zero happen inside
oneDNN's convolutions, while their results are still in cache; these are the operators that torch.compile fuses to,
without a compiler and its minutes. On GPUs cuDNN would add a folded convolution's bias in a pass of its own, which is
slower than the normalisation (`tests/benchmarks/network_steps.py`): the network stays as it was trained.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from torchvision.models import ResNet

RESIDUAL_STAGES = ("layer1", "layer2", "layer3", "layer4")
"""The parts of a torchvision ResNet that are made of residual blocks."""


def prepare_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of a torchvision ResNet on `device`, in evaluation mode: (n, 3, S, S) of `dtype`, channels_last, to
    logits, float32. The head stays in float32: a few thousand products, and the probabilities' tails hang on them."""
    ready = copy.deepcopy(network).eval().requires_grad_(False)
    if device.type != "cpu":
        for module in ready.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype)  # autocast, which keeps only what is still learned, would round it anew in every batch
        return MixedNetwork(ready.to(device, memory_format=torch.channels_last), dtype)  # type: ignore[call-overload]
    ready = fold_normalisation(ready).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ready.fc.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return fuse_blocks(ready) if can_fuse(dtype) else ready


class MixedNetwork(nn.Module):
    """A ResNet whose convolutions are computed in `dtype` by autocast, as in its training."""

    def __init__(self, network: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, network.fc = network.fc, nn.Identity()
        self.body, self.dtype = network, dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.body(inputs)
        return self.head(features.float())


def fold_normalisation(network: nn.Module) -> nn.Module:
    """Each convolution with the BatchNorm behind it as one convolution, exact in real arithmetic. In place."""
    for module in network.modules():
        children = dict(module.named_children())
        for first, second in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            convolution, norm = children.get(first), children.get(second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return network


def can_fuse(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes this type on this processor; elsewhere PyTorch's own convolutions stay."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fuse_blocks(network: nn.Module) -> nn.Module:
    """Replaces the stem and the residual blocks of a ResNet without normalisation by fused ones. In place."""
    network.conv1, network.relu = FusedConvolution(network.conv1, "relu"), nn.Identity()  # type: ignore[arg-type]
    for name in RESIDUAL_STAGES:
        blocks: nn.Module = getattr(network, name)
        setattr(network, name, nn.Sequential(*(FusedBlock(block) for block in blocks.children())))
    return network


def convolutions(block: nn.Module) -> dict[str, nn.Conv2d]:
    """The chain of a residual block, by name: two of a BasicBlock, three of a Bottleneck."""
    return {name: getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)}


class FusedConvolution(nn.Module):
    """A convolution and what follows it ("relu", or "none")."""

    def __init__(self, convolution: nn.Conv2d, then: str) -> None:
        super().__init__()
        self.weight, self.bias, self.then = convolution.weight, convolution.bias, then
        self.shape = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise(inputs, self.weight, self.bias, *self.shape, self.then, [], None)

    def add_to(self, kept: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """relu(kept + convolution(inputs)), written to `kept`."""
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            kept, inputs, self.weight, self.bias, *self.shape, "add", 1.0, "relu", [], None
        )


class FusedBlock(nn.Module):
    """A residual block (BasicBlock or Bottleneck) of fused convolutions."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        chain = list(convolutions(block).values())
        self.before = nn.Sequential(*(FusedConvolution(convolution, "relu") for convolution in chain[:-1]))
        self.last = FusedConvolution(chain[-1], "none")
        shortcut = getattr(block, "downsample", None)
        self.shortcut = nn.Identity() if shortcut is None else FusedConvolution(shortcut[0], "none")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # the shortcut after the chain: it may be `inputs` itself, which `add_to` overwrites
        outputs = self.before(inputs)
        return self.last.add_to(self.shortcut(inputs), outputs)
