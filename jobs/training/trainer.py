"""From checked bins to a trained network, by Ray Train: what `jobs.train` and `jobs.tune` share."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    ENV_VARS_TO_PROPAGATE,
)
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from safetensors.torch import load, save

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.command import message
from jobs.platform.parquet import read_table, write_table
from jobs.platform.uris import absolute, join
from jobs.training.checkpoints import drop_damaged_checkpoints, ray_storage
from jobs.training.labelled_bins import fingerprint
from jobs.training.photos import PhotoStream
from jobs.training.splits import training_set
from jobs.training.start import Start
from jobs.training.workers import plan_workers, worker_environment
from model.learner import TOO_LARGE
from model.micro_batches import TrainingSet
from model.progress import NOT_FINITE, UNHEALTHY
from model.training import STATE_FILE, LoopSettings, train_loop_per_worker
from schemas.errors import GateError

logger = logging.getLogger(__name__)

BINS_FILE = "bins.parquet"
INITIAL_FILE = "initial.safetensors"
FINDINGS_FILE = "findings.json"


def load_inputs(initial_uri: str, photos: PhotoStream) -> tuple[TrainingSet, dict[str, torch.Tensor], PhotoStream]:
    """What a worker trains on, read from the run's own folder."""
    return training_set(read_table(photos.bins_uri)), load(storage.read_bytes(initial_uri)), photos


@dataclass(frozen=True)
class Trained:
    """A finished training: see `train_loop_per_worker` for `outcome`."""

    outcome: dict[str, Any]
    state: dict[str, torch.Tensor]
    """Of CountingNetwork, at the best epoch."""
    run_uri: str


class TrainingStoppedError(GateError):
    """The training came to an end of its own that is worth nothing: the same settings would come to it again."""

    def __init__(self, reason: str, findings: list[dict[str, Any]], run_uri: str) -> None:
        seen = "".join(
            f"\n  {finding['rule']} in epoch {finding['epoch']}: {finding['message']}" for finding in findings
        )
        remedy = "change the recipe as the findings say"
        if reason.startswith(UNHEALTHY):
            remedy += ", or go on from the last checkpoint by the same command with --on-unhealthy warn"
        super().__init__(
            f"training was stopped: {reason}. No bundle is written; the checkpoints lie in {run_uri}, the findings with "
            f"their evidence in its {FINDINGS_FILE}. What to do: {remedy}. Findings:{seen or ' none'}"
        )
        self.reason = reason


def run_name(bins: pa.Table, config: TrainConfig, start: Start) -> str:
    """The same for the same data, settings and weights file, so that the same command continues its own run. Weights
    that are drawn follow from the settings, and their last bits also from the machine: another node must find the run."""
    settings = config.recipe().model_copy(update={"weights": start.weights}).model_dump_json()
    settings += f"|{config.selection_share}|{config.test_share}|{config.split_seed}"
    return hashlib.sha256(f"{fingerprint(bins)}|{settings}".encode()).hexdigest()[:16]


def train_network(
    bins: pa.Table,
    config: TrainConfig,
    start: Start,
    training_uri: str,
    *,
    callbacks: list[Any] | None = None,
    num_runs: int = 1,
    conclude: tuple[str, ...] = ("selection", "test"),
) -> Trained:
    """Trains on `bins` (with image_sha256 and split) from `start`, continuing the run of the same data and settings if there is one.

    `callbacks` are Ray Train's (`jobs.tune` reports to Ray Tune through one), `num_runs` trainings share the cluster,
    and `conclude` names the splits whose logits are wanted. Raises InputError for settings that the cluster can't
    hold, GateError for a training that failed, and TrainingStoppedError for one that was stopped as unhealthy.
    """
    recipe = config.recipe()
    scaling, threads = plan_workers(config, num_runs)
    name = run_name(bins, config, start)
    run_uri = join(absolute(training_uri), name)
    bins_uri, initial_uri = (join(run_uri, "inputs", file) for file in (BINS_FILE, INITIAL_FILE))
    # anew each time: what a power cut left of them stands there whatever it holds
    write_table(bins_uri, bins)
    storage.write_bytes(initial_uri, save(start.state))
    drop_damaged_checkpoints(run_uri)
    photos = PhotoStream(bins_uri, recipe.seed, recipe.augmentation, config.anonymous, config.num_workers * num_runs)
    settings = LoopSettings(
        recipe=recipe,
        load=partial(load_inputs, initial_uri, photos),
        threads=threads,
        on_unhealthy=config.on_unhealthy,
        trace_steps=config.trace_steps,
        conclude=conclude,
    )
    path, filesystem = ray_storage(absolute(training_uri))
    trainer = TorchTrainer(
        train_loop_per_worker,  # type: ignore[arg-type]
        train_loop_config={"settings": settings},
        scaling_config=scaling,
        run_config=RunConfig(  # type: ignore[arg-type]
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks or [],
            # its own lines say what a person wants to know; Ray's would say it again, longer
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": worker_environment(threads)},
        ),
    )
    try:
        with controller_environment(), _own_interrupt():
            result = trainer.fit()
    except TrainingFailedError as error:
        reason = _reason(error)
        goes_on = "" if TOO_LARGE in reason else f"; the same command continues from {run_uri}"
        raise GateError(f"training failed: {reason}{goes_on}") from error
    outcome = result.return_value  # type: ignore[attr-defined]
    if result.checkpoint is None or outcome is None:
        raise GateError(f"training ended without a checkpoint; look at {run_uri}")
    stopped = outcome["stopped"] or ""
    if stopped.startswith((UNHEALTHY, NOT_FINITE)):
        storage.write_json(join(run_uri, FINDINGS_FILE), outcome["findings"])
        raise TrainingStoppedError(stopped, outcome["findings"], run_uri)
    with result.checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
    return Trained(outcome=outcome, state=state["best_state"], run_uri=run_uri)


WATCHDOG = PlacementGroupCleaner.__module__
"""Asks a dashboard every second whether the controller lives. A local cluster has none, and ends with its command anyway:
a warning a second would bury the training's progress."""

NOBODY = "http://127.0.0.1:9"
"""The port that was set aside for discarding: a connection is refused at once."""


@contextmanager
def controller_environment() -> Iterator[None]:
    """Tells Ray Train's watchdog which cluster is its own, and that nobody asks for notice of nodes that are to go: that
    is a process of its own, which takes seconds to start beside every training.

    The watchdog asks Ray's state API every second whether the controller lives. Where a second Ray runs on the machine,
    that asks the wrong one, is told of no such controller, and removes the workers of a sound training. Even a cluster
    without a dashboard says that it has one at port 8265, where the other one's may be (both seen with Ray 2.60); the
    watchdog of a cluster that ends with this process has nothing to watch and is sent to nobody.
    """
    settings = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0"}
    if not os.environ.get("RAY_ADDRESS"):
        settings["RAY_API_SERVER_ADDRESS"] = NOBODY
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    ENV_VARS_TO_PROPAGATE.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ray Train leaves its handler of Ctrl-C behind, which ignores the first two once its controller has ended."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # it sets none in a trial's thread
            signal.signal(signal.SIGINT, before)


def _reason(error: TrainingFailedError) -> str:
    """The last line of the innermost error of the first worker that failed. Ray Train's own text is its traceback, cut in
    the middle."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    failure: BaseException = next(iter(failures.values()), error)
    if isinstance(failure, UserExceptionWithTraceback):
        failure = failure._base_exc
    lines = [line for line in message(failure).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(failure).__name__
