"""Where each second of a training went."""

from __future__ import annotations

import gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PHASES = (
    "wait for photos",
    "transfer",
    "forward",
    "backward",
    "optimiser",
    "validation",
    "checkpoint",
    "start and other",
)
"""Of the worker that trains (rank 0); they add up to its wall time."""
DATA_PHASES = ("fetch", "decode", "augment")
"""Of the CPU tasks that prepare photos beside it, summed over tasks; fetch: as far as decoding waited for it."""


class Stopwatch:
    """Adds up seconds by phase. On CUDA the queue is drained at a phase's end in sampled steps only, and those
    steps' shares are applied to the seconds of the others, so that measuring doesn't slow the training."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._started = time.perf_counter()
        self.sampled = True
        self.seconds = dict.fromkeys((*PHASES, *DATA_PHASES), 0.0)
        self._sampled_seconds = dict.fromkeys(PHASES, 0.0)
        self._earlier = dict.fromkeys(self.seconds, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures what is done within as part of the phase `name`, one of PHASES."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._cuda and self.sampled:
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - start
            self.seconds[name] += elapsed
            if self.sampled:
                self._sampled_seconds[name] += elapsed

    def settle(self) -> None:
        """Before a sampled step: the first phase of one must not be charged for what earlier steps have queued on a GPU."""
        if self._cuda:
            torch.cuda.synchronize()

    def add(self, name: str, seconds: float) -> None:
        """Seconds of a phase that others have measured, such as one of DATA_PHASES."""
        self.seconds[name] += seconds

    def add_earlier(self, name: str, seconds: float) -> None:
        """Seconds of the run before it was killed and continued."""
        self._earlier[name] += seconds

    def table(self) -> dict[str, float]:
        """Seconds by phase so far; the worker's own phases add up to its wall time."""
        seconds = dict(self.seconds)
        compute = ("transfer", "forward", "backward", "optimiser")
        measured = sum(self._sampled_seconds[name] for name in compute)
        if self._cuda and measured > 0:
            spent = sum(seconds[name] for name in compute)
            for name in compute:
                seconds[name] = spent * self._sampled_seconds[name] / measured
        wall = time.perf_counter() - self._started
        seconds["start and other"] = max(0.0, wall - sum(seconds[name] for name in PHASES[:-1]))
        return {name: value + self._earlier[name] for name, value in seconds.items()}


def profile_steps(num_steps: int, device: torch.device, keep: Callable[[bytes], None]) -> torch.profiler.profile:
    """A profiler, stepped after every step of a training, of `num_steps` steps after the first two; `keep` is given their
    trace, Chrome's JSON gzipped, as soon as they are done, or less of them at the end."""

    def export(profiler: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            keep(gzip.compress(path.read_bytes()))

    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=num_steps, repeat=1),
        on_trace_ready=export,
    )
