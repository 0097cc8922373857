"""What a search may choose, and the training that a choice means."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from ray import tune

from jobs.config.train import TrainConfig
from jobs.config.tune import TuneConfig

EPOCHS = (2, 6)
SETTINGS = {
    "learning_rate": pa.float64(),
    "weight_decay": pa.float64(),
    "batch_size": pa.int32(),
    "max_epochs": pa.int32(),
    "image_size": pa.int32(),
    "augmentation": pa.float64(),
    "targets": pa.string(),
    "unfreeze": pa.string(),
}
"""The settings that some space searches, and their types in the table of trials."""


def search_space(config: TuneConfig) -> dict[str, Any]:
    """Ray Tune's domains by setting."""
    if config.space == "seed":
        return {
            "learning_rate": tune.loguniform(1e-3, 1e-1),
            "batch_size": tune.choice(list(config.batch_sizes)),
            "max_epochs": tune.randint(EPOCHS[0], min(EPOCHS[1], config.max_epochs) + 1),
        }
    space = {
        "learning_rate": tune.loguniform(1e-5, 1e-1),
        "weight_decay": tune.loguniform(1e-4, 0.3),
        "augmentation": tune.uniform(0, 1),
        "targets": tune.choice(["ordinal", "classes"]),
        "image_size": tune.choice(image_sizes(config.image_size)),
    }
    if not config.from_scratch:  # without weights there is nothing to keep
        space["unfreeze"] = tune.choice(["all", "layer2", "layer3", "layer4", "head"])
    return space


def image_sizes(largest: int) -> list[int]:
    """Half, three quarters (of 16 pixels a step) and all of the largest side."""
    return sorted({max(32, round(largest * share / 16) * 16) for share in (0.5, 0.75)} | {largest})


def trial_config(config: TuneConfig, parameters: dict[str, Any]) -> TrainConfig:
    """The training of one trial."""
    return TrainConfig(**{name: getattr(config, name) for name in TrainConfig.model_fields} | parameters)


def batches(config: TuneConfig) -> list[TrainConfig]:
    """A training for each batch size of the space, the smallest first."""
    return [trial_config(config, {"batch_size": size}) for size in config.batch_sizes]
