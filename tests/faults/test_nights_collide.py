"""Two runs of one night, a holder that died, a run across midnight."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from jobs.platform import storage
from tests.dump import NIGHT
from tests.faults.disturbed_runs import PATIENCE, Audit, Site, Trial
from tests.faults.repetition import gets, puts, times

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@times(3)
def test_two_runs_at_once(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    faults = site.network.faults
    faults.hold = puts("/locks/")
    # on clusters of their own: on one, the second would wait for the CPUs that the first holds, and only then look
    audits = [site.start(trial.output_uri), site.start(trial.output_uri, ray_address="local")]
    # both found the night free and are about to take it
    wait_until(lambda: faults.num_held == 2)
    assert list(storage.list_objects(f"{trial.output_uri}/locks")) == []
    trial.inject()
    faults.hold = gets("/bin-images/")
    loser = first_to_end(audits)
    (holder,) = set(audits) - {loser}
    assert loser.process.returncode == 1
    assert "the night is held by run" in loser.log()
    assert f"(pid {holder.process.pid}, since" in loser.log()
    site.network.heal()
    assert holder.wait() == 0, holder.log()
    trial.note(holder)
    record("two runs at once", trial.judge())


@pytest.mark.slow
def test_a_run_that_waited_while_another_one_committed(site: Site, trial: Trial, record: Callable) -> None:
    """It must not score and write the committed night once more."""
    about_to_commit = threading.Event()
    site.network.faults.hold = puts("/summary/")
    site.network.watch(puts("/summary/"), about_to_commit.set)
    first = site.start(trial.output_uri)
    assert about_to_commit.wait(PATIENCE), first.log()
    num_seen = len(site.network.faults.seen)
    second = site.start(trial.output_uri)
    # the second one has looked at the lock, and found it held
    wait_until(lambda: any(gets("/locks/")(*request) for request in site.network.faults.seen[num_seen:]))
    trial.inject()
    site.network.heal()
    assert first.wait() == 0, first.log()
    assert second.wait() == 1
    # the latter where the first one took more than a heartbeat to finish
    assert "was committed by run" in second.log() or "is held by run" in second.log()
    assert not [path for method, path in site.network.faults.seen if method == "PUT" and "/staged/" in path]
    trial.note(first)
    record("a second run waits while the first commits", trial.judge())


@times(3)
def test_a_dead_holder_elsewhere(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    def kill() -> None:
        trial.inject()
        audit.kill()

    site.network.watch(puts("/staged/"), kill)
    audit = site.start(trial.output_uri)
    audit.wait()
    trial.note(audit)
    # as if it had run on a machine whose processes can't be seen from here
    (lock,) = storage.list_objects(f"{trial.output_uri}/locks")
    holder = json.loads(storage.read_bytes(lock.uri))
    assert not holder.get("released")
    storage.write_bytes(lock.uri, json.dumps({**holder, "host": "elsewhere", "boot": "another"}).encode())
    trial.recover()
    assert trial.num_tries == 2
    record("holder died on another machine (45 s of silence)", trial.judge())


@times(3)
def test_a_run_across_midnight(site: Site, trial: Trial, record: Callable, attempt: int) -> None:
    before, started = 40, time.monotonic()
    evening = datetime.fromisoformat(f"{NIGHT}T23:59:59+00:00") - timedelta(seconds=before)

    def wait_for_midnight() -> None:
        trial.inject()
        # the driver's clock is set some seconds after its start
        time.sleep(max(0.0, started + before + 15 - time.monotonic()))

    site.network.watch(puts("/results/"), wait_for_midnight)
    trial.recover(command=("-m", "tests.faults.shifted_clock", evening.isoformat()))
    (document,) = (
        json.loads(storage.read_bytes(entry.uri))
        for entry in storage.list_objects(f"{trial.output_uri}/runs")
        if entry.uri.endswith("/run.json")
    )
    assert document["started_at"][:10] == NIGHT < document["outcome"]["finished_at"][:10]
    folders = {entry.uri.split("/")[-2] for entry in storage.list_objects(f"{trial.output_uri}/results")}
    assert folders == {f"audit_date={NIGHT}"}
    record("a run across midnight", trial.judge())


def first_to_end(audits: list[Audit]) -> Audit:
    ended: list[Audit] = []
    wait_until(lambda: bool(ended.extend(audit for audit in audits if audit.process.poll() is not None) or ended))
    return ended[0]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
