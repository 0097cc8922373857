"""A training of 44 photos in this process, without Ray: what tests of the loop and of its parts try them on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch

from model.learner import Learner
from model.micro_batches import MicroBatch, PreparedBatch, TrainingSet
from model.network import CountingNetwork, build_network
from model.profile import Stopwatch
from model.recipe import Recipe
from model.splitting import id_hashes
from model.train_worker import TrainWorker
from model.training import LoopSettings, TrainingLoop
from schemas.bundle import Preprocessing

NUMBERS = np.arange(44)  # 28 train in three batches of eight, 8 select, 8 test
BINS = TrainingSet(
    id_hashes([str(number) for number in NUMBERS]),
    NUMBERS % 4,
    NUMBERS % 3,
    np.where(NUMBERS < 28, "train", np.where(NUMBERS < 36, "selection", "test")),
)
PHOTOS = np.random.default_rng(0).integers(0, 256, (44, 32, 32, 3), dtype=np.uint8)


def tiny_recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {"architecture": "resnet18", "image_size": 32, "top_class": 3, "max_epochs": 2}
    settings |= {"batch_size": 8, "micro_batch_size": 4, "mixed_precision": False}
    return Recipe(**(settings | changes))


def tiny_network() -> CountingNetwork:
    torch.manual_seed(0)
    return CountingNetwork(build_network("resnet18", 4), auxiliary=True)


def make_learner(*, num_workers: int = 1, **changes: Any) -> Learner:
    """That of the first of so many workers."""
    network, cpu = tiny_network(), torch.device("cpu")
    worker = TrainWorker(cpu, 0, num_workers, mixed=False, preprocessing=Preprocessing(image_size=32))
    recipe = tiny_recipe(**changes)
    return Learner(network, network, bins=BINS, recipe=recipe, worker=worker, watch=Stopwatch(cpu))


def make_loop(
    monkeypatch: pytest.MonkeyPatch,
    *,
    checkpoint: Path | None = None,
    on_unhealthy: Literal["warn", "stop"] = "warn",
    device: str = "cpu",
    **changes: Any,
) -> TrainingLoop:
    """The loop of the only worker, which reports to nobody; it goes on from the `checkpoint`'s folder."""
    recipe, state = tiny_recipe(**changes), tiny_network().state_dict()
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    kept = checkpoint and SimpleNamespace(as_directory=lambda: nullcontext(str(checkpoint)), path=str(checkpoint))
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: kept)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(device))
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda network, **given: network)
    monkeypatch.setattr(TrainingLoop, "report", lambda loop, entry: None)

    def read(plan: Sequence[MicroBatch]) -> Iterator[PreparedBatch]:
        return (PreparedBatch(PHOTOS[batch.rows], {}) for batch in plan)

    threads = torch.get_num_threads()
    return TrainingLoop(
        LoopSettings(recipe, lambda: (BINS, state, read), threads, on_unhealthy=on_unhealthy, conclude=())
    )


def copy_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}
