"""Numbers of 8 bits between the convolutions: nearly the same answers, and no others for the same photo."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import processor
from model.bundle import load_bundle
from model.network import build_network
from model.processor import check_int8, multiplies_int8
from model.quantisation import Grid, activation_ranges, quantise_network
from model.scoring import Scorer
from schemas.errors import InputError
from tests.dump import write_bundle
from tests.model.test_bundle import save

needs_vnni = pytest.mark.skipif(not multiplies_int8(), reason="this processor has no VNNI")


@pytest.fixture(params=["resnet18", "resnet50"])
def network(request: pytest.FixtureRequest) -> torch.nn.Module:
    """No residual branch starts at zero, so that every convolution has a say."""
    torch.manual_seed(1)
    network = build_network(request.param, 7).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.2, 0.6)
            module.bias.uniform_(-0.2, 0.2)
    return network


def photos(n: int) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(n, 3, 64, 64).to(memory_format=torch.channels_last)


def test_a_grid_covers_its_range_and_has_zero_on_it() -> None:
    grid = Grid.over((-1.0, 3.0))
    assert (grid.scale, grid.zero_point) == (pytest.approx(4 / 255), 64)
    assert Grid.over((0.0, 5.1)) == (pytest.approx(0.02), 0)
    assert Grid.over((0.0, 0.0)).zero_point == 0


def test_ranges_are_known_of_all_that_is_rounded(network: torch.nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ranges = activation_ranges(network, [photos(4), photos(2)])
    blocks = [name for name in ranges if name.count(".") == 1]
    assert len(blocks) == (8 if len(ranges) == 20 else 16)
    assert {"maxpool", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1"} <= set(ranges)
    assert all(low <= 0 < high for low, high in ranges.values())
    assert all(ranges[name][0] == 0 for name in ("maxpool", *blocks))  # behind a cut at zero
    # the network stays as it was
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@needs_vnni
def test_a_quantised_network_answers_nearly_as_the_trained_one(network: torch.nn.Module) -> None:
    inputs = photos(16)
    ready = quantise_network(network, activation_ranges(network, [inputs]))
    with torch.inference_mode():
        expected, found = network(inputs), ready(inputs)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().mean()) < 0.01 * float(expected.abs().mean())


@needs_vnni
def test_ranges_of_other_activations_spoil_the_answers(network: torch.nn.Module) -> None:
    inputs = photos(8)
    ranges = activation_ranges(network, [inputs])
    narrow = {name: (low / 50, high / 50) for name, (low, high) in ranges.items()}
    with torch.inference_mode():
        expected, found = network(inputs), quantise_network(network, narrow)(inputs)
    assert float((found - expected).abs().mean()) > 0.1 * float(expected.abs().mean())


@needs_vnni
def test_a_photo_scores_the_same_alone_and_in_any_company(tmp_path: Path) -> None:
    scorer = Scorer(load_bundle(write_bundle(tmp_path)), device="cpu", precision="int8", batch_size=8)
    pixels = np.random.default_rng(5).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    together = scorer.score(pixels)
    assert len(np.unique(together[:, 0])) > 1
    assert np.array_equal(together, np.concatenate([scorer.score(pixels[i : i + 1]) for i in range(21)]))


def test_int8_is_refused_where_it_cannot_be_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_int8("cpu", has_vnni=True)
    with pytest.raises(InputError, match="expected CPUs to score on, found GPUs"):
        check_int8("cuda", has_vnni=True)
    monkeypatch.setattr(processor, "_first_processor", lambda: {"flags": "avx2 avx512f"})
    with pytest.raises(InputError, match="expected processors with VNNI"):
        Scorer(load_bundle(write_bundle(tmp_path)), device="cpu", precision="int8", batch_size=4)


def test_the_bundle_s_id_covers_its_ranges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 7)
    ids = [
        save(tmp_path / str(number), network, **changes).bundle_id
        for number, changes in enumerate([{}, {"activation_ranges": {"maxpool": [0, 1]}}])
    ]
    assert ids[0] != ids[1]
