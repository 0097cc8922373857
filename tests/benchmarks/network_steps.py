"""What each step of the network's path gives, one after the other: a ResNet50 at 224 pixels, on this machine's GPU or CPUs.

    python -m tests.benchmarks.network_steps [--json FILE]

On a GPU a call gets what the audit's scorer gets, 256 photos in ordinary memory, and answers with logits in ordinary
memory; beside it the network alone, on photos that lie on the GPU already; all with cuDNN's deterministic kernels, as the
audit needs them. On CPUs a call gets 32 photos, normalised.
Photos per second, medians of interleaved repeats with their range.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import nn

from jobs.stages.resources import CPU_BATCH, GPU_BATCH
from model.bundle import Bundle, load_bundle
from model.inference import MixedNetwork, fold_normalisation, prepare_network
from model.quantisation import activation_ranges, quantise_network
from model.scoring import Scorer, normalisation, to_inputs
from tests.benchmarks.audit_inputs import make_bundle

REPEATS = 4
"""The first of them warms up and is not counted."""
SIDE = 224
NUM_SHARDS = 8
"""Of different photos: the same ones over and over would stay in caches."""
Call = Callable[[], int]
"""Scores some photos; returns how many."""


def cpu_steps(bundle: Bundle) -> dict[str, Call]:
    network, cores = bundle.network.eval().requires_grad_(False), os.cpu_count() or 1
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    photos = torch.randn(CPU_BATCH, 3, SIDE, SIDE)
    last = photos.to(memory_format=torch.channels_last)
    ranges = activation_ranges(network, [photos])
    cpu = torch.device("cpu")

    def call(network: nn.Module, inputs: torch.Tensor, threads: int) -> Call:
        def score() -> int:
            torch.set_num_threads(threads)
            network(inputs)
            return len(inputs)

        return score

    return {
        "one thread, as a Ray actor has it": call(plain, photos, 1),
        f"{cores} threads": call(plain, photos, cores),
        "channels_last": call(network, last, cores),
        "normalisation folded into the convolutions": call(fold_normalisation(copy.deepcopy(network)), last, cores),
        "sums and cuts inside oneDNN's convolutions": call(prepare_network(network, cpu, torch.float32), last, cores),
        "the same in bfloat16": call(prepare_network(network, cpu, torch.bfloat16), last.bfloat16(), cores),
        "in 8-bit integers": call(quantise_network(network, ranges), last, cores),
    }


class GpuScorer:
    """Scores a shard as far as a step goes."""

    def __init__(self, bundle: Bundle, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.network = network
        self.scale, self.shift = normalisation(bundle.info.preprocessing, torch.device("cuda"))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.on_gpu(torch.from_numpy(pixels).to("cuda")).cpu().numpy()

    def on_gpu(self, photos: torch.Tensor) -> torch.Tensor:
        return self.network(to_inputs(photos, self.scale, self.shift))


def as_graph(compute: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> Callable[..., torch.Tensor]:
    """One CUDA graph of `compute` (docs.pytorch.org/docs/stable/notes/cuda.html). What it gives is overwritten."""
    inputs, aside = example.clone(), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            compute(inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute(inputs)

    def replay(photos: torch.Tensor) -> torch.Tensor:
        inputs.copy_(photos)
        graph.replay()
        return outputs

    return replay


def gpu_steps(bundle: Bundle, *, compiled: bool) -> dict[str, Call]:
    """From ordinary memory and back, then on the GPU alone."""
    cuda, half = torch.device("cuda"), torch.bfloat16
    shards = cycle(np.random.default_rng(0).integers(0, 256, (NUM_SHARDS, GPU_BATCH, SIDE, SIDE, 3), dtype=np.uint8))
    resident = cycle([torch.from_numpy(next(shards)).to(cuda) for _ in range(NUM_SHARDS)])
    original = bundle.network.eval().requires_grad_(False)
    plain = copy.deepcopy(original).to(cuda, memory_format=torch.contiguous_format)
    folded = fold_normalisation(copy.deepcopy(original)).to(cuda, half, memory_format=torch.channels_last)
    mixed = MixedNetwork(copy.deepcopy(plain), half)
    networks: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "float32 (its convolutions in TF32)": lambda inputs: plain(inputs.contiguous()),
        "bfloat16 by autocast": lambda inputs: mixed(inputs.contiguous()),
        "channels_last (as jobs.audit)": prepare_network(original, cuda, half),
        "tried: normalisation folded, weights in bfloat16": lambda inputs: folded(inputs.to(half)).float(),
    }
    scorers = {name: GpuScorer(bundle, network) for name, network in networks.items()}
    ours = Scorer(bundle, device="cuda", precision="bf16", batch_size=GPU_BATCH)

    def call(scorer: Callable[[np.ndarray], np.ndarray]) -> Call:
        return lambda: len(scorer(next(shards)))

    def alone(network: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        def score() -> int:
            done = sum(len(network(next(resident))) for _ in range(8))
            torch.cuda.synchronize()
            return done

        return score

    steps = {name: call(scorer) for name, scorer in scorers.items()}
    steps["photos sent from pinned memory (as jobs.audit)"] = call(ours.logits)
    steps |= {f"network alone: {name}": alone(scorer.on_gpu) for name, scorer in scorers.items()}
    audited = scorers["channels_last (as jobs.audit)"]
    steps["network alone: tried: one CUDA graph"] = alone(as_graph(audited.on_gpu, next(resident)))
    if compiled:
        began = time.perf_counter()
        fast = torch.compile(audited.on_gpu)
        fast(next(resident))
        torch.cuda.synchronize()
        steps[f"network alone: tried: torch.compile ({time.perf_counter() - began:.0f} s to compile)"] = alone(fast)
    return steps


@torch.inference_mode()
def measure(steps: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = defaultdict(list)
    for repeat in range(REPEATS):
        for name, call in steps.items():
            call()
            began, done = time.perf_counter(), 0
            while not done or time.perf_counter() - began < seconds:
                done += call()
            if repeat:
                rates[name].append(done / (time.perf_counter() - began))
    return dict(rates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--compiled", action="store_true", help="on a GPU, torch.compile beside the CUDA graph")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        bundle = load_bundle(make_bundle(Path(name) / "bundle"))
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        steps = gpu_steps(bundle, compiled=options.compiled)
    else:
        steps = cpu_steps(bundle)
    rates = measure(steps, options.seconds)
    print(f"{'':60}{'photos/s':>10}{'from':>10}{'to':>10}")
    for name, values in rates.items():
        print(f"{name:60}{statistics.median(values):10.1f}{min(values):10.1f}{max(values):10.1f}")
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
