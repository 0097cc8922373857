import numpy as np

from model.micro_batches import plan_epoch
from tests.model.tiny_training import BINS, tiny_recipe


def test_each_epoch_has_an_order_and_an_augmentation_of_its_own() -> None:
    plans = [plan_epoch(BINS, tiny_recipe(), epoch, worker=0, num_workers=1) for epoch in range(12)]
    orders = [np.concatenate([batch.rows for batch in plan]).tolist() for plan in plans]
    assert orders[0] != orders[1]
    train = BINS.rows_of("train")
    assert {row for order in orders for row in order} == set(train.tolist()), "another rest waits each time"
    assert [{batch.augment_epoch for batch in plan} for plan in plans] == [{epoch} for epoch in range(12)]


def test_photos_are_left_as_they_are_where_nothing_is_augmented() -> None:
    plan = plan_epoch(BINS, tiny_recipe(augmentation=0), 1, worker=1, num_workers=2)
    assert len(plan) == 3 and {batch.augment_epoch for batch in plan} == {None}
