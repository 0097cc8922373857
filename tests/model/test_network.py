"""Weights either fit and load, or the message says what to do."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.network import build_network, load_weights
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
