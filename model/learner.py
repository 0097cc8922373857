"""One step of a training, from photos to other weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from model.health import SAMPLE_EVERY, Observations
from model.loss import RecordLoss
from model.micro_batches import MicroBatch, PreparedBatch, TrainingSet
from model.network import CountingNetwork
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
from model.train_worker import TrainWorker
from model.watching import ActivationWatch, layer_ratios

TOO_LARGE = "don't fit the GPU's memory"


class Learner:
    """A worker's `network`, which learns from `bins`, with its optimiser and the average of its weights.

    `distributed`: the network as it is asked in a step; of several workers, one that averages their gradients (DDP).
    """

    def __init__(
        self,
        network: CountingNetwork,
        distributed: nn.Module,
        *,
        bins: TrainingSet,
        recipe: Recipe,
        worker: TrainWorker,
        watch: Stopwatch,
    ) -> None:
        self.network, self.distributed = network, distributed
        self.recipe, self.worker, self.watch = recipe, worker, watch
        self.steps_per_epoch = len(bins.rows_of("train")) // recipe.batch_size
        self.optimiser = make_optimiser(network, recipe)
        self.average = WeightAverage(network, averaging_decay(recipe, self.steps_per_epoch))
        self.loss = RecordLoss(bins, recipe, worker.device)
        self._activations = ActivationWatch(network)
        # listed once: to look for them takes time in every step
        self._normalisations = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self._per_batch = recipe.batch_size // recipe.micro_batch
        self._num_own = len(range(worker.rank, self._per_batch, worker.num_workers))

    def step(self, number: int, stream: Iterator[tuple[MicroBatch, PreparedBatch]], seen: Observations) -> torch.Tensor:
        """Takes step `number` (from 0) of the training, with the micro-batches that this worker has of its batch.

        Returns on the device, float32 (2,), this worker's summand of the batch's loss on counts and of the norm of its
        gradient, before clipping. In one of SAMPLE_EVERY steps `seen` is told of each layer.
        """
        watch, checked = self.watch, number % SAMPLE_EVERY == 0
        self._activations.watching = checked
        # a step of its own: on a GPU the checks wait for it dozens of times, and the first step starts CUDA
        watch.sampled = number % SAMPLE_EVERY == 1
        if watch.sampled:
            watch.settle()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate_at(number, self.steps_per_epoch * self.recipe.max_epochs, self.recipe)
        loss_sum = torch.zeros((), device=self.worker.device)
        for index in range(self._num_own):
            with watch.phase("wait for photos"):
                batch, prepared = next(stream)
            for name, seconds in prepared.seconds.items():
                watch.add(name, seconds)
            if self._num_own > 1:
                set_momentum(self._normalisations, index, self._num_own)
            loss_sum += self.accumulate(batch, prepared.pixels, synchronise=index == self._num_own - 1)
        with watch.phase("optimiser"):
            if checked:
                seen.layer_ratios.append(layer_ratios(self.network))
                seen.dead_shares.append(self._activations.take())
            norm = nn.utils.clip_grad_norm_(
                [p for p in self.network.parameters() if p.requires_grad], MAX_GRADIENT_NORM
            )
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.average.update()
        self._activations.watching, watch.sampled = False, True
        return torch.stack([loss_sum.detach(), norm.detach() / self.worker.num_workers])

    def accumulate(self, batch: MicroBatch, pixels: np.ndarray, *, synchronise: bool) -> torch.Tensor:
        """Adds the gradients of a micro-batch, pixels uint8 (n, S, S, 3), averaged over the workers where `synchronise`d, as
        the last of a step must be; returns its share of the batch's loss on counts."""
        with self.watch.phase("transfer"):
            inputs, rows = self.worker.inputs(pixels), self.worker.send(batch.rows)
        quiet = self.worker.num_workers > 1 and not synchronise
        with self.distributed.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            with self.watch.phase("forward"), self.worker.autocast():
                logits, auxiliary = self.distributed(inputs)
                on_counts, loss = self.loss(logits, auxiliary, rows)
            with self.watch.phase("backward"):
                # DDP averages over workers; a batch's gradient is the mean over its micro-batches, wherever they ran
                (loss * (self.worker.num_workers / self._per_batch)).backward()
        return on_counts.detach() / self._per_batch

    @torch.no_grad()
    def average_statistics(self) -> None:
        """Batch normalisation saw other photos on every worker: their running statistics are averaged, each worker's by its
        share of a batch's micro-batches."""
        share = self._num_own / self._per_batch
        for state in (self.network.state_dict(), self.average.state):
            for name, value in state.items():
                if "running_" in name:
                    self.worker.sum(value.mul_(share))

    def rehearse(self) -> None:
        """A micro-batch of whole photos before the first: a GPU that can't hold them says so, and what to lower. Where
        photos grow it would after three fifths of the epochs, and other settings begin anew.

        Raises RuntimeError with TOO_LARGE where they don't fit.
        """
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

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state,
            "average_updates": self.average.num_updates,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave, on whatever device."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.load(state["average"], num_updates=state["average_updates"])
