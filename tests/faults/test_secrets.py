"""After a run that was refused and one that committed, no credential stands anywhere that the run wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jobs.platform import storage
from tests.conftest import S3_ENVIRONMENT
from tests.faults.disturbed_runs import Site, Trial

pytestmark = [pytest.mark.ray, pytest.mark.s3]

SIGNS = {S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], "X-Amz-Signature", "AWS4-HMAC-SHA256", "X-Amz-Security-Token"}
JOB_TABLE = "import ray; ray.init(logging_level=40); from ray._private.state import state; print(state.job_table())"


def texts(site: Site, trial: Trial) -> Iterator[tuple[str, bytes]]:
    """Everything that was written: what and its bytes."""
    for number, log in enumerate(trial.logs):
        yield f"output of try {number}", log.encode()
    for entry in storage.list_objects(trial.output_uri):
        yield entry.uri, storage.read_bytes(entry.uri)
    for path in site.nodes.folder.rglob("*"):
        if path.is_file():
            yield f"Ray's {path.name}", path.read_bytes()
    environment = {**os.environ, **site.environment}
    jobs = subprocess.run([sys.executable, "-c", JOB_TABLE], env=environment, capture_output=True, check=True)
    assert b"jobs.audit" in jobs.stdout
    yield "Ray's job table", jobs.stdout


@pytest.mark.slow
def test_no_credential_is_written_anywhere(site: Site, trial: Trial) -> None:
    site.network.faults.deny = lambda method, path: "/bin-images/" in path
    assert trial.run().process.returncode != 0
    site.network.faults.deny = lambda method, path: "/results/" in path and method == "PUT"
    assert trial.run().process.returncode != 0
    site.network.heal()
    trial.recover()
    num_texts = 0
    for name, data in texts(site, trial):
        num_texts += 1
        assert [sign for sign in SIGNS if sign.encode() in data] == [], name
    assert num_texts > 20
