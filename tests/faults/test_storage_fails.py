"""The S3 server goes away, is slow, throttles, cuts answers short, denies; photos change; the disk fills up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.platform import storage
from tests.dump import photo
from tests.faults.disturbed_runs import Site, Trial, compare_bins, read_views
from tests.faults.repetition import gets, puts, times

pytestmark = [pytest.mark.ray, pytest.mark.s3]

FAULTS = {
    "503 to a third of the requests": {"refuse_every": 3},
    "a third of the bodies cut short": {"cut_every": 3},
    "every request 0.5 s slower": {"delay": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "during", [gets("/bin-images/"), puts("/staged/"), puts("/results/")], ids=["fetching", "staging", "publishing"]
)
def test_a_server_that_is_away_for_a_minute(site: Site, trial: Trial, record: Callable, during: Callable) -> None:
    def stop() -> None:
        trial.inject()
        site.server.stop()
        threading.Timer(60, site.server.start).start()

    site.network.watch(during, stop)
    trial.recover()
    assert trial.num_tries == 1, "a minute is waited for, not failed on"
    record("S3 server stopped for a minute", trial.judge())


@times(3)
@pytest.mark.parametrize(("fault", "change"), FAULTS.items())
def test_a_network_that_misbehaves(
    site: Site, trial: Trial, record: Callable, fault: str, change: dict, attempt: int
) -> None:
    trial.inject()
    for name, value in change.items():
        setattr(site.network.faults, name, value)
    trial.recover()
    assert site.network.faults.num_injected > 20
    assert trial.num_tries == 1, "retried, not failed"
    record(fault, trial.judge())


@times(3)
def test_a_prefix_that_is_denied_fails_the_gate_with_its_findings(
    site: Site, trial: Trial, record: Callable, attempt: int
) -> None:
    site.network.faults.deny = lambda method, path: "/bin-images/0000" in path
    trial.inject()
    audit = trial.run()
    assert audit.process.returncode == 1
    assert re.search(r"\d+ of 48 images are missing_image or fetch_failed", trial.logs[-1])
    assert f"below {site.place}/bin-images: access denied" in trial.logs[-1]
    assert read_views(trial.output_uri) == {}
    (findings,) = (
        json.loads(storage.read_bytes(entry.uri))
        for entry in storage.list_objects(f"{trial.output_uri}/runs")
        if entry.uri.endswith("/findings.json")
    )
    assert findings["failed"] in trial.logs[-1]
    assert findings["findings"][0]["error"] == "access denied"
    site.network.heal()
    trial.recover()
    record("a prefix of the photos denied", trial.judge())


@pytest.mark.slow
def test_an_output_that_is_denied(site: Site, trial: Trial, record: Callable) -> None:
    site.network.faults.deny = lambda method, path: "/results/" in path and method == "PUT"
    trial.inject()
    assert trial.run().process.returncode in (1, 2)
    assert "can't be written" in trial.logs[-1]
    assert read_views(trial.output_uri) == {}
    site.network.heal()
    trial.recover()
    record("the results' prefix denied", trial.judge())


@pytest.mark.slow
def test_photos_that_changed_after_they_were_listed(site: Site, trial: Trial, record: Callable) -> None:
    uris = [f"{site.place}/bin-images/{number:05d}.jpg" for number in (7, 8, 9)]
    listed = [storage.read_bytes(uri) for uri in uris]
    trial.inject()
    try:
        for uri in uris:
            storage.write_bytes(uri, photo(1, 999))
        trial.recover("--max-missing-share", "0.1")
    finally:
        for uri, data in zip(uris, listed, strict=True):
            storage.write_bytes(uri, data)
    rows = read_views(trial.output_uri)["results"]
    assert compare_bins(site.undisturbed["results"], rows) == (0, 0)
    changed = {row["image_uri"]: row for row in rows.to_pylist() if row["status"] != "scored"}
    assert sorted(changed) == uris
    for row in changed.values():
        assert (row["status"], row["verdict"]) == ("fetch_failed", "not_assessed")
        assert "changed since it was listed" in row["error"]
    trial.recover("--replace")
    record("a photo changed between listing and reading", trial.judge() | {"times": len(uris)})


DISK_FULL = "disk full at staging"


@pytest.fixture
def small_disk(tmp_path: Path, record: Callable) -> Iterator[Path]:
    """A file system that is full after a few shards."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=False).returncode
    ):
        why = "mounting a small file system needs root"
        record(DISK_FULL, {"not_injected": why})
        pytest.skip(why)
    yield tmp_path
    # Ray's workers of the last run may still be about to leave
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@times(3)
def test_a_disk_that_is_full_at_staging(site: Site, small_disk: Path, record: Callable, attempt: int) -> None:
    trial = Trial(site, f"{small_disk}/audits")
    trial.inject()
    assert trial.run().process.returncode == 1
    assert "No space left on device" in trial.logs[-1]
    assert list(small_disk.rglob("staged/*.parquet")), "the run's copy of the manifest has its place"
    assert read_views(trial.output_uri) == {}
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    trial.recover()
    record(DISK_FULL, trial.judge())
