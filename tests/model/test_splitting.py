"""Splits keep groups whole and orders are keyed, so batches are the same on any number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from model.splitting import epoch_order, id_hashes, keyed, split_groups, worker_micro_batches
from schemas.errors import InputError

GROUPS = np.array([f"block-{i // 25}" for i in range(2000)])
SHARES = {"selection_share": 0.15, "test_share": 0.2}


def test_groups_stay_whole_and_shares_are_met() -> None:
    splits = split_groups(GROUPS, seed=0, **SHARES)
    for group in set(GROUPS):
        assert len(set(splits[group == GROUPS])) == 1
    assert (splits == "test").mean() == pytest.approx(0.2, abs=0.02)
    assert (splits == "selection").mean() == pytest.approx(0.15, abs=0.02)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    splits = split_groups(GROUPS, seed=0, **SHARES)
    shuffled = np.random.default_rng(1).permutation(len(GROUPS))
    assert np.array_equal(split_groups(GROUPS[shuffled], seed=0, **SHARES), splits[shuffled])
    assert not np.array_equal(split_groups(GROUPS, seed=1, **SHARES), splits)


def test_five_groups_are_enough_and_four_are_an_input_error() -> None:
    five = np.array(["a", "b", "c", "d", "e"] * 10)
    splits = split_groups(five, seed=3, **SHARES)
    assert [len(set(five[splits == split])) for split in ("train", "selection", "test")] == [1, 2, 2]
    with pytest.raises(InputError, match="at least 5 groups"):
        split_groups(np.array(["a", "b", "c", "d"] * 10), seed=3, **SHARES)


def test_one_large_group_does_not_starve_training() -> None:
    groups = np.array(["large"] * 900 + [f"g{i}" for i in range(100)])
    for seed in range(20):
        splits = split_groups(groups, seed=seed, **SHARES)
        assert {"train", "selection", "test"} == set(splits)
        # of one group no interval can be drawn
        assert len(set(groups[splits == "selection"])) >= 2
        assert len(set(groups[splits == "test"])) >= 2


def test_an_epochs_order_is_a_permutation_keyed_by_seed_and_epoch() -> None:
    hashes = id_hashes([f"{i:05d}" for i in range(500)])
    order = epoch_order(hashes, seed=1, epoch=0)
    assert sorted(order.tolist()) == list(range(500))
    assert np.array_equal(order, epoch_order(hashes, seed=1, epoch=0))
    assert not np.array_equal(order, epoch_order(hashes, seed=1, epoch=1))
    assert not np.array_equal(order, epoch_order(hashes, seed=2, epoch=0))
    assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15


def test_a_bins_key_does_not_depend_on_other_bins() -> None:
    hashes = id_hashes(["a", "b", "c"])
    assert keyed(hashes, 1, 2)[1] == keyed(hashes[1:2], 1, 2)[0]


@pytest.mark.parametrize("num_batches", [1, 2])
def test_an_epoch_of_whole_batches_has_its_last_one(num_batches: int) -> None:
    order = np.arange(num_batches * 128)
    found = worker_micro_batches(order, batch_size=128, micro_batch=32, worker=0, num_workers=1)
    assert np.array_equal(np.concatenate(found), order)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_a_batch_is_the_same_on_any_number_of_workers(num_workers: int) -> None:
    order = np.random.default_rng(0).permutation(1000)
    plans = [
        worker_micro_batches(order, batch_size=128, micro_batch=32, worker=worker, num_workers=num_workers)
        for worker in range(num_workers)
    ]
    for step in range(1000 // 128):
        together = []
        for worker, plan in enumerate(plans):
            per_step = len(range(worker, 4, num_workers))
            together += plan[step * per_step : (step + 1) * per_step]
        assert all(len(rows) == 32 for rows in together)
        assert set(np.concatenate(together)) == set(order[step * 128 : (step + 1) * 128])
