"""What only a GPU shows; skipped without one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.bundle import Bundle, load_bundle
from model.inference import MixedNetwork, prepare_network
from model.scoring import Precision, Scorer
from model.training import STATE_FILE
from tests.dump import write_bundle
from tests.model.tiny_training import make_loop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def _trained(folder: Path) -> Bundle:
    """With normalisation as after a training: as drawn, residual branches give 0, and four convolutions are all that
    answers."""
    bundle = load_bundle(write_bundle(folder))
    torch.manual_seed(1)
    for module in bundle.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.uniform_(-0.2, 0.2)
    return bundle


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.5), ("fp16", 0.1)])
def test_a_gpu_answers_as_a_processor_and_alone_as_in_company(
    tmp_path: Path, precision: Precision, tolerance: float
) -> None:
    bundle = _trained(tmp_path)
    scorer = Scorer(bundle, device="cuda", precision=precision, batch_size=8)
    pixels = np.random.default_rng(5).integers(0, 256, (203, 32, 32, 3), dtype=np.uint8)
    together = scorer.logits(pixels)
    expected = Scorer(_trained(tmp_path), device="cpu", precision="fp32", batch_size=8).logits(pixels)
    spread = float(expected.std(axis=0).mean())  # what tells photos apart
    assert np.abs(together - expected).max() < tolerance * spread
    assert np.array_equal(together, np.concatenate([scorer.logits(photo[None]) for photo in pixels]))


def test_threads_share_a_gpu(tmp_path: Path) -> None:
    scorer = Scorer(_trained(tmp_path), device="cuda", precision="bf16", batch_size=8)
    shards = np.random.default_rng(5).integers(0, 256, (20, 12, 32, 32, 3), dtype=np.uint8)
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(scorer.logits, shards))
    assert np.array_equal(together, [scorer.logits(shard) for shard in shards])


def test_weights_rounded_once_answer_as_those_that_autocast_rounds(tmp_path: Path) -> None:
    network, cuda = _trained(tmp_path).network.eval(), torch.device("cuda")
    inputs = torch.randn(8, 3, 32, 32, device=cuda).to(memory_format=torch.channels_last)
    ready = prepare_network(network, cuda, torch.bfloat16)
    rounded_anew = MixedNetwork(network.to(cuda, memory_format=torch.channels_last), torch.bfloat16)  # type: ignore[call-overload]
    with torch.inference_mode():
        assert torch.equal(ready(inputs), rounded_anew(inputs))


def test_a_training_on_a_gpu_goes_as_on_a_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_cpu, on_gpu = (make_loop(monkeypatch, device=device) for device in ("cpu", "cuda"))
    for loop in (on_cpu, on_gpu):
        loop.run()
    assert on_gpu.seen.step_losses[0] == pytest.approx(on_cpu.seen.step_losses[0], rel=1e-3)
    ranges = [loop.evaluation.activation_ranges(loop.progress.best_state) for loop in (on_cpu, on_gpu)]
    assert set(ranges[0]) == set(ranges[1])
    torch.save(on_gpu.state(), tmp_path / STATE_FILE)
    resumed = make_loop(monkeypatch, checkpoint=tmp_path)
    resumed.resume()
    for name, value in on_gpu.learner.average.state.items():
        assert torch.equal(resumed.learner.average.state[name], value.cpu())
