"""The training loop that runs on every Ray Train worker, for `jobs.train` and `jobs.tune` alike."""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.v2._internal.execution.context import logger as report_logger

from model.evaluation import Evaluation, nll_of_guessing, selection_figures
from model.health import NEVER_STOP, SAMPLE_EVERY, Observations, check_health, consequence
from model.learner import Learner
from model.metrics import scope_name
from model.micro_batches import MicroBatch, PhotoSource, PreparedBatch, TrainingSet, plan_epoch
from model.network import CountingNetwork, build_network, freeze, set_training_mode
from model.profile import Stopwatch, profile_steps
from model.progress import TrainingProgress
from model.recipe import Recipe
from model.scoring import keep_float32
from model.targets import classes_of
from model.train_worker import TrainWorker, gains_in_bfloat16
from model.watching import initial_weight_std
from schemas.bundle import Preprocessing

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class LoopSettings:
    """What a worker is given. `load` is called once on it, so that arrays and weights don't travel with the settings."""

    recipe: Recipe
    load: Callable[[], tuple[TrainingSet, dict[str, torch.Tensor], PhotoSource]]
    """The training set, the initial state of CountingNetwork, and the photos."""
    threads: int
    """Of each CPU worker."""
    on_unhealthy: str = "warn"
    trace_steps: int = 0
    conclude: tuple[str, ...] = ("selection", "test")
    """Splits whose logits are returned. The trials of a search return none: the test bins are not for choosing."""


def train_loop_per_worker(loop_config: dict[str, Any]) -> dict[str, Any] | None:
    """Trains, and returns on rank 0 what the bundle and its report need (None on the others):

    `history` (a dict per epoch), `step_losses`, `gradient_norms`, `findings`, `profile` (seconds by phase), `best_epoch`,
    `stopped` (why, or None), `precision` (of the convolutions), `trace` (gzipped, of the torch profiler, or None), `rows` and
    `logits` by split (those of `LoopSettings.conclude`; of the best epoch, with the mirror image if the recipe says so),
    `activation_ranges` (by layer, of the best epoch; None where nothing is concluded). The weights are in the last
    checkpoint: `best_state`.

    loop_config: {"settings": LoopSettings}.
    """
    # it would write each epoch's metrics once more, on a line of 500 characters
    report_logger.setLevel(logging.WARNING)
    return TrainingLoop(loop_config["settings"]).run()


class TrainingLoop:
    """One worker's training, from `LoopSettings` to what `train_loop_per_worker` returns: a `Learner` takes the steps of an
    epoch, an `Evaluation` asks the average of its weights about the selection, `TrainingProgress` and the health rules say
    whether another epoch follows, and a checkpoint keeps all of it."""

    def __init__(self, settings: LoopSettings) -> None:
        self.settings, self.recipe = settings, settings.recipe
        recipe = self.recipe
        context = ray.train.get_context()
        device = ray.train.torch.get_device()
        mixed = recipe.mixed_precision and gains_in_bfloat16(device)
        if not mixed:
            keep_float32()
        self.worker = TrainWorker(
            device,
            context.get_world_rank(),
            context.get_world_size(),
            mixed=mixed,
            preprocessing=Preprocessing(image_size=recipe.image_size),
        )
        if device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self.watch = Stopwatch(device)
        self.bins, initial_state, self.photos = settings.load()
        network = CountingNetwork(build_network(recipe.architecture, recipe.num_classes), auxiliary=recipe.auxiliary)
        network.load_state_dict(initial_state)
        freeze(network, recipe.unfreeze)
        network.to(device).to(memory_format=torch.channels_last)
        # every worker sums its own statistics; they are averaged before each evaluation
        distributed = ray.train.torch.prepare_model(
            network, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        self.learner = Learner(
            network, distributed, bins=self.bins, recipe=recipe, worker=self.worker, watch=self.watch
        )
        labels = classes_of(self.bins.expected_qty, recipe.top_class)
        train, self.selection_labels = (labels[self.bins.rows_of(split)] for split in ("train", "selection"))
        self.seen = Observations(
            num_classes=recipe.num_classes,
            label_histogram=np.bincount(train, minlength=recipe.num_classes).tolist(),
            initial_weight_std=initial_weight_std(network),
            from_scratch=recipe.from_scratch,
            guess_nll=nll_of_guessing(train, self.selection_labels, recipe.num_classes),
        )
        self.evaluation = Evaluation(network, self.bins, self.photos, recipe, self.worker)
        self.progress = TrainingProgress(recipe)
        self.trace: bytes | None = None

    def run(self) -> dict[str, Any] | None:
        """Trains to the end, from the start or the last checkpoint; returns what `train_loop_per_worker` does."""
        self.resume()
        self.seen.first_epoch = len(self.progress.history)
        epochs = range(self.seen.first_epoch, self.recipe.max_epochs)
        if self.progress.stopped is None and epochs:
            if self.worker.device.type == "cuda":
                self.learner.rehearse()
            self._train(epochs)
        elif self.settings.trace_steps and self.worker.rank == 0:
            print("no trace: the training had ended before this try", flush=True)
        return self._conclude()

    def _train(self, epochs: range) -> None:
        rank, num_workers = self.worker.rank, self.worker.num_workers
        plan = [
            batch
            for epoch in epochs
            for batch in plan_epoch(self.bins, self.recipe, epoch, worker=rank, num_workers=num_workers)
        ]
        stream: Iterator[tuple[MicroBatch, PreparedBatch]] = zip(plan, self.photos(plan), strict=True)
        # a run's first photos wait for Ray's workers to start: no part of an epoch, and no stall
        with self.watch.phase("wait for photos"):
            stream = itertools.chain([next(stream)], stream)
        for epoch in epochs:
            entry = self._train_epoch(epoch, stream)
            self._evaluate_epoch(entry)
            self.check_health()
            with self.watch.phase("checkpoint"):
                self.report(entry)
            # where it stopped in the middle of an epoch, so does the stream: nothing may be trained from it any more
            if self.progress.stopped is not None:
                return

    def _train_epoch(self, epoch: int, stream: Iterator[tuple[MicroBatch, PreparedBatch]]) -> dict[str, float]:
        """Takes the steps of an epoch and tells the health rules of them; returns the start of its entry of the history."""
        recipe, seen, learner = self.recipe, self.seen, self.learner
        set_training_mode(learner.network, recipe.unfreeze)
        first = epoch * learner.steps_per_epoch
        figures: list[torch.Tensor] = []
        started, wait_before = time.perf_counter(), self.watch.seconds["wait for photos"]
        with self._profiler(epoch) as profiler:
            for step in range(first, first + learner.steps_per_epoch):
                figures.append(learner.step(step, stream, seen))
                if profiler is not None:
                    profiler.step()
                # the norm is of the averaged gradients, so all workers see the same and leave together
                if step % SAMPLE_EVERY == 0 and not bool(torch.isfinite(figures[-1][1])):
                    self.progress.diverge()
                    break
        summed = self.worker.sum(torch.stack(figures)).cpu()
        elapsed = time.perf_counter() - started  # by now a GPU is through with the epoch
        seen.step_losses += summed[:, 0].tolist()
        seen.gradient_norms += summed[:, 1].tolist()
        seen.train_losses.append(float(summed[:, 0].mean()))
        seen.image_sizes.append(recipe.image_size_of(epoch))
        seen.settled_epochs += recipe.is_settled(epoch)
        # of the worker that waited longest: the others wait for it, inside of their backward pass
        waited = torch.zeros(self.worker.num_workers, device=self.worker.device)
        waited[self.worker.rank] = (self.watch.seconds["wait for photos"] - wait_before) / max(elapsed, 1e-9)
        seen.wait_shares.append(float(self.worker.sum(waited).max()))
        return {
            "epoch": epoch,
            "image_size": seen.image_sizes[-1],
            "learning_rate": learner.optimiser.param_groups[0]["lr"],
            "train_loss": seen.train_losses[-1],
            "seconds": elapsed,
            "wait_share": seen.wait_shares[-1],
        }

    def _evaluate_epoch(self, entry: dict[str, float]) -> None:
        """Completes the entry of an epoch by what the average of the weights now knows of the selection, and adds it."""
        with self.watch.phase("validation"):
            self.learner.average_statistics()
            logits = self.evaluation.logits(
                self.learner.average.state, "selection", image_size=int(entry["image_size"]), mirror=False
            )
        if self.progress.stopped or not math.isfinite(entry["train_loss"]):
            entry["selection_nll"] = math.inf
        else:
            entry |= selection_figures(logits, self.selection_labels, self.seen.label_histogram)
        self.seen.selection_nlls.append(entry["selection_nll"])
        self.progress.add_epoch(entry, self.learner.average.state)

    def check_health(self) -> None:
        """Asks the health rules after an epoch, prints what they find for the first time and stops where that is asked for."""
        findings = check_health(self.seen)
        new = self.progress.add_findings(findings)
        if self.worker.rank == 0:
            for finding in new:
                print(f"unhealthy in epoch {finding.epoch}: {finding.rule}: {finding.message}", flush=True)
        if self.settings.on_unhealthy != "stop":
            return
        rules = sorted({finding.rule for finding in findings} - NEVER_STOP)
        what = consequence(rules, has_best_epoch=self.progress.best_epoch >= 0)
        if self.worker.agreed(what == "stop"):
            self.progress.stop_unhealthy(rules)
        elif self.worker.agreed(what == "end"):
            self.progress.end(rules)

    def _profiler(self, epoch: int) -> Any:
        """Of the first epoch of this process, on rank 0, where a trace is asked for and can be had; else of nothing."""
        if not self.settings.trace_steps or epoch > self.seen.first_epoch or self.worker.rank != 0:
            return nullcontext(None)
        num_steps = self.learner.steps_per_epoch
        if num_steps < 3:
            print(f"no trace: the first two steps are not recorded, and an epoch has {num_steps}", flush=True)
            return nullcontext(None)
        return profile_steps(self.settings.trace_steps, self.worker.device, self._keep_trace)

    def _keep_trace(self, trace: bytes) -> None:
        self.trace = trace

    def report(self, entry: dict[str, float]) -> None:
        """Tells Ray Train of an epoch; rank 0 with a checkpoint, from which `resume` goes on."""
        if self.worker.rank != 0:
            ray.train.report(dict(entry))
            return
        print(_progress_line(entry, self.recipe, self.progress.best_epoch), flush=True)
        # waits for the last one: uploads slower than epochs would fill the disk
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        folder = tempfile.mkdtemp(prefix="checkpoint-")  # Ray removes it when it is uploaded
        torch.save(self.state(), Path(folder) / STATE_FILE)
        ray.train.report(
            dict(entry),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def state(self) -> dict[str, Any]:
        """What STATE_FILE of a checkpoint holds."""
        return {
            **self.learner.state(),
            **self.progress.state(),
            "profile": self.watch.table(),
            "seen": vars(self.seen),
        }

    def resume(self) -> None:
        """Goes on from the last checkpoint, where there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_FILE, map_location=self.worker.device, weights_only=True)
        self.learner.load(state)
        self.progress.load(state, on_unhealthy=self.settings.on_unhealthy)
        for name, value in state["seen"].items():
            setattr(self.seen, name, value)
        for name, seconds in state["profile"].items():
            self.watch.add_earlier(name, seconds)
        if self.worker.rank == 0:
            print(f"continues after epoch {len(self.progress.history)}", flush=True)

    def _conclude(self) -> dict[str, Any] | None:
        progress, splits = self.progress, self.settings.conclude
        logits, ranges = {}, None
        if progress.best_state and splits:
            with self.watch.phase("validation"):
                for split in splits:
                    logits[split] = self.evaluation.logits(
                        progress.best_state,
                        split,
                        image_size=self.recipe.image_size,
                        mirror=self.recipe.test_time_flip,
                    )
                if self.worker.rank == 0:
                    ranges = self.evaluation.activation_ranges(progress.best_state)
        if self.worker.rank != 0:
            return None
        return {
            "history": progress.history,
            "step_losses": self.seen.step_losses,
            "gradient_norms": self.seen.gradient_norms,
            "findings": progress.findings,
            "profile": self.watch.table(),
            "best_epoch": progress.best_epoch,
            "stopped": progress.stopped,
            "precision": "bfloat16" if self.worker.mixed else "float32",
            "rows": {split: self.bins.rows_of(split) for split in logits},
            "logits": logits,
            "activation_ranges": ranges,
            "trace": self.trace,
        }


def _progress_line(entry: dict[str, float], recipe: Recipe, best_epoch: int) -> str:
    counts = ""  # a loss that is not finite has none, nor has K < 3
    if "selection_exact" in entry:
        scope = scope_name("1..5", recipe.top_class)
        counts = f"exact {entry['selection_exact']:.1%}, MAE {entry['selection_mae']:.3f} ({scope}), "
    return (
        f"epoch {entry['epoch'] + 1}/{recipe.max_epochs}: loss {entry['train_loss']:.4f}, selection NLL "
        f"{entry['selection_nll']:.4f}, {counts}{entry['image_size']} pixels, {entry['seconds']:.0f} s"
        + (f", best epoch {best_epoch + 1}" if best_epoch >= 0 else "")
    )
