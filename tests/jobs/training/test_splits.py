from __future__ import annotations

import pyarrow as pa
import pytest

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


def test_one_photo_of_two_bins_is_not_learned_and_asked_for() -> None:
    bins = few_bins()
    splits = assign_splits(bins, training_config())["split"].to_pylist()
    photos = [f"{i}" for i in range(NUM_BINS)]
    tested, selected, trained = (splits.index(split) for split in ("test", "selection", "train"))
    photos[tested] = photos[trained]
    photos[splits.index("test", tested + 1)] = photos[selected]
    photos[splits.index("train", trained + 1)] = photos[trained]  # two that train may show the same
    checked = LabelledBins(bins.append_column("image_sha256", pa.array(photos)), (), {"missing_image": 1})
    found = split_bins(checked, training_config(), NOTHING_SEEN)
    assert found.left_out == {"missing_image": 1, "photo_of_another_split": 2}
    gone = set(bins["bin_id"].to_pylist()) - set(found.table["bin_id"].to_pylist())
    assert gone == {bins["bin_id"][i].as_py() for i in (tested, splits.index("test", tested + 1))}
    one = LabelledBins(bins.append_column("image_sha256", pa.array(["same"] * NUM_BINS)), ())
    with pytest.raises(InputError, match="2 groups and 10 bins with photos of their own for selection, found 0 and 0"):
        split_bins(one, training_config(), NOTHING_SEEN)
    # two groups are left, of one bin each
    found_at = [i for i, split in enumerate(splits) if split == "test"]
    groups = bins["group"].to_pylist()
    kept = {groups[i]: i for i in found_at}
    photos = [photos[trained] if i in set(found_at) - set(kept.values()) else f"{i}" for i in range(NUM_BINS)]
    few = LabelledBins(bins.append_column("image_sha256", pa.array(photos)), ())
    with pytest.raises(InputError, match=rf"for test, found {len(kept)} and {len(kept)}: "):
        split_bins(few, training_config(), NOTHING_SEEN)
