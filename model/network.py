"""The network: a torchvision ResNet whose head has one output per class 0, 1, …, K ("K or more"), its weights, and what of
it trains."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from model.targets import LEARNED_QUANTITY, LEARNED_SKUS
from schemas.errors import InputError

if TYPE_CHECKING:
    from torchvision.models import ResNet

logger = logging.getLogger(__name__)

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
HEAD = "fc."
STEPS_SEEN = "num_batches_tracked"
"""A normalisation's count of steps. Files of before 2018, torchvision's IMAGENET1K_V1 among them, don't have it, and nothing
here depends on it."""
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")


def build_network(architecture: str, num_classes: int) -> nn.Module:
    """An untrained network in channels_last layout: (batch, 3, S, S) float to (batch, num_classes) logits.

    Convolutions: Kaiming normal (He et al. 2015), fan out. The last normalisation of each residual branch
    starts at zero, so that the network starts as the identity (Goyal et al. 2017).
    """
    from torchvision import models  # here: it costs seconds, and half of the processes that train build no network

    make = getattr(models, architecture)
    network = make(weights=None, num_classes=num_classes, zero_init_residual=True)
    return network.to(memory_format=torch.channels_last)


def load_weights(network: nn.Module, weights: str, architecture: str, file: bytes | None = None) -> None:
    """Fills `network` from `weights`: "none" (nothing happens), a torchvision name such as IMAGENET1K_V2, or the name of
    a file, whose content is `file` (.safetensors, or .pth/.pt read without executing pickles).

    A head of another size is left out (it is learned anew); everything else must fit exactly.
    Raises InputError where they don't load or don't fit.
    """
    if weights == "none":
        return
    state = _download_weights(weights, architecture) if file is None else _parse_weights(file, weights)
    _fill(network, state, f"weights {weights}", architecture)


def _parse_weights(file: bytes, name: str) -> Mapping[str, torch.Tensor]:
    try:
        if name.endswith(".safetensors"):
            return load(file)
        state = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AssertionError,  # of a damaged file in the format before zip archives
        struct.error,
    ) as error:
        raise InputError(f"weights {name}: not a readable weights file ({_first_line(error)})") from error
    except UnpicklingError as error:
        # not in torch's words: they advise weights_only=False, which would execute what the file holds
        raise InputError(
            f"weights {name}: expected plain tensors, found pickled objects, which are not executed, or no weights at "
            "all; give a sound file, or save the state_dict as .safetensors"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise InputError(f"weights {name}: expected a state_dict (names to tensors), found {type(state).__name__}")
    return state


def _download_weights(name: str, architecture: str) -> Mapping[str, torch.Tensor]:
    from torchvision import models

    known = [entry.name for entry in models.get_model_weights(architecture)]
    if name not in known:
        raise InputError(
            f"weights: {name!r} is neither a weights file by its name ({', '.join(WEIGHTS_SUFFIXES)}) nor known to "
            f"torchvision for {architecture} (known: {', '.join(known)}); or 'none' to start from scratch"
        )
    entry = models.get_model_weights(architecture)[name]
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"weights {name}: could not be fetched from {entry.url} ({_first_line(error)}); "
            "download the file elsewhere and pass its path, or use --weights none"
        ) from error


def _fill(network: nn.Module, state: Mapping[str, torch.Tensor], origin: str, architecture: str) -> None:
    own = network.state_dict()
    heads = [name for name in own if name.startswith(HEAD)]
    # a learned weight beside a bias that is drawn anew would be half a head
    head_fits = all(name in state and state[name].shape == own[name].shape for name in heads)
    fitting = {name: value for name, value in state.items() if head_fits or name not in heads}
    missing = [name for name in own if name not in fitting and not name.startswith(HEAD) and STEPS_SEEN not in name]
    unknown = [name for name in fitting if name not in own]
    other_shape = [name for name in fitting if name in own and own[name].shape != fitting[name].shape]
    if missing or unknown or other_shape:
        raise InputError(
            f"{origin}: don't fit {architecture}: {len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(other_shape)} of another shape (first: {(missing + unknown + other_shape)[0]}); "
            "give weights of the same architecture, or --weights none"
        )
    broken = [name for name, value in fitting.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise InputError(f"{origin}: {broken[0]} holds values that are not finite; give sound weights")
    if not head_fits:
        logger.info("%s: the head has another size, or there is none; it is drawn anew", origin)
    network.load_state_dict(fitting, strict=False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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


def resnet_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the state of a CountingNetwork that of its ResNet, which is what a bundle holds."""
    prefix = "resnet."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


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
