import copy

import pytest
import torch
from torch import nn

from model.inference import FusedBlock, MixedNetwork, can_fuse, prepare_network
from model.network import build_network

CPU = torch.device("cpu")


@pytest.fixture(params=["resnet18", "resnet50"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Statistics as after training: none of them 0 or 1, so that nothing folds by chance."""
    torch.manual_seed(1)
    network = build_network(request.param, 7).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
            ):
                assert values is not None
                values.uniform_(low, high)
    return network


def test_a_prepared_network_answers_as_the_trained_one(network: nn.Module) -> None:
    photos = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    ready = prepare_network(network, CPU, torch.float32)
    with torch.inference_mode():
        expected, found = network(photos), ready(photos)
    # and that one stays as it was
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_convolutions_are_fused_where_one_dnn_computes_the_type(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_fused(dtype: torch.dtype) -> bool:
        return any(isinstance(part, FusedBlock) for part in prepare_network(network, CPU, dtype).modules())

    assert is_fused(torch.float32) == torch.backends.mkldnn.is_available()
    assert is_fused(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not can_fuse(torch.float16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not is_fused(torch.float32)


def test_the_head_stays_in_float32(network: nn.Module) -> None:
    ready = prepare_network(network, CPU, torch.bfloat16)
    assert {values.dtype for values in ready.fc.parameters()} == {torch.float32}  # type: ignore[union-attr]
    with torch.inference_mode():
        assert ready(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.float32


def test_on_a_gpu_the_network_is_computed_as_in_training(network: nn.Module) -> None:
    ready = prepare_network(network, torch.device("meta"), torch.bfloat16)
    assert isinstance(ready, MixedNetwork)
    assert any(isinstance(module, nn.BatchNorm2d) for module in ready.modules())
    dtypes = {(type(module), values.dtype) for module in ready.modules() for values in module.parameters(recurse=False)}
    assert dtypes == {(nn.Conv2d, torch.bfloat16), (nn.BatchNorm2d, torch.float32), (nn.Linear, torch.float32)}
    photos = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network(photos)
        mixed = MixedNetwork(copy.deepcopy(network), torch.bfloat16)(photos)
        whole = MixedNetwork(copy.deepcopy(network), torch.float32)(photos)
    assert mixed.dtype == torch.float32
    assert torch.equal(whole, expected)
    assert 0 < float((mixed - expected).abs().max()) < 0.05 * float(expected.abs().max())
