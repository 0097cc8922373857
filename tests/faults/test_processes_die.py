"""Workers, actors, nodes and drivers are killed by SIGKILL; the same command again must lose and double nothing."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable

import pytest

from tests.faults.disturbed_runs import Site, Trial
from tests.faults.repetition import gets, puts, times

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@times(3)
def test_a_killed_worker(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    def kill() -> None:
        for worker in site.nodes.processes("_fetch_or_resume"):
            worker.kill()
            trial.inject()

    site.network.watch(gets("/bin-images/"), kill)
    trial.recover()
    record("worker killed", trial.judge())


@times(3)
def test_a_killed_scoring_actor(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    def kill() -> None:
        for actor in site.nodes.processes("ShardScorer"):
            actor.kill()
            trial.inject()

    site.network.watch(puts("/staged/"), kill)
    trial.recover()
    record("scoring actor killed", trial.judge())


@times(3)
def test_a_killed_node(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    node = site.nodes.add(num_cpus=2)

    def kill() -> None:
        if site.nodes.workers(node):
            trial.inject()
            site.nodes.kill(node)
        else:  # losing a node that does nothing would prove nothing
            site.network.watch(puts("/staged/"), kill)

    site.network.watch(puts("/staged/"), kill)
    try:
        trial.recover()
    finally:
        if node.poll() is None:
            site.nodes.kill(node)
    record("node killed", trial.judge())


@times(20, quick=1)
def test_a_driver_killed_at_a_random_moment(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    # by requests and not by seconds: the moment then always lies within the run, however fast the machine is
    moment, counter = random.Random(attempt).randrange(site.num_requests), itertools.count()

    def kill() -> None:
        trial.inject()
        audit.kill()

    site.network.watch(lambda method, path: next(counter) == moment, kill)
    audit = site.start(trial.output_uri)
    assert audit.wait() == -signal.SIGKILL, audit.log()
    trial.note(audit)
    trial.recover()
    record("driver killed at a random moment", trial.judge())
