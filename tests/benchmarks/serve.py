"""Load on the endpoint, beside a plain FastAPI and torch server: requests per second and latency by clients.

    python -m tests.benchmarks.serve --bundle DIR --photo FILE --requests 12 --json figures.json

Four servers one after the other on a free port, each a process of its own: `serve` (the endpoint as it is),
`serve-single` (the endpoint with --batch-size 1: no batching), `plain` (FastAPI, one process, one photo per forward
pass, no queue, no batches) and `plain-batch` (the same with a padded batch of the endpoint's size collected by hand).
The load is closed and comes from `hey` (Debian's package of that name): every client sends its next photo when the
last one is answered. Without --bundle a ResNet18 with random weights at 112 pixels is made, without --photo a photo
is drawn. All servers compute in the precision that the audit would take here. Prints a table; --json writes it.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request

from jobs.serving.access import TOKEN_VARIABLE
from tests.conftest import free_port
from tests.dump import photo, write_bundle

SERVERS = ("plain", "plain-batch", "serve-single", "serve")
MAX_RATE = 50
"""Requests a second of one client: who is sent away comes back after 20 ms, not at once."""
LEAST_REQUESTS = 80


def load(url: str, photo_path: Path, clients: int, num_requests: int) -> dict[str, Any]:
    """`clients` of `hey`, each sending its next photo when the last one is answered, at most MAX_RATE a second: the
    latencies in milliseconds of the answered requests, and counts by status. `lost`: no answer of any kind."""
    command = ["hey", "-n", str(num_requests), "-c", str(clients), "-q", str(MAX_RATE), "-m", "POST", "-t", "120"]
    command += ["-T", "image/jpeg", "-D", str(photo_path), "-o", "csv", url]
    started = time.perf_counter()
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    answers = list(csv.DictReader(io.StringIO(found.stdout)))
    latencies = [1000 * float(row["response-time"]) for row in answers if row["status-code"] == "200"]
    quantiles = np.percentile(latencies, [50, 95, 99]) if latencies else [float("nan")] * 3
    return {
        "clients": clients,
        "requests_per_s": len(latencies) / elapsed,
        **{f"p{level}_ms": float(value) for level, value in zip((50, 95, 99), quantiles, strict=True)},
        "statuses": dict(Counter(row["status-code"] for row in answers)),
        "lost": num_requests // clients * clients - len(answers),
    }


def serve_plain(bundle_folder: str, port: int, batch_size: int) -> None:
    """What one would write without Ray: decode, score, answer; with `batch_size` above 1 whoever waits goes along."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    from jobs.stages.resources import resolve_precision
    from model.bundle import load_bundle
    from model.images import decode_image
    from model.processor import read_processor
    from model.scoring import Scorer

    torch.set_num_threads(os.cpu_count() or 1)
    bundle = load_bundle(Path(bundle_folder))
    scorer = Scorer(
        bundle, device="cpu", precision=resolve_precision("auto", "cpu", [], [read_processor()]), batch_size=batch_size
    )
    api = FastAPI()
    queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future]] = asyncio.Queue()
    workers: list[asyncio.Task] = []

    async def work() -> None:
        while True:
            waiting = [await queue.get()]
            while len(waiting) < batch_size and not queue.empty():
                waiting.append(queue.get_nowait())
            rows = await asyncio.to_thread(scorer.score, np.stack([pixels for pixels, _ in waiting]))
            for (_, future), row in zip(waiting, rows, strict=True):
                future.set_result(row)

    @api.get("/readyz")
    async def ready() -> str:
        return "ready"

    @api.post("/v1/count")
    async def count(request: Request) -> dict:
        if not workers:
            workers.append(asyncio.create_task(work()))
        pixels = decode_image(await request.body(), bundle.info.preprocessing)
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        queue.put_nowait((pixels, future))
        row = await future
        return {"count": int(row.argmax()), "probabilities": row.tolist()}

    uvicorn.run(api, host="127.0.0.1", port=port, log_level="warning")


def measure(name: str, bundle: str, photo_path: Path, clients: list[int], per_client: int, batch: int) -> list[dict]:
    """Starts the server, waits for it, loads it, stops it."""
    port = free_port()
    if name.startswith("plain"):
        size = batch if name == "plain-batch" else 1
        command = ["-m", "tests.benchmarks.serve", "--plain", f"{port}", "--bundle", bundle, "--batch", f"{size}"]
    else:
        size = batch if name == "serve" else 1
        command = ["-m", "jobs.serve", "--bundle-uri", bundle, "--port", f"{port}", "--batch-size", f"{size}"]
        command += ["--max-waiting", "64"]
    # a group of its own: Ctrl-C is ours to hand on
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}  # `hey` sends none
    server = subprocess.Popen(
        [sys.executable, *command], start_new_session=True, stdout=subprocess.DEVNULL, env=environment
    )
    try:
        _wait(server, port)
        url = f"http://127.0.0.1:{port}/v1/count"
        load(url, photo_path, 4, 20)
        return [
            {"server": name, **load(url, photo_path, number, max(LEAST_REQUESTS, per_client * number))}
            for number in clients
        ]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(120)


def _wait(server: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise RuntimeError("the server is not ready after 300 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--requests", type=int, default=12, help="requests of each client, at least 80 in all")
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        serve_plain(options.bundle, options.plain, options.batch)
        return
    if shutil.which("hey") is None:
        parser.error("the load generator `hey` is not installed: apt-get install hey")
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or str(write_bundle(Path(folder) / "bundle", image_size=112))
        photo_path = options.photo or Path(folder) / "photo.jpg"
        if options.photo is None:
            photo_path.write_bytes(photo(4, 0, size=(500, 400)))
        rows = []
        for name in options.servers:
            for row in measure(name, bundle, photo_path, options.clients, options.requests, options.batch):
                rows.append(row)
                print(
                    f"{row['server']:14} {row['clients']:4} clients {row['requests_per_s']:8.1f}/s   "
                    f"p50 {row['p50_ms']:7.0f}  p95 {row['p95_ms']:7.0f}  p99 {row['p99_ms']:7.0f} ms   {row['statuses']}   "
                    f"lost {row['lost']}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
