from __future__ import annotations

import pytest
from pydantic import ValidationError

from model.recipe import Recipe


def test_photos_grow_to_the_bundles_size() -> None:
    sizes = [Recipe(image_size=112, max_epochs=20).image_size_of(epoch) for epoch in range(20)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 64
    assert sizes[10] == 80
    assert sizes.count(112) == 8
    for max_epochs in range(1, 6):
        assert Recipe(image_size=112, max_epochs=max_epochs).image_size_of(max_epochs - 1) == 112
    assert {Recipe(image_size=112, progressive_resizing=False).image_size_of(epoch) for epoch in range(30)} == {112}
    # pretrained weights are best after few epochs, which must be on the bundle's own size to be kept
    assert Recipe(image_size=112, weights="IMAGENET1K_V2").image_size_of(0) == 112


def test_patience_waits_for_the_learning_rate_to_come_down() -> None:
    recipe = Recipe(max_epochs=30, patience=4, weights="IMAGENET1K_V2")
    stops = [epoch for epoch in range(30) if recipe.is_out_of_patience(0, epoch)]
    assert stops == list(range(21, 29))  # four epochs after the eighteenth; the last one ends by itself
    assert [epoch for epoch in range(30) if recipe.is_out_of_patience(24, epoch)] == [28]


def test_a_batch_that_micro_batches_do_not_fill_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of --micro-batch-size"):
        Recipe(batch_size=48, micro_batch_size=32)
    assert Recipe(batch_size=16, micro_batch_size=32).micro_batch == 16
    with pytest.raises(ValidationError, match=r"--initialisation: expected none with --weights, found orthogonal"):
        Recipe(weights="w.safetensors", initialisation="orthogonal")
