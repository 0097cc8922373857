"""What each stage gets of clusters of all shapes. `ray.nodes` is stubbed: the shapes are not to be had here."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest
import ray

from jobs.config.train import TrainConfig
from jobs.platform import cluster
from jobs.platform.cluster import await_free
from jobs.stages.resources import CPU_BATCH, Resources, plan_resources
from jobs.training.workers import plan_workers
from schemas.errors import GateError, InputError


def _plan(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> Resources:
    dead = {"Alive": False, "Resources": {"CPU": 1, "GPU": 1}}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes] + [dead])
    return plan_resources()


def test_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _plan(monkeypatch, {"CPU": 2}) == Resources(
        device="cpu",
        num_scorers=1,
        scorer_cpus=1.2,
        scorer_gpus=0,
        scorer_threads=2,
        num_fetchers=2,
        fetcher_cpus=0.25,
        small_task_cpus=0.125,
        batch_size=CPU_BATCH,
        num_nodes=1,
    )


@pytest.mark.parametrize(
    ("sizes", "num_scorers", "threads"),
    [([16], 1, 16), ([0, 16, 16], 2, 16), ([2, 64], 33, 2), ([16, 24], 2, 16), ([0.5, 1], 3, 1)],
    ids=str,
)
def test_scorers_on_cpus(monkeypatch: pytest.MonkeyPatch, sizes: list[float], num_scorers: int, threads: int) -> None:
    plan = _plan(monkeypatch, *({"CPU": size} for size in sizes))
    assert (plan.num_scorers, plan.scorer_threads) == (num_scorers, threads)
    _check_that_all_fit(plan, [(size, 0) for size in sizes])


@pytest.mark.parametrize(
    "sizes",
    [
        [(2, 1)],
        [(16, 1)],
        [(64, 8)],
        [(64, 0), (4, 8)],
        [(1, 1)] * 10,
        [(8, 0), (96, 8), (96, 8), (1, 1)],
    ],
    ids=str,
)
def test_a_scorer_for_each_gpu(monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[float, int]]) -> None:
    plan = _plan(monkeypatch, *({"CPU": cpus, "GPU": gpus} for cpus, gpus in sizes))
    assert (plan.device, plan.num_scorers) == ("cuda", sum(gpus for _, gpus in sizes))
    _check_that_all_fit(plan, sizes)


def _check_that_all_fit(plan: Resources, sizes: list[tuple[float, int]]) -> None:
    """Each node holds its scorers and beside them a task of each kind, and the cluster all tasks at once."""
    placed, left = 0, []
    for cpus, gpus in sizes:
        if not cpus:
            continue
        own = gpus if plan.device == "cuda" else int(cpus / (plan.scorer_cpus / 0.6))
        placed += own
        left.append(cpus - own * plan.scorer_cpus)
    assert placed == plan.num_scorers
    assert min(left) >= plan.fetcher_cpus + plan.small_task_cpus
    assert plan.num_fetchers >= 2
    assert sum(left) >= plan.num_fetchers * plan.fetcher_cpus + plan.small_task_cpus


@pytest.mark.parametrize(
    ("sizes", "num_fetchers"), [([4], 2), ([8], 2), ([16], 4), ([64], 16), ([2, 64], 66), ([16, 24], 8)], ids=str
)
def test_photos_are_decoded_on_one_core_of_four(
    monkeypatch: pytest.MonkeyPatch, sizes: list[float], num_fetchers: int
) -> None:
    assert _plan(monkeypatch, *({"CPU": size} for size in sizes)).num_fetchers == num_fetchers


@pytest.mark.parametrize("sizes", [[2, 64], [2], [16], [0, 16]], ids=str)
def test_two_scorers_of_one_job_or_of_two_never_take_a_small_node(
    sizes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(monkeypatch, *({"CPU": size} for size in sizes))
    assert 2 * plan.scorer_cpus > min(size for size in sizes if size)


def test_what_no_scorer_fits_into_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match="has no CPUs"):
        _plan(monkeypatch, {"CPU": 0}, {"GPU": 1})
    with pytest.raises(GateError, match="a node of the cluster has GPUs and no CPUs"):
        _plan(monkeypatch, {"CPU": 16}, {"GPU": 1})


def _plan_training(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, *nodes: dict[str, float], num_runs: int = 1
) -> tuple[dict[str, float], int]:
    totals = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(ray, "cluster_resources", lambda: totals)
    config = TrainConfig(manifest_uri="m", bundle_uri="b", num_workers=num_workers, batch_size=32 * num_workers)
    scaling, threads = plan_workers(config, num_runs)
    assert scaling.resources_per_worker is not None
    return scaling.resources_per_worker, threads


@pytest.mark.parametrize(("node", "workers", "cpus"), [((16, 1), 1, 1.0), ((1, 1), 1, 0.5), ((4, 8), 8, 0.25)], ids=str)
def test_training_on_gpus_leaves_cpus_to_decode_with(
    monkeypatch: pytest.MonkeyPatch, node: tuple[int, int], workers: int, cpus: float
) -> None:
    assert _plan_training(monkeypatch, workers, {"CPU": node[0], "GPU": node[1]})[0] == {"CPU": cpus, "GPU": 1}


def test_trials_at_a_time_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"CPU": 32.0, "GPU": 8.0}
    assert _plan_training(monkeypatch, 4, node, num_runs=2)[0]["GPU"] == 1
    with pytest.raises(InputError, match=r"expected at most 2, the cluster's GPUs \(8\) over the trials .*, found 4"):
        _plan_training(monkeypatch, 4, node, num_runs=3)


def test_training_on_gpus_without_cpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expected CPUs on every node with GPUs"):
        _plan_training(monkeypatch, 1, {"CPU": 8}, {"GPU": 1})


@pytest.mark.parametrize(
    ("sizes", "num_workers", "cpus", "threads"),
    [
        ([0, 4], 2, 1, 2),
        ([0, 16], 4, 3, 4),
        ([4, 4], 4, 1, 1),  # Ray packs three of them on the first
        ([2], 1, 1, 2),
        ([2], 2, 0.5, 1),
        ([8], 1, 7, 2),  # Ray was told so; the machine has 2
        ([16, 16], 2, 15, 16),
        ([0, 16], 1, 15, 16),  # a head without CPUs
        ([4, 4, 16], 3, 5, 5),
        ([4, 96], 1, 95, 96),  # a small head
        ([16, 24], 2, 15, 16),
    ],
    ids=str,
)
def test_workers_on_cpus_fit_the_nodes(
    monkeypatch: pytest.MonkeyPatch, sizes: list[float], num_workers: int, cpus: float, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    planned = _plan_training(monkeypatch, num_workers, *({"CPU": size} for size in sizes))
    assert planned == ({"CPU": cpus}, threads)
    assert sum(int(size / cpus) for size in sizes) >= num_workers


def test_more_workers_than_fit_any_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"expected at most 50, .*, found 101"):
        _plan_training(monkeypatch, 101, {"CPU": 1})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_another_job_holds_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    done = tmp_path / "done"

    # an actor of a test before this one may still be there, and go meanwhile
    @ray.remote(num_cpus=ray.available_resources()["CPU"] - 1)
    def hold() -> None:
        while not done.exists():
            time.sleep(0.1)

    holder = hold.remote()
    threading.Timer(20.0, done.touch).start()  # whatever comes, or later tests would find no CPU free
    while ray.available_resources().get("CPU", 0) >= 4:
        time.sleep(0.1)
    with caplog.at_level("INFO"):
        await_free({"CPU": 4})
    assert ray.wait([holder], timeout=10)[0] == [holder]
    assert re.search(r"waiting for what other jobs hold: CPU 4 \(free: [1-3](\.\d+)?\)", caplog.text)
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 0.2)
    with pytest.raises(GateError, match=r"expected to have free, within 0 seconds: GPU 1 \(free: 0\)"):
        await_free({"CPU": 4, "GPU": 1})


def test_what_must_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _plan(monkeypatch, {"CPU": 2}).least() == {"CPU": 1.575}
    least = _plan(monkeypatch, {"CPU": 16, "GPU": 2}).least()
    assert least["GPU"] == 2
    assert 2 < least["CPU"] < 4
