"""Child processes of the audit's benchmark: run one, and watch what memory it and its workers take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

SECONDS_BETWEEN_SAMPLES = 1.0


@dataclass
class Ended:
    """A process that ended well. Memory in MB, peaks of the samples; memory shared between processes left out."""

    answer: dict
    """The last line of its standard output, where that is JSON."""
    driver_mb: float
    workers_mb: float
    """All its descendants together."""


def run(*arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 3600) -> Ended:
    """`python -m ARGUMENTS` to its end, `environment` beside this process's own. Raises RuntimeError with its last words
    where it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    peaks, done = [0.0, 0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peaks, done), daemon=True)
    watcher.start()
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
        done.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {errors[-3000:]}")
    last = (output.strip().splitlines() or [""])[-1]
    return Ended(json.loads(last) if last.startswith("{") else {}, *peaks)


def _watch(driver: psutil.Process, peaks: list[float], done: threading.Event) -> None:
    while not done.wait(SECONDS_BETWEEN_SAMPLES):
        try:
            workers = driver.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        peaks[0] = max(peaks[0], _private_mb(driver))
        peaks[1] = max(peaks[1], sum(_private_mb(worker) for worker in workers))


def _private_mb(process: psutil.Process) -> float:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return (memory.rss - memory.shared) / 1e6
