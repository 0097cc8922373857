"""The run dies between any two writes of its publish: a reader sees the night before or the whole new one."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from jobs.platform import storage
from tests.faults.disturbed_runs import Site, Trial, compare_bins, read_views

pytestmark = [pytest.mark.ray, pytest.mark.s3]


def die_before(site: Site, trial: Trial, write: str, *flags: str, num_before: int = 0) -> None:
    """Kills the driver as it is about to do `write` (method and path below the output) after as many like it, and the
    write never arrives."""
    below = f"/{trial.output_uri.removeprefix('s3://')}/"

    def is_write(method: str, path: str) -> bool:
        if anonymous(f"{method} {path.removeprefix(below)}") != write:
            return False
        # the request itself is seen once it is passed on; a client that asks again asks for the same path
        seen = [anonymous(f"{method} {path.removeprefix(below)}") for method, path in site.network.faults.seen]
        return seen.count(write) >= num_before

    def kill() -> None:
        trial.inject()
        audit.kill()

    site.network.heal()
    site.network.faults.drop = is_write
    site.network.watch(is_write, kill)
    audit = site.start(trial.output_uri, *flags)
    assert audit.wait() == -signal.SIGKILL, f"{write} never came:\n{audit.log()[-3000:]}"
    trial.note(audit)
    trial.num_tries = 0
    site.network.heal()


def publish_writes(site: Site) -> tuple[list[str], list[str]]:
    """The writes from the first part of the results to the summary, and those after it. Of the shards' files the first
    one that is deleted stands for all."""
    writes = all_writes(site)
    writes = writes[next(n for n, write in enumerate(writes) if write.startswith("PUT results/")) :]
    of_shards = [write for write in writes if "/staged/" in write or "/worklist/" in write]
    writes = [write for write in writes if write not in of_shards[1:]]
    commit = next(n for n, write in enumerate(writes) if write.startswith("PUT summary/"))
    return writes[: commit + 1], writes[commit + 1 :]


def all_writes(site: Site) -> list[str]:
    """But for locks, and for trying whether a folder can be written."""
    return [anonymous(write) for write in site.writes if " locks/" not in write and not write.endswith("/_writable")]


def anonymous(write: str) -> str:
    """Without the run's name: a replacement has another one."""
    return re.sub(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}", "RUN", write)


def test_a_publish_cut_at_its_commit(site: Site, trial: Trial, record: Callable) -> None:
    """The one of the cuts below that `make test` has."""
    before, _ = publish_writes(site)
    die_before(site, trial, before[-1])
    assert read_views(trial.output_uri) == {}
    trial.recover()
    record("publish cut at its commit", trial.judge())


@pytest.mark.slow
def test_a_publish_cut_between_any_two_writes_up_to_the_commit(site: Site, trial: Trial, record: Callable) -> None:
    before, _ = publish_writes(site)
    for write in before:
        die_before(site, trial, write)
        assert read_views(trial.output_uri) == {}, write
    trial.recover()
    record("publish cut between any two writes before the commit", trial.judge() | {"times": len(before)})


@pytest.mark.slow
def test_a_publish_cut_between_any_two_writes_after_the_commit(site: Site, trial: Trial, record: Callable) -> None:
    _, after = publish_writes(site)
    assert len(after) >= 3, after
    for number, write in enumerate(after):
        cut = Trial(site, f"{trial.output_uri}-{number}")
        # run.json is written when a run begins, and again when it has ended
        die_before(site, cut, write, num_before=all_writes(site).count(write) - 1)
        assert compare_bins(site.undisturbed["results"], read_views(cut.output_uri)["results"]) == (0, 0), write
        cut.recover()
        assert "already committed" not in cut.logs[-1], f"{write}: the same command finishes what was left"
        record("publish cut between any two writes after the commit", cut.judge())


@pytest.mark.slow
def test_a_replacement_cut_between_any_two_writes(site: Site, trial: Trial, record: Callable) -> None:
    trial.recover()
    before, after = publish_writes(site)
    old = read_views(trial.output_uri)["results"]
    for write in before:
        die_before(site, trial, write, "--replace")
        assert read_views(trial.output_uri)["results"].equals(old), write
    # the run that is replaced is marked as committed before the new one's commit, the new one after it
    assert after[0] == "PUT runs/RUN/committed"
    die_before(site, trial, after[0], "--replace", num_before=1)
    new = read_views(trial.output_uri)["results"]
    assert new["run_id"][0] != old["run_id"][0]
    assert new.drop_columns(["run_id"]).equals(old.drop_columns(["run_id"]))
    trial.recover()
    leftovers = {entry.uri for entry in storage.list_objects(f"{trial.output_uri}/results")}
    assert len(leftovers) == 1, "the same command without --replace tidies up after the commit"
    record("replacement cut between any two writes", trial.judge() | {"times": len(before) + 1})
