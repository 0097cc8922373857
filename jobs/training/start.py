"""Where a training starts: weights that are drawn, or those of a file and what its bundle has learned from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import torch

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.bundles import local_bundle
from jobs.platform.uris import absolute, join
from model.bundle_files import (
    INFO_FILE,
    TRAINING_IMAGES_SCHEMA,
    WEIGHTS_FILE,
    learned_from,
    read_bundle_info,
    read_training_images,
    read_weights,
)
from model.network import WEIGHTS_SUFFIXES, CountingNetwork, build_network, initialise, load_weights
from schemas.errors import InputError


@dataclass(frozen=True)
class Start:
    """Read once: a training takes hours, and a search starts many times from it."""

    state: dict[str, torch.Tensor]
    """Of CountingNetwork before the first step."""
    weights: str
    """What tells them from others, wherever they lie: the SHA-256 of the file, or what --weights says."""
    bundle_id: str | None
    """Of the bundle that the file lies in."""
    seen: pa.Table
    """The photos that this bundle was trained on or chosen by, of TRAINING_IMAGES_SCHEMA."""


def read_start(config: TrainConfig) -> Start:
    """Raises InputError where the weights are not there, don't load or don't fit."""
    recipe = config.recipe()
    file, bundle_id, seen = None, None, TRAINING_IMAGES_SCHEMA.empty_table()
    if recipe.weights.endswith(WEIGHTS_SUFFIXES):
        uri = absolute(recipe.weights)
        folder, _, name = uri.rpartition("/")
        if folder == absolute(config.bundle_uri) and name == WEIGHTS_FILE:
            raise InputError(
                f"weights {recipe.weights}: lies where the new bundle is written (--bundle-uri), which would replace it; "
                "choose another --bundle-uri"
            )
        if name == WEIGHTS_FILE and storage.exists(join(folder, INFO_FILE)):
            with local_bundle(folder) as local:
                info = read_bundle_info(local)
                file, images = read_weights(local, info), read_training_images(local, info)
            bundle_id, seen = info.bundle_id, learned_from(images)
        else:
            try:
                file = storage.read_bytes(uri)
            except FileNotFoundError as error:
                raise InputError(
                    f"weights: no file {recipe.weights}; give a .safetensors or .pth file, a torchvision name, or 'none'"
                ) from error
    generator_state = torch.get_rng_state()
    torch.manual_seed(recipe.seed)
    resnet = build_network(recipe.architecture, recipe.num_classes)
    network = CountingNetwork(resnet, auxiliary=recipe.auxiliary)
    initialise(network, recipe.initialisation)
    load_weights(resnet, recipe.weights, recipe.architecture, file)
    torch.set_rng_state(generator_state)
    return Start(
        state={name: value.contiguous() for name, value in network.state_dict().items()},
        weights=recipe.weights if file is None else hashlib.sha256(file).hexdigest(),
        bundle_id=bundle_id,
        seen=seen,
    )
