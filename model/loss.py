"""What a network that trains is told of its answers: their loss by what the records say."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from model.micro_batches import TrainingSet
from model.recipe import Recipe
from model.targets import LEARNED_QUANTITY, LEARNED_SKUS, count_rows, count_targets, quantity_targets

AUXILIARY_WEIGHT = 0.3


class RecordLoss:
    """Cross-entropy of CountingNetwork's answers about `bins` with the targets that `recipe` makes of their records.

    Those of all bins are on `device` from the start: copied for each micro-batch, they would make a GPU wait.
    """

    def __init__(self, bins: TrainingSet, recipe: Recipe, device: torch.device) -> None:
        self.count_targets = torch.from_numpy(count_targets(recipe.top_class, recipe.targets)).to(device)
        self.quantity_targets = torch.from_numpy(quantity_targets()).to(device)
        self._count_rows, self._quantities, self._skus = (
            torch.from_numpy(values.astype(np.int64)).to(device)
            for values in (
                count_rows(bins.expected_qty, recipe.top_class),
                np.minimum(bins.expected_qty, LEARNED_QUANTITY),
                np.minimum(bins.num_skus, LEARNED_SKUS),
            )
        )

    def __call__(
        self, logits: torch.Tensor, auxiliary: torch.Tensor | None, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss on counts, and the one to learn from, which has that of the auxiliary outputs too: means over n photos.

        logits (n, K + 1), auxiliary (n, LEARNED_QUANTITY + 1 + LEARNED_SKUS + 1), row numbers of the training set (n,).
        """
        loss = F.cross_entropy(logits, self.count_targets[self._count_rows[rows]])
        if auxiliary is None:
            return loss, loss
        quantity, skus = auxiliary.split([LEARNED_QUANTITY + 1, LEARNED_SKUS + 1], dim=1)
        extra = F.cross_entropy(quantity, self.quantity_targets[self._quantities[rows]])
        extra = extra + F.cross_entropy(skus, self._skus[rows])
        return loss, loss + AUXILIARY_WEIGHT * extra
