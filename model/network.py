"""The network: a torchvision ResNet whose head has one output per class 0, 1, …, K ("K or more")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from schemas.errors import InputError

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
HEAD = "fc."


def build_network(architecture: str, num_classes: int) -> nn.Module:
    """An untrained network in channels_last layout: (batch, 3, S, S) float to (batch, num_classes) logits.

    Convolutions: Kaiming normal (He et al. 2015), fan out. The last normalisation of each residual branch
    starts at zero, so that the network starts as the identity (Goyal et al. 2017). Raises InputError for
    an architecture that isn't known.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {architecture!r}")
    from torchvision import models  # here: it costs seconds, and half of the processes that train build no network

    make = getattr(models, architecture)
    network = make(weights=None, num_classes=num_classes, zero_init_residual=True)
    return network.to(memory_format=torch.channels_last)


def load_weights(network: nn.Module, weights: str, architecture: str) -> None:
    """Fills `network` from `weights`: "none" (nothing happens), a torchvision name such as IMAGENET1K_V2,
    or a local file (.safetensors, or .pth/.pt read without executing pickles).

    A head of another size is left out (it is learned anew); everything else must fit exactly.
    Raises InputError where they don't load or don't fit.
    """
    if weights == "none":
        return
    path = Path(weights)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        state = _read_weights_file(path)
    else:
        state = _download_weights(weights, architecture)
    _fill(network, state, f"weights {weights}", architecture)


def _read_weights_file(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"weights: no file {path}; give a .safetensors or .pth file, a torchvision name, or 'none'")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"weights {path}: not a readable weights file ({_first_line(error)})") from error
    except UnpicklingError as error:
        raise InputError(
            f"weights {path}: expected plain tensors, found pickled objects, which are not executed "
            f"({_first_line(error)}); save the state_dict as .safetensors"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"weights {path}: expected a state_dict (names to tensors), found {type(state).__name__}")
    return state


def _download_weights(name: str, architecture: str) -> Mapping[str, torch.Tensor]:
    from torchvision import models

    known = [entry.name for entry in models.get_model_weights(architecture)]
    if name not in known:
        raise InputError(
            f"weights: {name!r} is neither a file nor known to torchvision for {architecture} "
            f"(known: {', '.join(known)}); or 'none' to start from scratch"
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
    fitting = {
        name: value
        for name, value in state.items()
        if not (name.startswith(HEAD) and name in own and own[name].shape != value.shape)
    }
    missing = [name for name in own if name not in fitting and not name.startswith(HEAD)]
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
    network.load_state_dict(fitting, strict=False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
