from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model.loss import RecordLoss
from tests.model.tiny_training import BINS, tiny_recipe


def test_plain_classes_are_learned_where_they_are_asked_for() -> None:
    plain, soft = (
        RecordLoss(BINS, tiny_recipe(targets=targets), torch.device("cpu")).count_targets
        for targets in ("classes", "ordinal")
    )
    assert torch.equal(plain[:4], torch.eye(4)) and not torch.equal(plain, soft)


def test_without_auxiliary_outputs_what_is_learned_from_is_the_loss_on_counts() -> None:
    loss = RecordLoss(BINS, tiny_recipe(targets="classes"), torch.device("cpu"))
    logits, rows = torch.randn(8, 4), torch.arange(8)
    on_counts, whole = loss(logits, None, rows)
    assert on_counts is whole
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(8), torch.from_numpy(BINS.expected_qty[:8])].mean()
    torch.testing.assert_close(on_counts, expected)
    assert torch.equal(loss(logits, torch.zeros(8, 25), rows)[0], on_counts)


def test_a_record_above_all_that_is_learned_counts_as_the_most_that_is() -> None:
    bins = replace(BINS, expected_qty=np.array([3, 15, 15, 2000]), num_skus=np.array([8, 7, 8, 30]))
    loss = RecordLoss(bins, tiny_recipe(targets="ordinal"), torch.device("cpu"))
    logits, auxiliary = torch.randn(1, 4), torch.randn(1, 25)
    told = [loss(logits, auxiliary, torch.tensor([row])) for row in range(4)]
    (on_top_class, _), (_, of_seven_skus), (on_counts, whole), of_thousands = told
    assert of_thousands == (on_counts, whole)
    assert on_top_class != on_counts, "a record of K may be of K - 1, one far above it is not"
    assert of_seven_skus != whole
