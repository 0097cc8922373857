"""Photos for training: streamed by Ray Data, fetched, decoded and augmented on CPU workers while the network trains."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import ray
import ray.data

from jobs.platform import storage
from jobs.platform.cluster import quiet_data
from jobs.platform.parquet import read_table
from jobs.training.tasks import TASK_CPUS, task_pool
from model.images import read_pixels, resize_image
from model.micro_batches import MicroBatch, PreparedBatch
from model.splitting import id_hashes, keyed
from model.transforms import augment
from schemas.bundle import Preprocessing

FETCHES_AT_ONCE = 16
PHOTOS_PER_TASK = 256
"""Most photos of a task that prepares them; fewer where cores would have none."""
FIRST_WINDOW = 8
"""Micro-batches that are prepared before training starts."""
WINDOW_BYTES = 512 * 1024 * 1024
"""Decoded photos of one window; at most two windows are held, one in use and one ahead."""


@dataclass(frozen=True)
class PhotoStream:
    """A `PhotoSource`: the photos of the bins in `bins_uri` (Parquet with bin_id, image_uri and image_sha256, row by row)."""

    bins_uri: str
    seed: int
    augmentation: float
    """Its strength, 0 to 1."""
    anonymous: bool
    """Whether the photos are read without credentials."""
    num_readers: int = 1
    """Training workers that read at the same time."""

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Iterator[PreparedBatch]:
        windows = _windows(micro_batches)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="photos-ahead") as ahead:
            coming = ahead.submit(self._prepare, windows[0]) if windows else None
            for following in [*windows[1:], None]:
                if coming is None:
                    return
                blocks = coming.result()
                coming = ahead.submit(self._prepare, following) if following else None
                while blocks:
                    yield from _prepared_batches(ray.get(blocks.pop(0)))

    def _prepare(self, micro_batches: Sequence[MicroBatch]) -> list[ray.ObjectRef]:
        """Blocks of prepared micro-batches, in order. Complete when it returns: a Ray Data execution that waits for its
        consumer spins, and inside the training process it takes the interpreter from the network at every layer
        (measured here: three times slower training)."""
        quiet_data()  # it would say that each window is done
        # micro-batches arrive in the order that was planned, so that the same photos train together
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        blocks = list(_blocks(micro_batches, num_cpus=ray.cluster_resources().get("CPU", 1.0)))
        # not from_arrow, whose own tasks need a whole CPU: where others leave less they would wait for ever, unheard
        prepared = ray.data.from_blocks(blocks).map_batches(
            prepare_micro_batches,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            compute=task_pool(len(blocks), self.num_readers),
            fn_kwargs={"stream": self},
        )
        return prepared.materialize().to_arrow_refs()


def _windows(micro_batches: Sequence[MicroBatch]) -> list[Sequence[MicroBatch]]:
    """What is prepared at a time, all of one size: little at first, so that training starts soon, then twice as much each
    time, as a window is prepared while the one before it trains."""
    windows: list[Sequence[MicroBatch]] = []
    count = FIRST_WINDOW
    for side, planned in groupby(micro_batches, key=lambda batch: batch.image_size):
        group, start = list(planned), 0
        most = max(1, WINDOW_BYTES // (len(group[0].rows) * side**2 * 3))
        while start < len(group):
            windows.append(group[start : start + min(count, most)])
            start += len(windows[-1])
            count = max(FIRST_WINDOW, 2 * len(windows[-1]))
    return windows


def _prepared_batches(block: pa.Table) -> Iterator[PreparedBatch]:
    for row in range(block.num_rows):
        values = {name: block[name][row] for name in block.column_names}
        shape = (values["num_photos"].as_py(), values["side"].as_py(), values["side"].as_py(), 3)
        pixels = np.frombuffer(values["pixels"].as_buffer(), np.uint8).reshape(shape)
        yield PreparedBatch(pixels, {name: values[name].as_py() for name in ("fetch", "decode", "augment")})


def _blocks(micro_batches: Sequence[MicroBatch], num_cpus: float) -> Iterator[pa.Table]:
    """One block, and so one task, for about PHOTOS_PER_TASK photos, or fewer so that every CPU has a task."""
    if not micro_batches:
        return
    share = math.ceil(len(micro_batches) / num_cpus)
    per_task = max(1, min(share, PHOTOS_PER_TASK // len(micro_batches[0].rows)))
    for start in range(0, len(micro_batches), per_task):
        part = micro_batches[start : start + per_task]
        yield pa.table(
            {
                "rows": pa.array([batch.rows for batch in part], pa.list_(pa.int64())),
                "side": pa.array([batch.image_size for batch in part], pa.int32()),
                "epoch": pa.array([batch.augment_epoch for batch in part], pa.int32()),
            }
        )


def prepare_micro_batches(block: pa.Table, stream: PhotoStream) -> Iterator[pa.Table]:
    """Runs in a Ray task: planned micro-batches to their pixels, one row each. The next one is fetched meanwhile. Raises
    ValueError for a photo that is another one than when the training began."""
    uris, hashes, digests = _bins(stream.bins_uri)
    batches = block.to_pylist()
    with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:

        def ask(planned: dict) -> Iterator[bytes]:
            return pool.map(partial(_fetch, anonymous=stream.anonymous), [uris[row] for row in planned["rows"]])

        coming = ask(batches[0])
        for planned, following in zip(batches, [*batches[1:], None], strict=True):
            rows, side, epoch = np.array(planned["rows"]), planned["side"], planned["epoch"]
            started = time.perf_counter()
            photos = list(coming)
            fetching = time.perf_counter() - started
            if following is not None:
                coming = ask(following)
            for row, data in zip(rows, photos, strict=True):
                if hashlib.sha256(data).hexdigest() != digests[row]:
                    raise ValueError(
                        f"{uris[row]}: another photo than when training began; put the former back to go on from the last "
                        "checkpoint: with this one, the same command begins anew"
                    )
            keys = [None] * len(rows) if epoch is None else keyed(hashes[rows], stream.seed + 1, epoch).tolist()
            yield _prepared_row(photos, keys, Preprocessing(image_size=side), stream.augmentation, fetching)


def _prepared_row(
    photos: list[bytes], keys: list[int | None], preprocessing: Preprocessing, augmentation: float, fetching: float
) -> pa.Table:
    """A row: the photos' pixels, augmented by their keys where they have one, and the seconds that it took; `fetching`: those
    that the photos were waited for."""
    pixels, decoding, augmenting = [], 0.0, 0.0
    # one by one: a telephone's photo takes 37 MB until it is shrunk
    for data, key in zip(photos, keys, strict=True):
        started = time.perf_counter()
        photo = read_pixels(data)
        decoded = time.perf_counter()
        if key is None:
            pixels.append(resize_image(photo, preprocessing))
        else:
            pixels.append(augment(photo, key, augmentation, preprocessing.image_size))
        decoding, augmenting = decoding + decoded - started, augmenting + time.perf_counter() - decoded
    return pa.table(
        {
            "pixels": _one_value(np.stack(pixels)),
            "num_photos": [len(pixels)],
            "side": [preprocessing.image_size],
            "fetch": [fetching],
            "decode": [decoding],
            "augment": [augmenting],
        }
    )


def _one_value(pixels: np.ndarray) -> pa.Array:
    """Large binary, of length 1; where the pixels are, not in a copy."""
    ends = np.array([0, pixels.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(pixels)])


def _fetch(uri: str, anonymous: bool) -> bytes:
    try:
        return storage.read_bytes(uri, anonymous=anonymous)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{uri}: the photo was there when training began and is gone; put it back to go on from the last "
            "checkpoint: without it, the same command begins anew"
        ) from error


@lru_cache(maxsize=2)
def _bins(uri: str) -> tuple[list[str], np.ndarray, list[str]]:
    table = read_table(uri, columns=["bin_id", "image_uri", "image_sha256"])
    return table["image_uri"].to_pylist(), id_hashes(table["bin_id"].to_pylist()), table["image_sha256"].to_pylist()
