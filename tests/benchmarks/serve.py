"""Load on the endpoint, beside a plain FastAPI and torch server: requests per second and latency by clients.

    python -m tests.benchmarks.serve --bundle DIR --seconds 10 --json figures.json

Three servers one after the other on a free port, each a process of its own: `serve` (the endpoint as it is),
`serve-single` (the endpoint with --batch-size 1: no batching), `plain` (FastAPI, one process, one photo per forward
pass, no queue, no batches) and `plain-batch` (the same with a padded batch of the endpoint's size collected by hand).
The load is closed: every client sends its next photo when the last one is answered. Without --bundle a ResNet18 with
random weights at 112 pixels is made. Prints a table; --json writes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from fastapi import Request

from tests.dump import photo, write_bundle

SERVERS = ("plain", "plain-batch", "serve-single", "serve")


async def load(url: str, photos: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Closed loop of `clients`; latencies in milliseconds of the answered requests, and counts by status."""
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    stop = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        turn = number
        while time.perf_counter() < stop:
            turn += clients
            started = time.perf_counter()
            try:
                async with session.post(url, data=photos[turn % len(photos)]) as answer:
                    await answer.read()
                    statuses[str(answer.status)] += 1
                    if answer.status == 200:
                        latencies.append(1000 * (time.perf_counter() - started))
                    else:
                        await asyncio.sleep(0.05)
            except (aiohttp.ClientError, TimeoutError) as error:
                statuses[type(error).__name__] += 1

    headers = {"Content-Type": "image/jpeg"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    elapsed = time.perf_counter() - started
    quantiles = np.percentile(latencies, [50, 95, 99]) if latencies else [float("nan")] * 3
    return {
        "clients": clients,
        "requests_per_s": len(latencies) / elapsed,
        **{f"p{level}_ms": float(value) for level, value in zip((50, 95, 99), quantiles, strict=True)},
        "statuses": dict(statuses),
    }


def serve_plain(bundle_folder: str, port: int, batch_size: int) -> None:
    """What one would write without Ray: decode, score, answer; with `batch_size` above 1 whoever waits goes along."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    from model.bundle import load_bundle
    from model.images import decode_image
    from model.scoring import Scorer

    torch.set_num_threads(os.cpu_count() or 1)
    bundle = load_bundle(Path(bundle_folder))
    scorer = Scorer(bundle, device="cpu", precision="fp32", batch_size=batch_size)
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


def measure(name: str, bundle: str, photos: list[bytes], clients: list[int], seconds: float, batch: int) -> list[dict]:
    """Starts the server, waits for it, loads it, stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if name.startswith("plain"):
        size = batch if name == "plain-batch" else 1
        command = ["-m", "tests.benchmarks.serve", "--plain", f"{port}", "--bundle", bundle, "--batch", f"{size}"]
    else:
        size = batch if name == "serve" else 1
        command = ["-m", "jobs.serve", "--bundle-uri", bundle, "--port", f"{port}", "--batch-size", f"{size}"]
        command += ["--max-waiting", "64"]
    # a group of its own: Ctrl-C is ours to hand on
    server = subprocess.Popen([sys.executable, *command], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        _wait(server, port)
        url = f"http://127.0.0.1:{port}/v1/count"
        asyncio.run(load(url, photos, 4, 2.0))
        return [{"server": name, **asyncio.run(load(url, photos, number, seconds))} for number in clients]
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
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        serve_plain(options.bundle, options.plain, options.batch)
        return
    photos = [photo(number % 7, number, size=(500, 400)) for number in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or str(write_bundle(Path(folder) / "bundle", image_size=112))
        rows = []
        for name in options.servers:
            for row in measure(name, bundle, photos, options.clients, options.seconds, options.batch):
                rows.append(row)
                print(
                    f"{row['server']:14} {row['clients']:4} clients {row['requests_per_s']:8.1f}/s   "
                    f"p50 {row['p50_ms']:7.0f}  p95 {row['p95_ms']:7.0f}  p99 {row['p99_ms']:7.0f} ms   {row['statuses']}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
