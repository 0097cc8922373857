"""What the network says of whole splits during a training: photos as the audit prepares them, not augmented."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from model.calibration import apply_calibration, fit_calibration, negative_log_likelihood, shift_of_mix
from model.metrics import count_metrics, restrict, scope_rows
from model.micro_batches import MicroBatch, PhotoSource, TrainingSet
from model.network import CountingNetwork
from model.quantisation import Range, activation_ranges
from model.recipe import Recipe
from model.splitting import epoch_order
from model.train_worker import TrainWorker

NUM_RANGE_PHOTOS = 256
"""Training photos that tell the ranges of the activations."""
KEPT_BYTES = 1 << 30
"""Most bytes of photos that a worker keeps from one evaluation to the next."""


class Evaluation:
    """Asks `network`, on its device, about the `photos` of `bins`; the work is shared by all workers."""

    def __init__(
        self, network: CountingNetwork, bins: TrainingSet, photos: PhotoSource, recipe: Recipe, worker: TrainWorker
    ) -> None:
        self.network, self.bins, self.photos, self.recipe, self.worker = network, bins, photos, recipe, worker
        self._kept_of: tuple[str, int] | None = None
        self._kept: list[np.ndarray] = []

    @torch.no_grad()
    def logits(self, state: dict[str, torch.Tensor], split: str, *, image_size: int, mirror: bool) -> np.ndarray:
        """Logits, float64 (rows of the split, K + 1), of a state of CountingNetwork; the work is shared by all workers."""
        recipe, num_rows = self.recipe, len(self.bins.rows_of(split))
        kept = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(state)
        self.network.eval()
        found = torch.zeros((num_rows, recipe.num_classes), dtype=torch.float64, device=self.worker.device)
        for start, pixels in self._plain_batches(split, image_size):
            num_photos = len(pixels)
            if num_photos < recipe.micro_batch:  # one fixed shape, as in the audit
                missing = (recipe.micro_batch - num_photos, *pixels.shape[1:])
                pixels = np.concatenate([pixels, np.zeros(missing, np.uint8)])
            inputs = self.worker.inputs(pixels)
            with self.worker.autocast():
                logits = self.network(inputs)[0].double()
                if mirror:
                    logits = (logits + self.network(inputs.flip(3))[0].double()) / 2
            found[start : start + num_photos] = logits[:num_photos]
        self.network.load_state_dict(kept)
        return self.worker.sum(found).cpu().numpy()

    def _plain_batches(self, split: str, image_size: int) -> Iterator[tuple[int, np.ndarray]]:
        """This worker's share of a split, not augmented, in micro-batches: the place of the first row, and the pixels.

        The selection comes again after every epoch, so its photos are kept while the image size stays, unless they are more
        than KEPT_BYTES: to fetch and decode them each time took as long as the training itself beside an H200."""
        rows, size = self.bins.rows_of(split), self.recipe.micro_batch
        mine = range(self.worker.rank * size, len(rows), self.worker.num_workers * size)
        if self._kept_of != (split, image_size):
            plan = [MicroBatch(rows[start : start + size], image_size, None) for start in mine]
            batches = (prepared.pixels for prepared in self.photos(plan))
            if split != "selection" or sum(len(batch.rows) for batch in plan) * image_size**2 * 3 > KEPT_BYTES:
                yield from zip(mine, batches, strict=True)
                return
            self._kept = []  # those of another size go before these come
            # copies: views into Ray's store would hold its memory for as long as the training takes
            self._kept_of, self._kept = (split, image_size), [pixels.copy() for pixels in batches]
        yield from zip(mine, self._kept, strict=True)

    def activation_ranges(self, state: dict[str, torch.Tensor]) -> dict[str, Range]:
        """Those of the network that ends in the bundle, on NUM_RANGE_PHOTOS training photos as the audit prepares them.
        Leaves `state` in the network."""
        recipe = self.recipe
        train = self.bins.rows_of("train")
        chosen = train[epoch_order(self.bins.hashes[train], recipe.seed, 0)][:NUM_RANGE_PHOTOS]
        plan = [
            MicroBatch(chosen[start : start + recipe.micro_batch], recipe.image_size, None)
            for start in range(0, len(chosen), recipe.micro_batch)
        ]
        self.network.load_state_dict(state)
        inputs = (self.worker.inputs(prepared.pixels) for prepared in self.photos(plan))
        return activation_ranges(self.network.resnet, inputs)


def selection_figures(logits: np.ndarray, labels: np.ndarray, label_histogram: list[int]) -> dict[str, float]:
    """What epochs are compared by: `selection_nll` of logits (n, K + 1) for the classes `labels` (n,), at training's mix of
    `label_histogram` (K + 1), inf where a logit is not finite; and of the records of 1..5 `selection_exact` and
    `selection_mae`, where there are any and K > 2."""
    if not np.isfinite(logits).all():
        return {"selection_nll": math.inf}
    # soft targets leave the logits too flat, and rare classes too common: undone before they are compared
    fitted = fit_calibration(logits, labels, "temperature", shift_of_mix(labels, label_histogram))
    probabilities = apply_calibration(logits, fitted)
    figures = {"selection_nll": negative_log_likelihood(probabilities, labels)}
    # a scope of one class, which any camera gets right, has no figures
    rows, classes = scope_rows(labels, "1..5", logits.shape[1] - 1)
    if len(classes) > 1 and rows.any():
        counts = restrict(probabilities[rows], classes).argmax(axis=1) + classes.start
        found = count_metrics(counts, labels[rows])
        figures |= {f"selection_{name}": found[name] for name in ("exact", "mae")}
    return figures


def nll_of_guessing(train: np.ndarray, selection: np.ndarray, num_classes: int) -> float:
    """NLL of the `selection` classes (m,) by the shares of the `train` ones (n,), each seen once more than it was."""
    counts = np.bincount(train, minlength=num_classes) + 1
    return float(-np.log(counts / counts.sum())[selection].mean())
