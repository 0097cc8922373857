"""The training loop that runs on every Ray Train worker, for `jobs.train` and `jobs.tune` alike."""

from __future__ import annotations

import copy
import gzip
import itertools
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.v2._internal.execution.context import logger as report_logger
from torch import nn

from model.calibration import apply_calibration, fit_calibration, negative_log_likelihood, shift_of_mix
from model.evaluation import Evaluation
from model.health import NEVER_STOP, SAMPLE_EVERY, Observations, check_health, consequence
from model.metrics import count_metrics, restrict, scope_name, scope_rows
from model.micro_batches import MicroBatch, PhotoSource, PreparedBatch, TrainingSet
from model.network import CountingNetwork, build_network, freeze, set_training_mode
from model.optimisation import (
    MAX_GRADIENT_NORM,
    WeightAverage,
    averaging_decay,
    learning_rate_at,
    make_optimiser,
    set_momentum,
)
from model.profile import Stopwatch
from model.recipe import Recipe
from model.scoring import keep_float32
from model.splitting import epoch_order, worker_micro_batches
from model.targets import LEARNED_QUANTITY, LEARNED_SKUS, classes_of, count_rows, count_targets, quantity_targets
from model.train_worker import TrainWorker, gains_in_bfloat16
from model.watching import ActivationWatch, initial_weight_std, layer_ratios
from schemas.bundle import Preprocessing

STATE_FILE = "state.pt"
AUXILIARY_WEIGHT = 0.3
UNHEALTHY = "unhealthy"
NOT_FINITE = "the loss is not a finite number"
TOO_LARGE = "don't fit the GPU's memory"


@dataclass(frozen=True)
class LoopSettings:
    """What a worker is given. `load` is called once on it, so that arrays and weights travel by the object store."""

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

    `history` (a dict per epoch), `step_losses`, `gradient_norms`, `findings`, `profile` (seconds by phase), `best_epoch`, `stopped`
    (why, or None), `precision` (of the convolutions), `trace` (gzipped, of the torch profiler, or None), `rows` and `logits` by split (those of
    `LoopSettings.conclude`; of the best epoch, with the mirror image if the recipe says so), `activation_ranges` (by layer, of
    the best epoch; None where nothing is concluded). The weights are in the last checkpoint: `best_state`.

    loop_config: {"settings": LoopSettings}.
    """
    # it would write each epoch's metrics once more, on a line of 500 characters
    report_logger.setLevel(logging.WARNING)
    return _Loop(loop_config["settings"]).run()


class _Loop:
    """One worker's training, from `LoopSettings` to what `train_loop_per_worker` returns; goes on from a checkpoint."""

    def __init__(self, settings: LoopSettings) -> None:
        self.settings, self.recipe = settings, settings.recipe
        context = ray.train.get_context()
        device = ray.train.torch.get_device()
        mixed = self.recipe.mixed_precision and gains_in_bfloat16(device)
        if not mixed:
            keep_float32()
        self.worker = TrainWorker(
            device,
            context.get_world_rank(),
            context.get_world_size(),
            mixed=mixed,
            preprocessing=Preprocessing(image_size=self.recipe.image_size),
        )
        if device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self.watch = Stopwatch(device)
        self.bins, initial_state, self.photos = settings.load()
        recipe = self.recipe
        self.network = CountingNetwork(
            build_network(recipe.architecture, recipe.num_classes),
            auxiliary=recipe.auxiliary,
        )
        self.network.load_state_dict(initial_state)
        freeze(self.network, recipe.unfreeze)
        self.network.to(device).to(memory_format=torch.channels_last)
        self.activations = ActivationWatch(self.network)
        # listed once: to look for them takes time in every step
        self.normalisations = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.optimiser = make_optimiser(self.network, recipe)
        train = self.bins.rows_of("train")
        self.steps_per_epoch = len(train) // recipe.batch_size
        self.average = WeightAverage(self.network, averaging_decay(recipe, self.steps_per_epoch))
        # every worker sums its own statistics; they are averaged before each evaluation
        self.distributed: nn.Module = ray.train.torch.prepare_model(
            self.network, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        labels = classes_of(self.bins.expected_qty, recipe.top_class)
        self.labels = labels
        self.seen = Observations(
            num_classes=recipe.num_classes,
            label_histogram=np.bincount(labels[train], minlength=recipe.num_classes).tolist(),
            initial_weight_std=initial_weight_std(self.network),
            from_scratch=recipe.from_scratch,
            guess_nll=_guess_nll(labels[train], labels[self.bins.rows_of("selection")], recipe.num_classes),
        )
        self._targets = torch.from_numpy(count_targets(recipe.top_class, recipe.targets)).to(device)
        self._quantity_targets = torch.from_numpy(quantity_targets()).to(device)
        # of all bins, once: copied for each micro-batch, they would make a GPU wait
        self._count_rows, self._quantities, self._skus = (
            torch.from_numpy(values.astype(np.int64)).to(device)
            for values in (
                count_rows(self.bins.expected_qty, recipe.top_class),
                np.minimum(self.bins.expected_qty, LEARNED_QUANTITY),
                np.minimum(self.bins.num_skus, LEARNED_SKUS),
            )
        )
        self.evaluation = Evaluation(self.network, self.bins, self.photos, recipe, self.worker)
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_nll = -1, math.inf
        self.best_state: dict[str, torch.Tensor] = {}
        self.stopped: str | None = None
        self.findings: list[dict[str, Any]] = []
        self._trace: bytes | None = None
        self._epoch_seconds = 0.0

    def run(self) -> dict[str, Any] | None:
        self._resume()
        self.seen.first_epoch = len(self.history)
        epochs = range(self.seen.first_epoch, self.recipe.max_epochs)
        if self.settings.trace_steps and (self.stopped is not None or not epochs) and self.worker.rank == 0:
            print("no trace: the training had ended before this try", flush=True)
        if self.stopped is None and epochs:
            if self.worker.device.type == "cuda":
                self._rehearse()
            train = self.bins.rows_of("train")
            plan = [self._micro_batches(train, epoch) for epoch in epochs]
            stream = iter(self.photos([batch for batches in plan for batch in batches]))
            # a run's first photos wait for Ray's workers to start: no part of an epoch, and no stall
            with self.watch.phase("wait for photos"):
                stream = itertools.chain([next(stream)], stream)
            for epoch, batches in zip(epochs, plan, strict=True):
                self._train_epoch(epoch, batches, stream)
                self._finish_epoch(epoch)
                if self.stopped is not None:
                    break
            del stream
        return self._conclude()

    def _rehearse(self) -> None:
        """A micro-batch of whole photos before the first: a GPU that can't hold them says so, and what to lower. Where
        photos grow it would after three fifths of the epochs, and other settings begin anew."""
        side, num_photos = self.recipe.image_size, self.recipe.micro_batch
        twin = copy.deepcopy(self.network).train()  # with statistics and gradients of its own
        try:
            with self.worker.autocast():
                logits, _ = twin(self.worker.inputs(np.zeros((num_photos, side, side, 3), np.uint8)))
            logits.sum().backward()
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{num_photos} photos of {side} pixels {TOO_LARGE}: lower --micro-batch-size or --image-size"
            ) from error

    def _micro_batches(self, train: np.ndarray, epoch: int) -> list[MicroBatch]:
        recipe = self.recipe
        order = train[epoch_order(self.bins.hashes[train], recipe.seed, epoch)]
        chosen = worker_micro_batches(
            order,
            batch_size=recipe.batch_size,
            micro_batch=recipe.micro_batch,
            worker=self.worker.rank,
            num_workers=self.worker.num_workers,
        )
        size, key = recipe.image_size_of(epoch), epoch if recipe.augmentation > 0 else None
        return [MicroBatch(rows, size, key) for rows in chosen]

    def _num_per_batch(self) -> int:
        """Micro-batches of one batch, and in `_num_own` this worker's of them."""
        return self.recipe.batch_size // self.recipe.micro_batch

    def _num_own(self) -> int:
        return len(range(self.worker.rank, self._num_per_batch(), self.worker.num_workers))

    def _train_epoch(self, epoch: int, batches: list[MicroBatch], stream: Iterator[PreparedBatch]) -> None:
        recipe, watch = self.recipe, self.watch
        set_training_mode(self.network, recipe.unfreeze)
        planned = iter(batches)
        per_batch, own = self._num_per_batch(), self._num_own()
        num_steps = self.steps_per_epoch * recipe.max_epochs
        losses: list[torch.Tensor] = []
        started, wait_before = time.perf_counter(), watch.seconds["wait for photos"]
        with self._profiler(epoch) as profiler:
            for step in range(self.steps_per_epoch):
                global_step = epoch * self.steps_per_epoch + step
                checked = global_step % SAMPLE_EVERY == 0
                self.activations.watching = checked
                # a step of its own: on a GPU the checks wait for it dozens of times, and the first step starts CUDA
                watch.sampled = global_step % SAMPLE_EVERY == 1
                if watch.sampled:
                    watch.settle()
                for group in self.optimiser.param_groups:
                    group["lr"] = learning_rate_at(global_step, num_steps, recipe)
                loss_sum = torch.zeros((), device=self.worker.device)
                for index in range(own):
                    with watch.phase("wait for photos"):
                        prepared = next(stream)
                    for name, seconds in prepared.seconds.items():
                        watch.add(name, seconds)
                    last = index == own - 1
                    if own > 1:
                        set_momentum(self.normalisations, index, own)
                    loss_sum += self._accumulate(next(planned), prepared.pixels, per_batch, synchronise=last)
                with watch.phase("optimiser"):
                    if checked:
                        self.seen.layer_ratios.append(layer_ratios(self.network))
                        self.seen.dead_shares.append(self.activations.take())
                    norm = nn.utils.clip_grad_norm_(
                        [p for p in self.network.parameters() if p.requires_grad], MAX_GRADIENT_NORM
                    )
                    self.optimiser.step()
                    self.optimiser.zero_grad(set_to_none=True)
                    self.average.update()
                losses.append(torch.stack([loss_sum.detach(), norm.detach() / self.worker.num_workers]))
                if profiler is not None:
                    profiler.step()
                # the norm is of the averaged gradients, so all workers see the same and leave together
                if checked and not bool(torch.isfinite(norm)):
                    # the stream is left in the middle of an epoch: nothing may be trained from it any more
                    self.stopped = self._not_finite(epoch)
                    break
        self.activations.watching, watch.sampled = False, True
        summed = self.worker.sum(torch.stack(losses)).cpu()
        elapsed = time.perf_counter() - started  # by now a GPU is through with the epoch
        self.seen.step_losses += summed[:, 0].tolist()
        self.seen.gradient_norms += summed[:, 1].tolist()
        self.seen.train_losses.append(float(summed[:, 0].mean()))
        self.seen.image_sizes.append(recipe.image_size_of(epoch))
        self.seen.settled_epochs += recipe.is_settled(epoch)
        # of the worker that waited longest: the others wait for it, inside of their backward pass
        waited = torch.zeros(self.worker.num_workers, device=self.worker.device)
        waited[self.worker.rank] = (watch.seconds["wait for photos"] - wait_before) / max(elapsed, 1e-9)
        self.seen.wait_shares.append(float(self.worker.sum(waited).max()))
        self._epoch_seconds = elapsed

    def _accumulate(self, batch: MicroBatch, pixels: np.ndarray, per_batch: int, *, synchronise: bool) -> torch.Tensor:
        """Adds a micro-batch's gradients; returns its share of the batch's loss on counts."""
        watch = self.watch
        with watch.phase("transfer"):
            inputs = self.worker.inputs(pixels)
            rows = self.worker.send(batch.rows)
            counts, quantity, skus = self._count_rows[rows], self._quantities[rows], self._skus[rows]
        quiet = self.worker.num_workers > 1 and not synchronise
        with self.distributed.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            with watch.phase("forward"), self.worker.autocast():
                logits, auxiliary = self.distributed(inputs)
                loss = F.cross_entropy(logits, self._targets[counts])
                whole = loss
                if auxiliary is not None:
                    fine, lines = auxiliary.split([LEARNED_QUANTITY + 1, LEARNED_SKUS + 1], dim=1)
                    extra = F.cross_entropy(fine, self._quantity_targets[quantity]) + F.cross_entropy(lines, skus)
                    whole = loss + AUXILIARY_WEIGHT * extra
            with watch.phase("backward"):
                # DDP averages over workers; a batch's gradient is the mean over its micro-batches, wherever they ran
                (whole * (self.worker.num_workers / per_batch)).backward()
        return loss.detach() / per_batch

    def _finish_epoch(self, epoch: int) -> None:
        with self.watch.phase("validation"):
            self._average_statistics()
            size = self.recipe.image_size_of(epoch)
            logits = self.evaluation.logits(self.average.state, "selection", image_size=size, mirror=False)
        labels = self.labels[self.bins.rows_of("selection")]
        entry = {
            "epoch": epoch,
            "image_size": size,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "train_loss": self.seen.train_losses[-1],
            "seconds": self._epoch_seconds,
            "wait_share": self.seen.wait_shares[-1],
        }
        if self.stopped or not (np.isfinite(logits).all() and math.isfinite(entry["train_loss"])):
            self.stopped = self._not_finite(epoch)
            entry |= {"selection_nll": math.inf}
        else:
            # soft targets leave the logits too flat, and rare classes too common: undone before they are compared
            shift = shift_of_mix(labels, self.seen.label_histogram)
            fitted = fit_calibration(logits, labels, "temperature", shift)
            probabilities = apply_calibration(logits, fitted)
            entry["selection_nll"] = negative_log_likelihood(probabilities, labels)
            # a scope of one class, which any camera gets right, has no figures
            rows, classes = scope_rows(labels, "1..5", self.recipe.top_class)
            if len(classes) > 1 and rows.any():
                counts = restrict(probabilities[rows], classes).argmax(axis=1) + classes.start
                found = count_metrics(counts, labels[rows])
                entry |= {f"selection_{name}": found[name] for name in ("exact", "mae")}
            # an epoch on smaller photos can't be the best: its weights don't know the bundle's size yet
            if size == self.recipe.image_size and entry["selection_nll"] < self.best_nll:
                self.best_epoch, self.best_nll = epoch, entry["selection_nll"]
                self.best_state = {name: value.cpu().clone() for name, value in self.average.state.items()}
            elif self.best_epoch >= 0 and self.recipe.is_out_of_patience(self.best_epoch, epoch):
                self.stopped = f"early: no better selection NLL in {self.recipe.patience} epochs"
        self.seen.selection_nlls.append(entry["selection_nll"])
        self.history.append(entry)
        self._check_health(epoch)
        with self.watch.phase("checkpoint"):
            self._report(entry)

    def _not_finite(self, epoch: int) -> str:
        return f"{NOT_FINITE} in epoch {epoch + 1}: lower --learning-rate (a tenth), and check --weights if they were given"

    def _check_health(self, epoch: int) -> None:
        findings = [asdict(finding) for finding in check_health(self.seen)]
        known = {finding["rule"]: finding for finding in self.findings}
        # a rule's first finding stands, with the epoch in which it was seen
        new = [finding for finding in findings if finding["rule"] not in known]
        self.findings += new
        if self.worker.rank == 0:
            for finding in new:
                print(f"unhealthy in epoch {epoch + 1}: {finding['rule']}: {finding['message']}", flush=True)
        if self.settings.on_unhealthy != "stop":
            return
        rules = sorted({finding["rule"] for finding in findings} - NEVER_STOP)
        what = consequence(rules, has_best_epoch=self.best_epoch >= 0)
        stop, end = self.worker.agreed(what == "stop"), self.worker.agreed(what == "end")
        # a loss that is not finite stays the reason: --on-unhealthy warn must not go on from such weights
        if stop and not (self.stopped or "").startswith(NOT_FINITE):
            self.stopped = f"{UNHEALTHY} in epoch {epoch + 1}: {', '.join(rules)}"
        elif end and self.stopped is None and epoch + 1 < self.recipe.max_epochs:
            self.stopped = f"early: {', '.join(rules)} in epoch {epoch + 1}"

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Batch normalisation saw other photos on every worker: their running statistics are averaged, each worker's by its
        share of a batch's micro-batches."""
        share = self._num_own() / self._num_per_batch()
        for state in (self.network.state_dict(), self.average.state):
            for name, value in state.items():
                if "running_" in name:
                    self.worker.sum(value.mul_(share))

    def _profiler(self, epoch: int) -> Any:
        if not self.settings.trace_steps or epoch > self.seen.first_epoch or self.worker.rank != 0:
            return nullcontext(None)
        if self.steps_per_epoch < 3:
            print(
                f"no trace: the first two steps are not recorded, and an epoch has {self.steps_per_epoch}", flush=True
            )
            return nullcontext(None)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.worker.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        return torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=self.settings.trace_steps, repeat=1),
            on_trace_ready=self._keep_trace,
        )

    def _keep_trace(self, profiler: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            self._trace = gzip.compress(path.read_bytes())

    def _report(self, entry: dict[str, float]) -> None:
        if self.worker.rank != 0:
            ray.train.report(dict(entry))
            return
        print(_progress_line(entry, self.recipe, self.best_epoch), flush=True)
        # waits for the last one: uploads slower than epochs would fill the disk
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        folder = tempfile.mkdtemp(prefix="checkpoint-")  # Ray removes it when it is uploaded
        torch.save(self._state(), Path(folder) / STATE_FILE)
        ray.train.report(
            dict(entry),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state,
            "average_updates": self.average.num_updates,
            "best_state": self.best_state,
            "best_epoch": self.best_epoch,
            "best_nll": self.best_nll,
            "history": self.history,
            "stopped": self.stopped,
            "findings": self.findings,
            "profile": self.watch.table(),
            "seen": vars(self.seen),
        }

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_FILE, map_location=self.worker.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.load(state["average"], num_updates=state["average_updates"])
        self.best_state = {name: value.cpu() for name, value in state["best_state"].items()}
        self.best_epoch, self.best_nll = state["best_epoch"], state["best_nll"]
        self.history, self.stopped, self.findings = state["history"], state["stopped"], state["findings"]
        if self.settings.on_unhealthy == "warn" and (self.stopped or "").startswith(UNHEALTHY):
            self.stopped = None  # it stopped because it was told to; now it is told to go on
        for name, value in state["seen"].items():
            setattr(self.seen, name, value)
        for name, seconds in state["profile"].items():
            self.watch.add_earlier(name, seconds)
        if self.worker.rank == 0:
            print(f"continues after epoch {len(self.history)}", flush=True)

    def _conclude(self) -> dict[str, Any] | None:
        rows, logits = {}, {}
        if self.best_state:
            with self.watch.phase("validation"):
                for split in self.settings.conclude:
                    rows[split] = self.bins.rows_of(split)
                    logits[split] = self.evaluation.logits(
                        self.best_state,
                        split,
                        image_size=self.recipe.image_size,
                        mirror=self.recipe.test_time_flip,
                    )
        if self.worker.rank != 0:
            return None
        ranges = None
        if self.best_state and self.settings.conclude:
            with self.watch.phase("validation"):
                ranges = self.evaluation.activation_ranges(self.best_state)
        return {
            "history": self.history,
            "step_losses": self.seen.step_losses,
            "gradient_norms": self.seen.gradient_norms,
            "findings": self.findings,
            "profile": self.watch.table(),
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "precision": "bfloat16" if self.worker.mixed else "float32",
            "rows": rows,
            "logits": logits,
            "activation_ranges": ranges,
            "trace": self._trace,
        }


def _guess_nll(train: np.ndarray, selection: np.ndarray, num_classes: int) -> float:
    """NLL of the `selection` classes (m,) by the shares of the `train` ones (n,), each seen once more than it was."""
    counts = np.bincount(train, minlength=num_classes) + 1
    return float(-np.log(counts / counts.sum())[selection].mean())


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
