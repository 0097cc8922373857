"""After a run that was refused and one that committed, and after jobs that were submitted, no credential stands anywhere that
they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ray.job_submission import JobSubmissionClient

from jobs.platform import storage
from tests.conftest import S3_ENVIRONMENT
from tests.dump import write_dump
from tests.faults.disturbed_runs import PATIENCE, Site, Trial
from tests.faults.ray_nodes import RAY_ENVIRONMENT, RayNodes

pytestmark = [pytest.mark.ray, pytest.mark.s3]

SIGNS = {S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], "X-Amz-Signature", "AWS4-HMAC-SHA256", "X-Amz-Security-Token"}
JOB_TABLE = "import ray; ray.init(logging_level=40); from ray._private.state import state; print(state.job_table())"


def texts(site: Site, nodes: RayNodes, output_uri: str) -> Iterator[tuple[str, bytes]]:
    """What jobs on these nodes left below the output and on the cluster: what and its bytes."""
    for entry in storage.list_objects(output_uri):
        if entry.num_bytes:  # Ray Train leaves empty objects where folders were, which can't be read
            yield entry.uri, storage.read_bytes(entry.uri)
    for path in nodes.folder.rglob("*"):
        if path.is_file():
            yield f"Ray's {path.name}", path.read_bytes()
    environment = {**os.environ, **site.environment, "RAY_ADDRESS": nodes.address}
    jobs = subprocess.run([sys.executable, "-c", JOB_TABLE], env=environment, capture_output=True, check=True)
    assert b"jobs.audit" in jobs.stdout
    yield "Ray's job table", jobs.stdout


def assert_no_credential(written: list[tuple[str, bytes]]) -> None:
    assert len(written) > 20
    for name, data in written:
        assert [sign for sign in SIGNS if sign.encode() in data] == [], name


def test_no_credential_is_written_anywhere(site: Site, trial: Trial) -> None:
    site.network.faults.deny = lambda method, path: "/bin-images/" in path
    assert trial.run().process.returncode != 0
    site.network.faults.deny = lambda method, path: "/results/" in path and method == "PUT"
    assert trial.run().process.returncode != 0
    site.network.heal()
    trial.recover()
    said = [(f"output of try {number}", log.encode()) for number, log in enumerate(trial.logs)]
    assert_no_credential([*said, *texts(site, site.nodes, trial.output_uri)])


@pytest.mark.slow
def test_submitted_jobs_leave_no_credential_anywhere(site: Site, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training, whose checkpoints Ray writes to S3 itself, and an audit: by `ray job submit`, on a cluster of their own."""
    monkeypatch.setenv("RAY_AUTH_MODE", RAY_ENVIRONMENT["RAY_AUTH_MODE"])  # for who submits
    # past the faulty network, which takes no weights in parts
    nodes = RayNodes({**site.environment, "AWS_ENDPOINT_URL": site.server.endpoint}, num_cpus=2, dashboard=True)
    places = {
        "jobs.train": f"--manifest-uri {write_dump(f'{site.place}/learn', 200)} --bundle-uri {trial.output_uri}/bundle "
        "--architecture resnet18 --weights none --image-size 32 --top-class 3 --max-epochs 1 --batch-size 32",
        "jobs.audit": f"--manifest-uri {site.manifest_uri} --bundle-uri {site.bundle_uri} --output-uri {trial.output_uri}",
    }
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", nodes.dashboard, "--"]
    said = []
    try:
        for job, flags in places.items():
            done = subprocess.run(
                [*submit, sys.executable, "-m", job, *flags.split()], capture_output=True, timeout=2 * PATIENCE
            )
            assert done.returncode == 0, (done.stdout + done.stderr).decode()[-3000:]
            said.append((f"output of {job}", done.stdout + done.stderr))
        client = JobSubmissionClient(nodes.dashboard)
        listed = client.list_jobs()
        submitted = [job.submission_id for job in listed if job.type == "SUBMISSION"]
        assert len(submitted) == len(places)
        said += [(f"log of {job}", client.get_job_logs(job).encode()) for job in submitted]
        said.append(("list_jobs()", repr([job.model_dump() for job in listed]).encode()))
        assert_no_credential([*said, *texts(site, nodes, trial.output_uri)])
    finally:
        nodes.stop()
