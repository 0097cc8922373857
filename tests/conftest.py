"""Real parts for the tests: a local Ray cluster and a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when ray is first imported: a test without its `ray` mark would start a cluster of its own.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

# Workers inherit these; a test never reaches real AWS.
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "tester-secret",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@pytest.fixture(scope="session", autouse=True)
def _isolated_environment() -> Iterator[None]:
    """Settled before Ray starts, since its workers keep the environment of their start."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("AWS_") or name == "RAY_ADDRESS"]:
        patch.delenv(name)
    for name, value in S3_ENVIRONMENT.items():
        patch.setenv(name, value)
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def ray_cluster(_isolated_environment: None) -> Iterator[None]:
    """One Ray cluster of this machine for all tests, set up as a command's own (`jobs.platform.cluster.connect`), with eight
    logical CPUs and no GPU whatever the machine has."""
    import ray

    from jobs.platform.cluster import OWN_CLUSTER
    from jobs.serve import SERVE_SETTINGS

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**OWN_CLUSTER, **SERVE_SETTINGS}.items():
            patch.setenv(name, value)
        ray.init(num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(_isolated_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 server (SeaweedFS), where AWS_ENDPOINT_URL points."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    process = start_s3_server(tmp_path_factory.mktemp("s3"), int(endpoint.rsplit(":", 1)[1]))
    yield endpoint
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def bucket(s3_server: str) -> str:
    """`s3://…` of a fresh bucket."""
    return make_bucket()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, once in a local folder and once on S3."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


def make_bucket() -> str:
    import boto3

    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def start_s3_server(folder: Path, port: int, *, tries: int = 3) -> subprocess.Popen[bytes]:
    """Starts `weed mini` with its data in `folder` and waits until it answers. Another process may take a port that was free a
    moment ago: then others are tried."""
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    ports = {name: free_port() for name in ("master", "volume", "filer", "webdav", "admin")}
    command = [
        str(weed),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        "-admin.ui=false",
        "-master.telemetry=false",
        # each test's bucket takes volumes of its own; by default there are as many as the free disk would hold full
        "-volume.max=10000",
        # catalogues at ports of their own number, over which two servers that start at a time would fight
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}.port={number}" for name, number in ports.items()),
    ]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **S3_ENVIRONMENT})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
        except urllib.error.HTTPError:
            return process  # refused for want of a signature: it is there
        except OSError:
            time.sleep(0.2)
        else:
            return process
    process.kill()
    said = (folder / "weed.log").read_text()[-2000:]
    if "Port allocation failed" in said and tries > 1:
        return start_s3_server(folder, port, tries=tries - 1)
    raise RuntimeError(f"the S3 server did not start: {said}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
