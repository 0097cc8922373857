"""A browser for the pages."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.browser import CHROMIUM


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
