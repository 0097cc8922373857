"""Targets, augmentation, learning rates and the average of the weights."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from model.images import resize_image
from model.network import CountingNetwork, build_network, freeze, initialise, set_training_mode
from model.optimisation import WeightAverage, averaging_decay, learning_rate_at, make_optimiser, set_momentum
from model.processor import gains_by_bfloat16
from model.profile import PHASES, Stopwatch
from model.recipe import Recipe
from model.targets import classes_of, count_rows, count_targets, quantity_targets
from model.train_worker import gains_in_bfloat16
from model.transforms import augment
from schemas.bundle import Preprocessing

HALF = Preprocessing(image_size=48)


def test_targets_sum_to_one_and_peak_at_the_record() -> None:
    targets = count_targets(6, "ordinal")
    assert targets.shape == (16, 7)
    assert np.allclose(targets.sum(axis=1), 1)
    assert targets.argmax(axis=1).tolist() == classes_of(np.arange(16), 6).tolist()
    assert np.allclose(quantity_targets().sum(axis=1), 1)


@pytest.mark.parametrize("top_class", [6, 14, 20])
def test_the_top_class_is_surer_the_further_the_record_lies_above_it(top_class: int) -> None:
    rows = count_rows(np.arange(top_class, top_class + 30), top_class)
    top = count_targets(top_class, "ordinal")[rows, top_class]
    assert (np.diff(top) > 0)[:4].all()
    assert top[0] < 0.95
    assert top[4:].min() > 0.99


def test_class_targets_are_one_hot() -> None:
    targets = count_targets(6, "classes")
    assert set(np.unique(targets)) == {0.0, 1.0}
    assert targets.argmax(axis=1).tolist() == classes_of(np.arange(16), 6).tolist()


@pytest.mark.parametrize("top_class", [3, 15, 20])
def test_every_record_is_taught_its_own_class(top_class: int) -> None:
    records = np.arange(40)
    taught = count_targets(top_class, "classes")[count_rows(records, top_class)]
    assert taught.argmax(axis=1).tolist() == classes_of(records, top_class).tolist()


@pytest.mark.parametrize(("major", "native"), [(7, False), (8, True)])
def test_a_card_that_only_emulates_bfloat16_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, major: int, native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    assert gains_in_bfloat16(torch.device("cuda")) is native


def test_augmentation_is_keyed_and_gives_the_size_that_was_asked_for() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    before = photo.copy()
    first = augment(photo, 17, 1.0, 32)
    assert np.array_equal(first, augment(photo, 17, 1.0, 32))
    assert not np.array_equal(first, augment(photo, 18, 1.0, 32))
    assert np.array_equal(photo, before)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8


def test_without_strength_a_photo_is_only_mirrored() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    plain = resize_image(photo, HALF)
    for key in range(20):
        found = augment(photo, key, 0.0, HALF.image_size).astype(int)
        assert min(abs(found - plain).max(), abs(found - plain[:, ::-1]).max()) <= 1


@pytest.mark.parametrize(
    ("shape", "side", "most"),
    [
        ((90, 130), 48, 0.5),
        ((130, 60), 48, 0.5),
        ((334, 468), 224, 0.5),
        ((200, 280), 48, 4),  # shrunk first
    ],
    ids=str,
)
def test_a_photo_that_is_only_mirrored_is_the_one_that_the_network_is_asked_about(
    shape: tuple[int, int], side: int, most: float
) -> None:
    """To the pixel, of noise as fine as the photo: interpolated at the final size it would differ by 20 levels."""
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    plain = resize_image(photo, Preprocessing(image_size=side))
    for key in range(10):
        found = augment(photo, key, 0.0, side).astype(int)
        assert min(abs(found - plain).mean(), abs(found - plain[:, ::-1]).mean()) < most


@pytest.mark.parametrize(
    ("shape", "side"), [((96, 96), 48), ((90, 130), 48), ((300, 400), 48), ((334, 468), 224)], ids=str
)
def test_augmented_photos_are_as_sharp_as_those_that_the_network_is_asked_about(
    shape: tuple[int, int], side: int
) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    photo = cv2.GaussianBlur(photo, (0, 0), max(1.5, 0.75 * min(shape) / side))
    plain = detail(resize_image(photo, Preprocessing(image_size=side)))
    ratios = [detail(augment(photo, key, 0.1, side)) / plain for key in range(40)]
    assert 0.9 < np.median(ratios) < 1.1


def detail(photo: np.ndarray) -> float:
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    # contrast cancels out: augmentation changes the light too
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_64F)).mean() / grey.std())


def test_augmentation_mirrors_half_of_the_photos_and_keeps_the_content_in_view() -> None:
    photo = np.zeros((96, 96, 3), np.uint8)
    photo[36:60, 12:30] = 200
    found = [augment(photo, key, 1.0, HALF.image_size).astype(int) for key in range(200)]
    assert 0.4 < np.mean([one[:, :24].sum() > one[:, 24:].sum() for one in found]) < 0.6
    assert min(one.sum() for one in found) > 0.4 * resize_image(photo, HALF).sum()


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(schedule: str) -> None:
    recipe = Recipe(schedule=schedule, learning_rate=0.01)  # type: ignore[arg-type]
    rates = [learning_rate_at(step, 100, recipe) for step in range(100)]
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates[0] < 0.004
    assert rates[-1] < 1e-4
    peak = int(np.argmax(rates))
    assert all(np.diff(rates[: peak + 1]) > 0)
    assert all(np.diff(rates[peak + 1 :]) < 0)


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


def test_gradients_on_the_smallest_photos_are_finite_in_the_precision_of_training() -> None:
    torch.manual_seed(0)
    network = CountingNetwork(build_network("resnet18", 7), auxiliary=False)
    initialise(network, "kaiming-normal")
    network.to(memory_format=torch.channels_last).train()
    smallest = next(limit.ge for limit in Recipe.model_fields["image_size"].metadata if hasattr(limit, "ge"))
    optimiser = make_optimiser(network, Recipe())
    for _ in range(2):
        inputs = torch.randn(8, 3, smallest, smallest).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=gains_by_bfloat16()):
            logits, _ = network(inputs)
            torch.nn.functional.cross_entropy(logits, torch.arange(8) % 7).backward()
        assert float(torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)) < 1000
        optimiser.step()
        optimiser.zero_grad()


def test_a_batch_that_micro_batches_do_not_fill_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of --micro-batch-size"):
        Recipe(batch_size=48, micro_batch_size=32)
    assert Recipe(batch_size=16, micro_batch_size=32).micro_batch == 16
    with pytest.raises(ValidationError, match=r"--initialisation: expected none with --weights, found orthogonal"):
        Recipe(weights="w.safetensors", initialisation="orthogonal")


@pytest.fixture
def network() -> CountingNetwork:
    torch.manual_seed(0)
    return CountingNetwork(build_network("resnet18", 7), auxiliary=True)


def test_unfreezing_a_stage_trains_it_and_what_follows(network: CountingNetwork) -> None:
    freeze(network, "layer4")
    trained = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad and "." in name}
    assert {"layer4", "fc"} <= trained
    assert not {"conv1", "bn1", "layer1", "layer2", "layer3"} & trained
    set_training_mode(network, "layer4")
    assert not network.resnet.bn1.training
    assert network.resnet.layer4[0].bn1.training
    freeze(network, "all")
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("distribution", ["kaiming-normal", "kaiming-uniform", "xavier-normal", "orthogonal"])
def test_initial_weights_are_drawn_from_the_seed(distribution: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last))
    before = network[0].weight.detach().clone()
    torch.manual_seed(5)
    initialise(network, distribution)
    first = network[0].weight.detach().clone()
    torch.manual_seed(5)
    initialise(network, distribution)
    assert torch.equal(first, network[0].weight)
    assert not torch.equal(first, before)


@pytest.mark.parametrize(
    ("distribution", "spread"),
    [
        ("kaiming-normal", np.sqrt(2 / (64 * 9))),
        ("kaiming-uniform", np.sqrt(2 / (64 * 9))),
        ("xavier-normal", np.sqrt(2 / ((32 + 64) * 9))),
        ("orthogonal", np.sqrt(1 / (32 * 9))),
    ],
)
def test_initial_weights_have_the_spread_and_the_shape_of_their_distribution(distribution: str, spread: float) -> None:
    network = nn.Sequential(nn.Conv2d(32, 64, 3))
    torch.manual_seed(5)
    initialise(network, distribution)
    filters = network[0].weight.detach().reshape(64, -1)
    assert float(filters.std()) == pytest.approx(spread, rel=0.03)
    kurtosis = float((filters**4).mean() / (filters**2).mean() ** 2)  # 1.8 of a uniform distribution, 3 of a normal one
    assert kurtosis == pytest.approx(1.8 if distribution == "kaiming-uniform" else 3, abs=0.2)
    is_orthogonal = torch.allclose(filters @ filters.T, torch.eye(64), atol=1e-4)
    assert is_orthogonal == (distribution == "orthogonal")


def test_the_optimiser_and_the_schedule_are_those_asked_for(network: CountingNetwork) -> None:
    sgd = make_optimiser(network, Recipe(optimiser="sgd", learning_rate=0.05))
    assert isinstance(sgd, torch.optim.SGD)
    assert all((group["lr"], group["momentum"], group["nesterov"]) == (0.05, 0.9, True) for group in sgd.param_groups)
    assert isinstance(make_optimiser(network, Recipe()), torch.optim.AdamW)
    for schedule, peak in (("one-cycle", 25), ("cosine", 5)):
        rates = [learning_rate_at(step, 100, Recipe(schedule=schedule)) for step in range(100)]
        assert abs(int(np.argmax(rates)) - peak) <= 1
        assert rates[-1] < 1e-5 < rates[0] < max(rates) == pytest.approx(1e-3)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_running_statistics_are_those_of_a_worker_for_each_micro_batch(number: int) -> None:
    batches = [
        torch.randn((8, 4, 5, 5), generator=torch.Generator().manual_seed(seed)) + seed for seed in range(number)
    ]
    together, apart = nn.BatchNorm2d(4), [nn.BatchNorm2d(4) for _ in batches]
    for _ in range(3):
        for index, batch in enumerate(batches):
            set_momentum([together], index, number)
            together(batch)
        for norm, batch in zip(apart, batches, strict=True):
            norm(batch)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in apart]).mean(dim=0)
        assert torch.allclose(getattr(together, name), mean, atol=1e-6)


def test_the_average_follows_the_weights(network: CountingNetwork) -> None:
    average = WeightAverage(network, decay=0.9)
    with torch.no_grad():
        network.resnet.fc.bias.fill_(1.0)
    for _ in range(100):
        average.update()
    assert torch.allclose(average.state["resnet.fc.bias"], torch.ones(7), atol=1e-3)
    assert averaging_decay(Recipe(averaging_epochs=0), 100) == 0.0
    assert averaging_decay(Recipe(averaging_epochs=1), 100) == pytest.approx(0.99, abs=1e-3)


def test_the_profile_adds_up_to_the_wall_time() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.phase("forward"):
        sum(range(200_000))
    watch.add("decode", 5.0)
    watch.add_earlier("forward", 100.0)
    table = watch.table()
    assert table["decode"] == 5.0
    assert table["forward"] > 100.0
    assert sum(table[name] for name in PHASES) == pytest.approx(100.0, abs=5.0)


def test_augmentation_leaves_the_top_of_a_bin_at_the_top() -> None:
    photo = np.zeros((96, 96, 3), np.uint8)
    photo[8:24, 40:56] = 200
    found = [augment(photo, key, 1.0, HALF.image_size).astype(float).sum(axis=(1, 2)) for key in range(100)]
    assert max(rows @ np.arange(48) / rows.sum() for rows in found) < 20
