from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from jobs.training import splits
from jobs.training.labelled_bins import LabelledBins
from jobs.training.splits import assign_splits, split_bins
from model.bundle_files import TRAINING_IMAGES_SCHEMA
from schemas.errors import InputError
from tests.dots import NUM_BINS, few_bins, training_config

NOTHING_SEEN = TRAINING_IMAGES_SCHEMA.empty_table()


def test_the_split_is_drawn_by_its_own_seed() -> None:
    first, other_seed, other_split = (
        assign_splits(few_bins(), training_config(**changes))["split"].to_pylist()
        for changes in ({}, {"seed": 1}, {"split_seed": 1})
    )
    assert first == other_seed
    assert first != other_split


def test_splits_that_few_groups_make_other_than_asked_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assign_splits(few_bins(), training_config())
    assert "not as asked" not in caplog.text
    bins = few_bins().set_column(4, "group", pa.array([str(i * 5 // NUM_BINS) for i in range(NUM_BINS)]))
    assign_splits(bins, training_config())
    assert "with 5 of them the splits are not as asked: train 20% instead of 70%" in caplog.text


@pytest.mark.parametrize(("seed", "expected"), [(0, "bins to train on"), (2, "bins for selection")])
def test_one_large_group_that_leaves_a_split_too_few_bins_is_refused(seed: int, expected: str) -> None:
    groups = [str(min(i, 4)) for i in range(NUM_BINS)]  # of 1, 1, 1, 1 and the rest
    bins = few_bins().set_column(4, "group", pa.array(groups))
    with pytest.raises(
        InputError, match=rf"expected at least \d+ {expected}.*196 of them in the largest group.*--split-seed"
    ):
        assign_splits(bins, training_config(split_seed=seed))


@pytest.mark.parametrize("split", ["selection", "test"])
def test_ten_bins_are_enough_to_choose_by_and_to_judge_by_and_nine_are_not(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assign(few: int) -> int:
        number = np.arange(NUM_BINS)
        drawn = np.select(
            [number < few, number < 50], [split, "test" if split == "selection" else "selection"], "train"
        )
        monkeypatch.setattr(splits, "split_groups", lambda *_, **__: drawn)
        return assign_splits(few_bins(), training_config())["split"].to_pylist().count(split)

    assert assign(10) == 10
    with pytest.raises(InputError, match=f"expected at least 10 bins for {split}, found 9"):
        assign(9)


def test_a_class_that_stands_among_selection_and_test_only_can_not_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    quantity = np.array(few_bins()["expected_qty"].to_pylist())
    drawn = np.where(quantity == 2, np.where(np.arange(NUM_BINS) < 100, "selection", "test"), "train")
    monkeypatch.setattr(splits, "split_groups", lambda *_, **__: drawn)
    with pytest.raises(
        InputError, match=r"among the training bins, found none of 2 \(bins per class: \[40, 40, 0, 80\]"
    ):
        assign_splits(few_bins(), training_config())


def test_bins_of_one_group_are_not_enough_however_many_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    number = np.arange(NUM_BINS)
    drawn = np.select([number < 40, number < 80], ["test", "selection"], "train")
    monkeypatch.setattr(splits, "split_groups", lambda *_, **__: drawn)
    photos = ["0" if 20 <= i < 40 or i == NUM_BINS - 1 else str(i + 1) for i in range(NUM_BINS)]  # of its second group
    bins = LabelledBins(few_bins().append_column("image_sha256", pa.array(photos)), ())
    with pytest.raises(InputError, match="for test, found 1 and 20: 20 bins show a photo that other bins show too"):
        split_bins(bins, training_config(), NOTHING_SEEN)


def test_one_photo_of_two_bins_is_not_learned_and_asked_for() -> None:
    bins = few_bins()
    drawn = assign_splits(bins, training_config())["split"].to_pylist()
    photos = [f"{i}" for i in range(NUM_BINS)]
    tested, selected, trained = (drawn.index(split) for split in ("test", "selection", "train"))
    photos[tested] = photos[trained]
    photos[drawn.index("test", tested + 1)] = photos[selected]
    photos[drawn.index("train", trained + 1)] = photos[trained]  # two that train may show the same
    checked = LabelledBins(bins.append_column("image_sha256", pa.array(photos)), (), {"missing_image": 1})
    found = split_bins(checked, training_config(), NOTHING_SEEN)
    assert found.left_out == {"missing_image": 1, "photo_of_another_split": 2}
    gone = set(bins["bin_id"].to_pylist()) - set(found.table["bin_id"].to_pylist())
    assert gone == {bins["bin_id"][i].as_py() for i in (tested, drawn.index("test", tested + 1))}
    one = LabelledBins(bins.append_column("image_sha256", pa.array(["same"] * NUM_BINS)), ())
    with pytest.raises(InputError, match="2 groups and 10 bins with photos of their own for selection, found 0 and 0"):
        split_bins(one, training_config(), NOTHING_SEEN)
    # two groups are left, of one bin each
    found_at = [i for i, split in enumerate(drawn) if split == "test"]
    groups = bins["group"].to_pylist()
    kept = {groups[i]: i for i in found_at}
    photos = [photos[trained] if i in set(found_at) - set(kept.values()) else f"{i}" for i in range(NUM_BINS)]
    few = LabelledBins(bins.append_column("image_sha256", pa.array(photos)), ())
    with pytest.raises(InputError, match=rf"for test, found {len(kept)} and {len(kept)}: "):
        split_bins(few, training_config(), NOTHING_SEEN)
