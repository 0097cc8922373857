"""Photos for training: streamed by Ray Data, fetched, decoded and augmented on CPU workers while the network trains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

from jobs import storage
from jobs.stages.labelled_bins import TASK_CPUS, fetch_all
from model.images import decode_image
from model.splitting import id_hashes, keyed
from model.training import MicroBatch, PreparedBatch
from model.transforms import augment
from schemas.bundle import Preprocessing

PHOTOS_PER_TASK = 256
# Decoded photos that wait for the network; without a bound Ray Data would decode epochs ahead of it.
WAITING_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class PhotoStream:
    """A `PhotoSource`: the photos of the bins in `bins_uri` (Parquet with bin_id and image_uri, row by row)."""

    bins_uri: str
    preprocessing: Preprocessing
    seed: int

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Iterator[PreparedBatch]:
        blocks = list(_blocks(micro_batches))
        if not blocks:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        options = context.execution_options
        # micro-batches arrive in the order that was planned, so that the same photos train together
        options.preserve_order = True
        options.resource_limits = ExecutionResources(object_store_memory=WAITING_BYTES)
        prepared = ray.data.from_arrow(blocks).map_batches(
            prepare_micro_batches,  # type: ignore[arg-type]
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            fn_kwargs={"stream": self},
        )
        for batch in prepared.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=4):
            assert isinstance(batch, pa.Table)
            row = {name: batch[name][0] for name in batch.column_names}
            shape = (row["num_photos"].as_py(), row["side"].as_py(), row["side"].as_py(), 3)
            # a copy, as torch wants memory that it may write to
            pixels = np.frombuffer(row["pixels"].as_buffer(), np.uint8).reshape(shape).copy()
            yield PreparedBatch(pixels, {name: row[name].as_py() for name in ("fetch", "decode", "augment")})


def _blocks(micro_batches: Sequence[MicroBatch]) -> Iterator[pa.Table]:
    """One block, and so one task, for about PHOTOS_PER_TASK photos."""
    if not micro_batches:
        return
    per_task = max(1, PHOTOS_PER_TASK // len(micro_batches[0].rows))
    for start in range(0, len(micro_batches), per_task):
        part = micro_batches[start : start + per_task]
        yield pa.table(
            {
                "rows": pa.array([list(batch.rows) for batch in part], pa.list_(pa.int64())),
                "side": pa.array([batch.image_size for batch in part], pa.int32()),
                "epoch": pa.array([batch.augment_epoch for batch in part], pa.int32()),
            }
        )


def prepare_micro_batches(block: pa.Table, stream: PhotoStream) -> Iterator[pa.Table]:
    """Runs in a Ray task: planned micro-batches to their pixels, one row each."""
    cv2.setNumThreads(1)
    uris, hashes = _bins(stream.bins_uri)
    for planned in block.to_pylist():
        rows, side, epoch = np.array(planned["rows"]), planned["side"], planned["epoch"]
        started = time.perf_counter()
        photos = fetch_all([uris[row] for row in rows])
        fetched = time.perf_counter()
        gone = [uris[row] for row, data in zip(rows, photos, strict=True) if data is None]
        if gone:
            raise FileNotFoundError(f"{gone[0]}: the photo was there when training began and is gone")
        preprocessing = stream.preprocessing.model_copy(update={"image_size": side})
        pixels = [decode_image(data, preprocessing) for data in photos if data is not None]
        decoded = time.perf_counter()
        if epoch is not None:
            keys = keyed(hashes[rows], stream.seed + 1, epoch)
            pixels = [augment(photo, int(key)) for photo, key in zip(pixels, keys, strict=True)]
        finished = time.perf_counter()
        yield pa.table(
            {
                "pixels": pa.array([np.stack(pixels).tobytes()], pa.large_binary()),
                "num_photos": [len(pixels)],
                "side": [side],
                "fetch": [fetched - started],
                "decode": [decoded - fetched],
                "augment": [finished - decoded],
            }
        )


@lru_cache(maxsize=2)
def _bins(uri: str) -> tuple[list[str], np.ndarray]:
    table = storage.read_table(uri, columns=["bin_id", "image_uri"])
    return table["image_uri"].to_pylist(), id_hashes(table["bin_id"].to_pylist())
