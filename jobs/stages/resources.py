"""What each stage gets of the cluster, so that no stage waits for a slot that another one holds.

The logical CPUs of all stages together stay below what the cluster has: an actor pool that holds them all leaves no
slot for the tasks that feed it, and the job hangs without a message.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import ray

from model.processor import has_bfloat16
from schemas.errors import GateError, InputError

GPU_BATCH, CPU_BATCH = 256, 32
"""Photos per padded batch. Fixed per device kind, so that results don't depend on what is free."""


@dataclass(frozen=True)
class Resources:
    """The plan for one run."""

    device: Literal["cuda", "cpu"]
    num_scorers: int
    scorer_cpus: float
    scorer_gpus: float
    scorer_threads: int
    """Threads of one scoring actor: Ray would give it one per logical CPU that it asks for."""
    num_fetchers: int
    """Fetch-and-decode tasks at once."""
    fetcher_cpus: float
    small_task_cpus: float
    """For staging and the tasks of the second pass."""
    batch_size: int
    num_nodes: int


def plan_resources() -> Resources:
    """Divides what the connected cluster has. Raises GateError for a cluster without CPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [float(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0)]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if not cpus:
        raise GateError("the cluster has no CPUs: start workers, or leave RAY_ADDRESS unset to run on this machine")
    total = sum(cpus)
    if gpus:
        # Decoding is the scarce part beside a GPU: it gets every core that the scorers leave.
        scorer_cpus = min(1.0, total / (4 * gpus))
        left = total - gpus * scorer_cpus
        fetchers = max(2, int(left - 1))
        return Resources(
            "cuda", gpus, scorer_cpus, 1.0, 1, fetchers, 0.9 * left / fetchers, 0.1 * left / 4, GPU_BATCH, len(cpus)
        )
    # On CPUs the network needs thirty times what decoding needs. One scorer per node uses all its cores; the logical
    # CPUs that it doesn't hold only say how many fetch and staging tasks may run beside it.
    smallest = min(cpus)
    fetchers = 2 * len(cpus)
    return Resources(
        device="cpu",
        num_scorers=len(cpus),
        scorer_cpus=smallest / 2,
        scorer_gpus=0,
        scorer_threads=max(1, min(int(smallest), os.cpu_count() or 1)),
        num_fetchers=fetchers,
        fetcher_cpus=smallest / 8,
        small_task_cpus=smallest / 16,
        batch_size=CPU_BATCH,
        num_nodes=len(cpus),
    )


def resolve_precision(asked: Literal["auto", "fp32", "bf16", "fp16"], device: str) -> Literal["fp32", "bf16", "fp16"]:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32 (emulated bf16 is slower than fp32).

    Raises InputError for fp16 on a CPU, which no network is scored in.
    """
    if asked == "fp16" and device == "cpu":
        raise InputError("--precision fp16: expected a GPU in the cluster, found none; use auto, bf16 or fp32")
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bf16"
    return "bf16" if has_bfloat16() else "fp32"
