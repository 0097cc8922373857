"""Drawing and writing bins as Ray tasks: the photos and records of a sample, and what is really in each bin."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import cv2
import numpy as np
import ray

from jobs.platform import storage
from jobs.platform.uris import join
from jobs.sampling.contents import draw_contents, render_record
from jobs.sampling.photo import draw_photo

BINS_PER_TASK = 50
WRITES_IN_FLIGHT = 16
"""Per task: on S3 a write is mostly waiting."""


def name_bin(number: int) -> str:
    """`bin_id`: at least five digits, as in ABID."""
    return f"{number:05d}"


def write_bins(output_uri: str, seed: int, record_error_rate: float, first: int, last: int) -> tuple[np.ndarray, int]:
    """Writes bins `first` .. `last` - 1. Returns their true quantities (int32) and how many records are wrong.

    Raises InputError where the output can't be written.
    """
    cv2.setNumThreads(1)  # Ray counts cores by tasks
    true_qty = np.empty(last - first, np.int32)
    num_wrong = 0
    with ThreadPoolExecutor(WRITES_IN_FLIGHT) as writers:
        writes = []
        for number in range(first, last):
            contents = draw_contents(seed, number, record_error_rate)
            true_qty[number - first] = contents.true_qty
            num_wrong += contents.true_qty != contents.recorded_qty
            for folder, suffix, data in (
                ("metadata", "json", render_record(contents.recorded)),
                ("bin-images", "jpg", draw_photo(seed, number, contents.true)),
            ):
                uri = join(output_uri, folder, f"{name_bin(number)}.{suffix}")
                writes.append(writers.submit(storage.write_bytes, uri, data))
        for write in writes:
            write.result()
    return true_qty, num_wrong


def write_all_bins(
    output_uri: str, num_bins: int, seed: int, record_error_rate: float
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Writes bins 1 .. `num_bins` on the whole cluster.

    Yields (first bin, true quantities, wrong records) of each task as it ends, in any order. A bounded number of
    tasks is under way, so that the driver's memory does not grow with the sample.
    """
    task = ray.remote(write_bins)
    starts = iter(range(1, num_bins + 1, BINS_PER_TASK))
    pending: dict[ray.ObjectRef, int] = {}
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for first in islice(starts, at_once - len(pending)):
            last = min(first + BINS_PER_TASK, num_bins + 1)
            pending[task.remote(output_uri, seed, record_error_rate, first, last)] = first
        if not pending:
            return
        (done,), _ = ray.wait(list(pending), num_returns=1)
        first = pending.pop(done)
        true_qty, num_wrong = ray.get(done)
        yield first, true_qty, num_wrong
