"""Weights either fit and load, or the message says what to do; and which are drawn, and which train."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.network import CountingNetwork, build_network, freeze, initialise, load_weights, set_training_mode
from model.optimisation import make_optimiser
from model.processor import gains_by_bfloat16
from model.recipe import Recipe
from schemas.errors import InputError


def test_the_head_has_one_output_per_class() -> None:
    network = build_network("resnet18", 7).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_fill_all_but_a_head_of_another_size(tmp_path: Path, suffix: str) -> None:
    source = build_network("resnet18", 1000)
    path = tmp_path / f"weights{suffix}"
    state = {name: value.contiguous() for name, value in source.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = build_network("resnet18", 7)
    head = network.fc.weight.clone()
    load_weights(network, str(path), "resnet18", path.read_bytes())
    assert torch.equal(network.conv1.weight, source.conv1.weight)
    assert torch.equal(network.fc.weight, head)


def test_half_a_head_is_none(tmp_path: Path) -> None:
    source = build_network("resnet18", 7)
    path = tmp_path / "weights.safetensors"
    save_file({n: v.contiguous() for n, v in source.state_dict().items() if n != "fc.bias"}, path)
    network = build_network("resnet18", 7)
    head = network.fc.weight.clone()
    load_weights(network, str(path), "resnet18", path.read_bytes())
    assert torch.equal(network.conv1.weight, source.conv1.weight)
    assert torch.equal(network.fc.weight, head)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({n: v.contiguous() for n, v in build_network("resnet34", 7).state_dict().items()}, path)
    with pytest.raises(InputError, match="don't fit resnet18"):
        load_weights(build_network("resnet18", 7), str(path), "resnet18", path.read_bytes())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = build_network("resnet18", 7)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], float("nan"))
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(InputError, match="not finite"):
        load_weights(network, str(path), "resnet18", path.read_bytes())


class _Exploit:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_a_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(_Exploit(), protocol=2))
    with pytest.raises(InputError):
        load_weights(build_network("resnet18", 7), str(path), "resnet18", path.read_bytes())
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1", b"a", b"sgu"])
def test_what_is_no_weights_file_is_an_input_error_without_unsafe_advice(content: bytes) -> None:
    with pytest.raises(InputError, match=r"weights w\.pth: ") as refused:
        load_weights(build_network("resnet18", 7), "w.pth", "resnet18", content)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("weights", ["IMAGENET9", "weights.bin"])
def test_a_name_that_torchvision_does_not_know_is_an_input_error(weights: str) -> None:
    with pytest.raises(InputError, match=r"neither a weights file by its name .*IMAGENET1K_V1.*none"):
        load_weights(build_network("resnet18", 7), weights, "resnet18")


def test_weights_without_counts_of_steps_load_as_torchvisions_oldest_ask(tmp_path: Path) -> None:
    source = build_network("resnet18", 1000)
    state = {name: value for name, value in source.state_dict().items() if "num_batches_tracked" not in name}
    assert len(state) == 102
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    network = build_network("resnet18", 7)
    load_weights(network, str(path), "resnet18", path.read_bytes())
    assert torch.equal(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_tensors_without_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({0: torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected a state_dict"):
        load_weights(build_network("resnet18", 7), str(path), "resnet18", path.read_bytes())


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
