"""One part of the audit alone, with the audit's own functions on the whole machine: `fetch`, `decode` or `network`.

    python -m tests.benchmarks.audit_roofs decode --uris uris.json --bundle DIR

Prints images per second. Fetch and decode run in as many processes as there are cores; the S3 server's own work is part
of what a fetch costs, as it runs on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

from jobs.config.base import PrecisionChoice
from jobs.platform import storage
from jobs.stages.images import IN_FLIGHT, FetchPlan, fetch_allowed
from jobs.stages.resources import CPU_BATCH, GPU_BATCH, read_cards, resolve_precision
from jobs.stages.score import SHARDS_AT_ONCE
from model.images import decode_image
from model.processor import read_processor
from schemas.bundle import Preprocessing

SECONDS, NETWORK_SECONDS, GPU_NETWORK_SECONDS = 4.0, 15.0, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("fetch", "decode", "network"))
    parser.add_argument("--uris", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--precision", default="auto", help="of the network")
    options = parser.parse_args()
    if options.part == "network":
        rate = network_rate(json.loads(options.uris.read_text()), options.bundle, options.precision)
    else:
        image_size = json.loads((options.bundle / "bundle.json").read_text())["preprocessing"]["image_size"]
        rate = rate_of_processes(options.part, options.uris, image_size)
    print(json.dumps({"images_per_second": rate}))


def rate_of_processes(part: str, uris: Path, image_size: int) -> float:
    """Every process goes over its share of the photos until SECONDS are over. It reads their names itself: more of them than
    a pipe holds, and each process would start only when the one before it is through with its imports."""
    context = multiprocessing.get_context("spawn")
    count = os.cpu_count() or 1
    start, results = context.Barrier(count, timeout=120), context.SimpleQueue()
    work = fetch_photos if part == "fetch" else decode_photos
    processes = [
        context.Process(target=work, args=(uris, slice(i, None, count), image_size, start, results))
        for i in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"{part}: a process failed")
    return sum(results.get() for _ in processes)  # a number each, which the pipe holds


def fetch_photos(
    file: Path, share: slice, image_size: int, start: Barrier, results: multiprocessing.SimpleQueue
) -> None:
    uris = json.loads(file.read_text())[share]
    plan = FetchPlan(Preprocessing(image_size=image_size), (uris[0].rsplit("/", 1)[0],), False, None)

    async def fetch_all() -> float:
        await fetch_allowed(uris[0], plan)  # connects
        start.wait()
        began, done = time.perf_counter(), 0

        async def lane(turn: int) -> None:
            nonlocal done
            while time.perf_counter() - began < SECONDS:
                found = await fetch_allowed(uris[turn % len(uris)], plan)
                assert isinstance(found, bytes), found
                done, turn = done + 1, turn + IN_FLIGHT

        await asyncio.gather(*(lane(turn) for turn in range(IN_FLIGHT)))
        return done / (time.perf_counter() - began)

    results.put(asyncio.run(fetch_all()))


def decode_photos(
    file: Path, share: slice, image_size: int, start: Barrier, results: multiprocessing.SimpleQueue
) -> None:
    photos = [storage.read_bytes(uri) for uri in json.loads(file.read_text())[share][:128]]
    preprocessing = Preprocessing(image_size=image_size)
    start.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        decode_image(photos[done % len(photos)], preprocessing)
        done += 1
    results.put(done / (time.perf_counter() - began))


def network_rate(uris: list[str], bundle_folder: Path, asked: PrecisionChoice) -> float:
    import numpy as np
    import torch

    from model.bundle import load_bundle
    from model.scoring import Scorer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = GPU_BATCH if device == "cuda" else CPU_BATCH
    cores = os.cpu_count() or 1
    at_once = SHARDS_AT_ONCE if device == "cpu" and cores % SHARDS_AT_ONCE == 0 else 1  # as our scorer
    torch.set_num_threads(cores // at_once)
    bundle = load_bundle(bundle_folder)
    precision = resolve_precision(asked, device, read_cards(), [read_processor()])
    scorer = Scorer(bundle, device=device, precision=precision, batch_size=batch_size)
    photos = [decode_image(storage.read_bytes(uri), bundle.info.preprocessing) for uri in uris[:batch_size]]
    # a GPU waits between two calls, as it does not in an audit: many batches a call make that little
    num_photos = 16 * batch_size if device == "cuda" else batch_size
    pixels = np.stack([photos[number % len(photos)] for number in range(num_photos)])
    scorer.score(pixels)  # the first batch of a process is slow
    seconds = GPU_NETWORK_SECONDS if device == "cuda" else NETWORK_SECONDS

    def score_on(_: int) -> float:
        began, done = time.perf_counter(), 0
        while done < 3 or time.perf_counter() - began < seconds:
            scorer.score(pixels)
            done += 1
        return done * num_photos / (time.perf_counter() - began)

    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(cores // at_once,)) as threads:
        return sum(threads.map(score_on, range(at_once)))


if __name__ == "__main__":
    main()
