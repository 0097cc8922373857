"""Errors that a worker raises end a job with their own exit code and message."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import TaskUnschedulableError, WorkerCrashedError

from jobs.config.audit import AuditConfig
from jobs.config.base import JobConfig
from jobs.config.train import TrainConfig
from jobs.platform import cluster
from jobs.platform.bundles import ScorerPlan
from jobs.platform.cluster import connect
from jobs.platform.command import run_command
from jobs.stages.resources import CPU_BATCH, Resources
from jobs.stages.score import score_shards
from jobs.stages.worklist import Shard
from schemas.errors import GateError, InputError
from tests.dump import write_bundle

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

INPUT_ERROR, GATE_ERROR = (
    InputError("part-0.parquet: row 7: expected this,\n  found that"),
    GateError("storage is away"),
)
ONE_SCORER = Resources("cpu", 1, 0.5, 0, 1, 1, 0.25, 0.25, CPU_BATCH, 1)


@pytest.mark.parametrize(
    "flags",
    [
        "--allowed-root s3://a s3://b",
        "--allowed-root s3://a --allowed-root s3://b",
        "--allowed_root=s3://a --seed 1 --allowed-root=s3://b",
    ],
)
def test_a_flag_of_several_values_takes_them_in_a_row_or_repeated(flags: str) -> None:
    found: list[AuditConfig] = []
    places = "--manifest-uri m --bundle-uri b --output-uri o --alpha 0.1 --alpha 0.2 0.3"
    assert run_command(AuditConfig, found.append, job="audit", argv=[*flags.split(), *places.split()]) == 0
    assert found[0].allowed_root == ("s3://a", "s3://b")
    assert (found[0].alpha, found[0].output_uri) == ((0.1, 0.2, 0.3), "o")


@pytest.mark.parametrize("again", ["--seed=2", "--seed 2"])
def test_a_flag_of_one_value_that_is_given_twice_is_told_of(capsys: pytest.CaptureFixture[str], again: str) -> None:
    found: list[AuditConfig] = []
    places = "--manifest-uri m --bundle-uri b --output-uri o --seed 1"
    assert run_command(AuditConfig, found.append, job="audit", argv=[*places.split(), *again.split()]) == 0
    assert found[0].seed == 2
    assert "warning: --seed: given more than once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--recount-budget -5", "--recount-budget: expected greater than or equal to 0, found -5"),
        (f"--count-valid-nights {10**30}", "--count-valid-nights: expected at most 4294967295, found more"),
        ("--alpha", "--alpha: expected a value, found none"),
        ("--allowed-root --seed 1", "--allowed-root: expected a value, found none"),
        ("--random-share 1.5", "--random-share: expected less than or equal to 1, found 1.5"),
        ("--audit-date tomorrow", "audit-date"),
        ("--output-uri /data/audits\x01", r"--output-uri: expected a place, found '/data/audits\x01'"),
    ],
)
def test_a_setting_out_of_range_is_named(capsys: pytest.CaptureFixture[str], flags: str, said: str) -> None:
    places = "--manifest-uri m --bundle-uri b --output-uri o"
    assert run_command(AuditConfig, pytest.fail, job="audit", argv=[*places.split(), *flags.split()]) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in shown
    assert "pydantic" not in shown


class Nothing(JobConfig):
    """No settings."""


def _exit_code(run) -> int:  # type: ignore[no-untyped-def]
    def connected(config: Nothing) -> None:
        with connect():
            run()

    return run_command(Nothing, connected, job="test", argv=[])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(INPUT_ERROR, 2, f"error: {INPUT_ERROR}\n"), (GATE_ERROR, 1, f"failed: {GATE_ERROR}\n")],
    ids=["input", "gate"],
)
@pytest.mark.parametrize("where", ["row", "generator", "actor", "task in a task"])
def test_an_error_of_a_worker_keeps_its_exit_code_and_message(
    capsys: pytest.CaptureFixture[str], where: str, error: Exception, code: int, said: str
) -> None:
    def fail(row: dict) -> dict:
        raise error

    def fail_later(rows: pa.Table):  # type: ignore[no-untyped-def]
        yield rows
        raise error

    @ray.remote(num_cpus=0.25)
    def outer() -> None:
        ray.get(ray.remote(num_cpus=0.25)(fail).remote({}))

    def run() -> None:
        rows = ray.data.from_items([{"a": 1}])
        if where == "row":
            rows.map(fail, num_cpus=0.25).materialize()
        elif where == "generator":
            list(rows.map_batches(fail_later, num_cpus=0.25).iter_rows())
        elif where == "actor":

            class Refuser:  # nested, so that it travels by value
                def __call__(self, rows: pa.Table) -> pa.Table:
                    raise error

            one = ray.data.ActorPoolStrategy(size=1)
            rows.map_batches(Refuser, batch_format="pyarrow", compute=one, num_cpus=0.25).materialize()
        else:
            ray.get(outer.remote())

    assert _exit_code(run) == code
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ExecutionTimeoutError("no progress"), "failed: the cluster: nothing has made progress for 30 minutes"),
        (TaskUnschedulableError("its node died"), "lost a worker or what it made (TaskUnschedulableError)"),
        (WorkerCrashedError(), "lost a worker or what it made (WorkerCrashedError); run the same command again"),
    ],
)
def test_a_cluster_in_which_nothing_moves_or_something_dies_is_a_failure_with_advice(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)

    def run() -> None:
        with connect():
            raise error

    assert _exit_code(run) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [Exception("The current node timed out\nduring startup."), OSError(28, "No space left on device")],
    ids=["start", "disk"],
)
def test_a_local_cluster_that_does_not_come_up_is_a_failure_with_advice(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(cluster.os, "environ", os.environ.copy())  # what a local cluster is given
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", fail)
    assert _exit_code(pytest.fail) == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: Ray: no cluster came up on this machine") and "run the same command again" in told
    assert " ".join(str(error).split()) in told


@pytest.mark.parametrize("settings", [AuditConfig, TrainConfig])
def test_the_help_breaks_its_lines_itself(settings: type[JobConfig]) -> None:
    texts = [field.description for field in settings.model_fields.values()]
    assert all(text and "\n" not in text.replace("\n\n", "") for text in texts)


def test_an_interrupted_job_and_what_leaves_with_0_before_it_is_done_are_not_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert _exit_code(interrupt) == 1
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert _exit_code(lambda: sys.exit(0)) == 1  # as Ray Train does when it is interrupted
    assert "interrupted; the same command goes on" in capsys.readouterr().err


@pytest.mark.slow  # how an actor's error travels stands above, what it says in test_score.py
def test_a_bundle_that_changed_under_way_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle_uri = str(write_bundle(tmp_path / "bundle"))

    def fetch(items: pa.Table) -> Iterator[pa.Table]:
        yield items

    def run() -> None:
        score_shards(
            [Shard(0, "manifest", 0, 1)],
            fetch,
            {},
            image_size=32,
            scorer=ScorerPlan(bundle_uri, "another", "cpu", "fp32", batch_size=1, threads=1),
            resources=ONE_SCORER,
        ).materialize()

    assert _exit_code(run) == 2
    assert f"error: {bundle_uri}: expected bundle another, with which the job began, found" in capsys.readouterr().err
