"""What the GPU of an audit waits for: one night with torch's profiler (CUPTI) beside the scorer.

    python -m tests.benchmarks.gpu_profile --manifest-uri M --bundle-uri B --output-uri EMPTY --json FILE

Recorded are 40 shards after the 320th, before which the photos are scored that had piled up while the scorer started. Of
that time: the share in which the GPU computes; in which it doesn't while a shard is with the scorer (its photos are copied
to pinned memory, sent, its answers fetched); and in which no shard is, so that the GPU waits for photos. Needs a machine
with one GPU and a night of 540 shards of 256 or more (138,240 photos): the profiler takes its time to start, and in a
night's last seconds cores are idle.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from jobs.stages import score
from tests.hooked_audit import run_hooked_audit

FIRST_CALL, NUM_CALLS = 320, 40
FILE_VARIABLE = "GPU_PROFILE_FILE"
Interval = tuple[float, float]


class Recorder:
    """Counts the scorer's calls; records from the FIRST_CALL-th on, for NUM_CALLS. Its thread owns the profiler, which is
    begun and ended by one and the same."""

    def __init__(self) -> None:
        self.lock, self.begin, self.done = threading.Lock(), threading.Event(), threading.Event()
        self.num_begun = self.num_recorded = 0
        self.recording = False
        self.calls: list[tuple[float, float, int]] = []
        self.thread = threading.Thread(target=self._record, daemon=True)
        self.thread.start()

    def call(self, compute: Any, scorer: score.ShardScorer, rows: pa.Table) -> pa.Table:
        with self.lock:
            self.num_begun += 1
            if self.num_begun == FIRST_CALL:
                self.begin.set()
            recorded = self.recording
        began = time.perf_counter()
        answer = compute(scorer, rows)
        with self.lock:
            self.calls.append((began, time.perf_counter(), rows.num_rows))
            self.num_recorded += recorded
            is_last = recorded and self.num_recorded == NUM_CALLS
        if is_last:
            self.done.set()
            self.thread.join()  # the night may end soon, and this process with it
        return answer

    def _record(self) -> None:
        self.begin.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            torch.cuda.synchronize()
            began = time.perf_counter()
            with self.lock:
                self.recording = True  # CUPTI takes its time to start; only calls that begin now count
            self.done.wait()
            ended = time.perf_counter()
        events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        # in microseconds
        spans = [(event.time_range.start, event.time_range.end, event.name) for event in events]
        kernels = union((start, end) for start, end, name in spans if not name.startswith(("Memcpy", "Memset")))
        sent = union((start, end) for start, end, name in spans if name.startswith("Memcpy HtoD"))
        calls = union(
            (max(start, began), min(end, ended)) for start, end, _ in self.calls if end > began and start < ended
        )
        wall = ended - began
        busy, with_scorer = length(kernels) / 1e6 / wall, length(calls) / wall
        figures = {
            "seconds": wall,
            "photos_per_second": sum(n for _, end, n in self.calls if began < end <= ended) / wall,
            "gpu_computes": busy,
            "shard_with_scorer_but_gpu_idle": max(0.0, with_scorer - busy),
            "gpu_waits_for_photos": 1 - max(with_scorer, busy),
            "transfers_to_gpu": length(sent) / 1e6 / wall,
            "transfers_beside_computing": overlap(sent, kernels) / max(1e-9, length(sent)),
        }
        Path(os.environ[FILE_VARIABLE]).write_text(json.dumps(figures, indent=1) + "\n")


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as intervals that don't overlap, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def length(intervals: list[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def overlap(first: list[Interval], second: list[Interval]) -> float:
    return length(first) + length(second) - length(union([*first, *second]))


def watch_scorer() -> None:
    """Ray calls it in each worker before its first task."""
    load, compute = score.ShardScorer.__init__, score.ShardScorer.__call__

    def load_and_watch(self: score.ShardScorer, *given: Any, **named: Any) -> None:
        load(self, *given, **named)
        self.recorder = Recorder()  # type: ignore[attr-defined]

    def recorded(self: score.ShardScorer, rows: pa.Table) -> pa.Table:
        return self.recorder.call(compute, self, rows)  # type: ignore[attr-defined]

    score.ShardScorer.__init__ = load_and_watch  # type: ignore[method-assign]
    score.ShardScorer.__call__ = recorded  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest-uri", required=True)
    parser.add_argument("--bundle-uri", required=True)
    parser.add_argument("--output-uri", required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    given = (
        "--manifest-uri",
        options.manifest_uri,
        "--bundle-uri",
        options.bundle_uri,
        "--output-uri",
        options.output_uri,
    )
    environment = {FILE_VARIABLE: str(options.json.absolute())}
    code = run_hooked_audit("tests.benchmarks.gpu_profile.watch_scorer", given, environment=environment)
    if not options.json.is_file():
        raise SystemExit(f"expected a night of well over {FIRST_CALL + NUM_CALLS} shards, found one too short")
    print(options.json.read_text())
    return code


if __name__ == "__main__":
    raise SystemExit(main())
