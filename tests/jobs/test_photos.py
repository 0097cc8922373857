"""What is prepared at a time, and what that needs of the cluster."""

from __future__ import annotations

import hashlib
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.training.photos import FIRST_WINDOW, WINDOW_BYTES, PhotoStream, _windows
from model.micro_batches import MicroBatch
from schemas.bundle import Preprocessing
from tests.dump import photo


def test_windows_are_small_at_first_and_never_too_large_where_photos_grow() -> None:
    planned = [MicroBatch(np.arange(32), size, 0) for size in (112, 168, 224) for _ in range(300)]
    windows = _windows(planned)
    assert [batch for window in windows for batch in window] == planned
    assert len(windows[0]) == FIRST_WINDOW
    sizes = [len(window) for window in windows]
    assert all(later <= max(FIRST_WINDOW, 2 * size) for size, later in pairwise(sizes))
    assert max(sum(32 * batch.image_size**2 * 3 for batch in window) for window in windows) <= WINDOW_BYTES


@pytest.mark.ray
def test_less_than_a_whole_cpu_is_enough(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(photo(3, 1))
    digest = hashlib.sha256(photo(3, 1)).hexdigest()
    bins = pa.table({"bin_id": ["1"], "image_uri": [str(tmp_path / "1.jpg")], "image_sha256": [digest]})
    pq.write_table(bins, tmp_path / "bins.parquet")

    free = ray.available_resources()["CPU"]  # an actor of a test before this one may still be there

    @ray.remote(num_cpus=free - 0.75)
    class Holder:
        def ready(self) -> None:
            pass

    holder = Holder.remote()
    ray.get(holder.ready.remote())
    stream = PhotoStream(str(tmp_path / "bins.parquet"), Preprocessing(image_size=32), seed=0, augmentation=0.5)
    (prepared,) = stream([MicroBatch(np.array([0]), 32, 0)])
    assert prepared.pixels.shape == (1, 32, 32, 3)
    ray.kill(holder)
    while ray.available_resources().get("CPU", 0) < free:  # or the next test would find less than it expects
        time.sleep(0.1)
