"""What Ray Train's workers hold of the cluster, and what they start with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import ray
from ray.train import ScalingConfig

from jobs.config.train import TrainConfig
from jobs.platform.cluster import await_free, await_slot, network_environment
from jobs.training.tasks import TASK_CPUS
from schemas.errors import InputError

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.01
"""Of a CPU, in Ray's books."""


def plan_workers(config: TrainConfig, num_runs: int = 1) -> tuple[ScalingConfig, int]:
    """Ray Train's scaling and the threads of a CPU worker, where `num_runs` trainings run at a time. CPU slots stay
    free for the tasks that decode photos, so that training never waits for a slot that it holds itself. Raises
    InputError where the cluster is too small."""
    per_batch = config.batch_size // config.micro_batch
    if config.num_workers > per_batch:
        raise InputError(
            f"--num-workers: expected at most {per_batch} (--batch-size {config.batch_size} holds {per_batch} "
            f"micro-batches of {config.micro_batch}), found {config.num_workers}; raise --batch-size or lower "
            "--micro-batch-size"
        )
    gpus = int(ray.cluster_resources().get("GPU", 0))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if gpus:
        if config.num_workers * num_runs > gpus:
            raise InputError(
                f"--num-workers: expected at most {gpus // num_runs}, the cluster's GPUs"
                + (f" ({gpus}) over the trials at a time" if num_runs > 1 else "")
                + f", found {config.num_workers}"
            )
        resources = [node["Resources"] for node in nodes if node["Resources"].get("GPU")]
        # half of a small node's CPUs at most: decoding needs the rest
        share = min([1.0, *(node.get("CPU", 0.0) / (2 * node["GPU"]) for node in resources)])
        if not share:
            raise InputError(
                "the cluster: expected CPUs on every node with GPUs, found one without; start it with some"
            )
        each = {"CPU": share, "GPU": 1}
        return ScalingConfig(num_workers=config.num_workers, use_gpu=True, resources_per_worker=each), 1
    sizes = [node["Resources"]["CPU"] for node in nodes if node["Resources"].get("CPU")] or [1.0]
    num_workers = config.num_workers * num_runs
    # the largest share by which all find room, so that a small head beside large nodes makes no worker smaller
    share = next((share for share in _shares(max(sizes)) if sum(_hosted(sizes, share)) >= num_workers), None)
    if share is None:
        room = sum(_hosted(sizes, LEAST_SHARE))
        raise InputError(
            f"--num-workers: expected at most {room // num_runs}, the workers that the nodes' CPUs hold"
            + (f" ({room}) over the trials at a time" if num_runs > 1 else "")
            + f", found {config.num_workers}"
        )
    # Ray may be told that its one machine has more CPUs than it has; of others it knows more than this process
    cores = (os.cpu_count() or 1) if len(nodes) == 1 else max(sizes)
    hosting = zip(sizes, _hosted(sizes, share), strict=True)
    threads = min(int(min(size, cores)) // min(room, num_workers) for size, room in hosting if room)
    scaling = ScalingConfig(num_workers=config.num_workers, use_gpu=False, resources_per_worker={"CPU": share})
    return scaling, max(1, threads)


def _shares(most: float) -> Iterator[float]:
    """CPUs of a worker, from many to few: Ray takes fractions below one only."""
    yield from map(float, range(int(most), 0, -1))
    yield from (hundredths / 100 for hundredths in range(99, 0, -1))


def _hosted(sizes: list[float], share: float) -> list[int]:
    """How many workers each node holds beside the tasks that decode for them."""
    return [int((size - (1.0 if size >= 2 else 0.5)) / share + 1e-9) for size in sizes]


def await_workers(config: TrainConfig, num_runs: int = 1) -> None:
    """Waits until the cluster has room for the workers and a task that decodes for them. Raises InputError where it is
    too small, GateError where other jobs don't leave enough of it."""
    await_slot(TASK_CPUS)  # for a task that waits a cluster grows, from no workers too
    scaling, threads = plan_workers(config, num_runs)
    device = "a GPU" if scaling.use_gpu else f"{threads} threads"
    logger.info("workers: %d, each with %s", num_runs * config.num_workers, device)
    needed = {name: num_runs * amount for name, amount in scaling.total_resources.items()}
    await_free({**needed, "CPU": needed["CPU"] + TASK_CPUS})


def worker_environment(threads: int) -> dict[str, str]:
    """Read by torch and Ray when a worker starts; setting the threads later is too late for part of torch."""
    return {
        **network_environment(threads),
        "MKL_NUM_THREADS": str(threads),
        # Decoding shares these cores: a thread that spins while it waits for the others takes theirs.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Ray Train would write every printed line twice.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
