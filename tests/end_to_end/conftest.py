"""A browser for the pages, and an endpoint to ask."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from ray import serve

from jobs.config.serve import ServeConfig
from jobs.serve import start_endpoint
from model.bundle_files import TRAINING_IMAGES_SCHEMA
from tests.browser import CHROMIUM
from tests.conftest import free_port
from tests.dump import photo, write_bundle
from tests.night import write_nights

TOKEN = "a token that is long enough"
MAX_BODY = 200_000


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    port: int

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, token: str | None = TOKEN, **headers: str
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body, fields)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def count(self, data: bytes, query: str = "", **headers: str) -> Reply:
        return self.ask("POST", f"/v1/count{query}", data, **{"Content_Type": "image/jpeg", **headers})


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has learned from one photo and tested itself on another."""
    digests = [hashlib.sha256(photo(5, seed)).hexdigest() for seed in (500, 501)]
    seen = pa.Table.from_pydict(
        {"image_sha256": digests, "bin_id": ["1", "2"], "split": ["train", "test"]}, schema=TRAINING_IMAGES_SCHEMA
    )
    return write_bundle(tmp_path_factory.mktemp("bundle"), seen=seen)


@pytest.fixture(scope="package")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two committed nights, the first of them counted; of late, as what is learned comes from the last thirty days."""
    output = tmp_path_factory.mktemp("audits")
    today = datetime.now(UTC).date()
    write_nights(output, [(today - timedelta(days=days)).isoformat() for days in (2, 1)], num_bins=300)
    return output


@pytest.fixture(scope="package")
def client(ray_cluster: None, bundle: Path, audits: Path) -> Iterator[Client]:
    """One endpoint for all files, since it takes long to start; the last test of test_serving.py shuts it down."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOCK_AUDIT_TOKEN", TOKEN)
        start_endpoint(
            ServeConfig(
                bundle_uri=str(bundle),
                output_uri=str(audits),
                port=port,
                max_waiting=24,
                max_body_bytes=MAX_BODY,
                request_timeout_s=120,
            )
        )
    yield Client(port)
    serve.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port that a headless Chromium answers on, for the tests of one file; each opens a tab (tests/browser.py)."""
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    process = subprocess.Popen(
        [
            CHROMIUM,
            *options,
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "--window-size=1400,1000",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
    while not (port_file.exists() and port_file.read_text().count("\n")):
        assert process.poll() is None, "Chromium ended at once"
        assert time.monotonic() < deadline, "Chromium did not open its port"
        time.sleep(0.1)
    yield int(port_file.read_text().split("\n")[0])
    process.terminate()
    process.wait(timeout=30)
