from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from jobs.platform import storage
from jobs.training.bundle import all_photos
from jobs.training.labelled_bins import LabelledBins
from jobs.training.splits import assign_splits, split_bins
from jobs.training.start import read_start
from model.bundle_files import read_bundle_info
from schemas.errors import InputError
from tests.dots import NUM_BINS, few_bins, training_config
from tests.dump import write_bundle


def test_what_a_bundles_weights_have_learned_from_is_not_asked_for_and_stays_known(tmp_path: Path) -> None:
    bins = few_bins().append_column("image_sha256", pa.array([f"{i:064x}" for i in range(NUM_BINS)]))
    splits = assign_splits(bins, training_config())["split"].to_pylist()
    trained, selected, tested = (splits.index(split) for split in ("train", "selection", "test"))
    before = {trained: "test", selected: "selection", tested: "train", NUM_BINS: "selection", NUM_BINS + 1: "test"}
    seen = pa.table(
        {
            "image_sha256": [f"{i:064x}" for i in before],
            "bin_id": [f"before-{i}" for i in before],
            "split": list(before.values()),
        }
    )
    parent = write_bundle(tmp_path / "parent", seen=seen)
    start = read_start(training_config(weights=str(parent / "weights.safetensors"), top_class=6))
    assert start.bundle_id == read_bundle_info(parent).bundle_id
    assert start.weights == read_bundle_info(parent).weights_sha256
    found = split_bins(LabelledBins(bins, ()), training_config(), start.seen)
    assert found.left_out == {"photo_of_another_split": 1}
    gone = set(bins["bin_id"].to_pylist()) - set(found.table["bin_id"].to_pylist())
    assert gone == {bins["bin_id"][tested].as_py()}
    photos = all_photos(found.table, start.seen)
    images = {row["image_sha256"]: row["split"] for row in photos.to_pylist()}
    assert len(images) == photos.num_rows == NUM_BINS - 1 + 2
    expected = {trained: "train", selected: "selection", tested: "train", NUM_BINS: "selection"}
    assert {i: images.get(f"{i:064x}") for i in before} == expected | {NUM_BINS + 1: None}


def test_weights_are_drawn_by_the_seed() -> None:
    first, again, other = (read_start(training_config(weights="none", seed=seed)).state for seed in (1, 1, 2))
    (name,) = (name for name in first if name.endswith("conv1.weight") and "layer" not in name)
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize("weights", ["missing.pth", "missing.safetensors"])
def test_weights_that_are_nowhere_are_an_input_error(weights: str) -> None:
    with pytest.raises(InputError, match=f"weights: no file {weights}; .*'none'"):
        read_start(training_config(weights=weights))


def test_weights_may_lie_on_s3(tmp_path: Path, bucket: str) -> None:
    parent = write_bundle(tmp_path / "parent")
    storage.upload_folder(parent, f"{bucket}/parent", last="bundle.json")
    start = read_start(training_config(weights=f"{bucket}/parent/weights.safetensors", top_class=6))
    local = read_start(training_config(weights=str(parent / "weights.safetensors"), top_class=6))
    assert (start.bundle_id, start.weights) == (local.bundle_id, local.weights)
    assert all(torch.equal(value, local.state[name]) for name, value in start.state.items())
    with pytest.raises(InputError, match=f"weights: no file {bucket}/nothing.pth"):
        read_start(training_config(weights=f"{bucket}/nothing.pth"))
