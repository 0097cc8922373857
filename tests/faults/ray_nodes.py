"""Ray nodes as an operator starts them, several on one machine, each in a process group that can be killed whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import free_port

# Ports that a node would otherwise take by number, and fight over with another node of this machine.
ANY_PORT = [
    f"--{name}=0"
    for name in ("node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
]
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_worker_niceness": "0",
}


class RayNodes:
    """A cluster of one head and any number of further nodes, apart from every other cluster of the machine."""

    def __init__(self, environment: dict[str, str], *, num_cpus: int, dashboard: bool = False) -> None:
        """`dashboard`: whether jobs can be submitted, to the address that is then in `dashboard`."""
        # its own folder, or `ray.init()` elsewhere on this machine would join it; short, for the sockets below it
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._environment = {**os.environ, **environment, **RAY_ENVIRONMENT}
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.address = ""
        port = free_port()
        self.dashboard = f"http://127.0.0.1:{port}"
        head = ["--head", "--port=0", f"--include-dashboard={dashboard}", f"--dashboard-port={port}"]
        head.append(f"--ray-client-server-port={free_port()}")
        self._start([*head, f"--temp-dir={self.folder}"], num_cpus)
        address = self.folder / "ray_current_cluster"
        self._wait(address.exists)
        self.address = address.read_text().strip()

    def add(self, *, num_cpus: int) -> subprocess.Popen[bytes]:
        """One more node; returned once the cluster counts it."""
        before = self.count()
        node = self._start([f"--address={self.address}"], num_cpus)
        self._wait(lambda: self.count() == before + 1)
        return node

    def count(self) -> int:
        """Nodes that are alive, as the cluster sees them."""
        script = "import ray; ray.init(logging_level=40); print(sum(node['Alive'] for node in ray.nodes()))"
        environment = {**self._environment, "RAY_ADDRESS": self.address}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1])

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's workers on this cluster whose title, such as `ray::MapBatches(_stage)`, holds `title`."""
        return [process for node in self._nodes for process in self.workers(node) if title in titled(process)]

    def workers(self, node: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Ray's workers on one node that have been given something to do."""
        children = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        return [process for process in children if "ray::" in titled(process) and "ray::IDLE" not in titled(process)]

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As when the machine loses power: every process of the node at once, no good-byes."""
        # workers lead sessions of their own, so the group alone would leave them
        for process in psutil.Process(node.pid).children(recursive=True):
            process.suspend()
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            process.kill()
        node.wait(timeout=30)

    def stop(self) -> None:
        for node in reversed(self._nodes):
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, flags: list[str], num_cpus: int) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *flags]
        command += [*ANY_PORT, f"--num-cpus={num_cpus}", f"--object-store-memory={200 * 2**20}"]
        with (self.folder / f"node-{len(self._nodes)}.log").open("wb") as log:
            node = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        self._nodes.append(node)
        return node

    def _wait(self, ready) -> None:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 300
        while not ready():
            if self._nodes[-1].poll() is not None or time.monotonic() > deadline:
                log = (self.folder / f"node-{len(self._nodes) - 1}.log").read_text()
                self.stop()
                raise RuntimeError(f"the Ray node did not start: {log[-3000:]}")
            time.sleep(0.3)


def titled(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
