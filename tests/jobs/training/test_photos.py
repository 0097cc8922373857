"""What is prepared at a time, and what that needs of the cluster."""

from __future__ import annotations

import hashlib
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.training import photos
from jobs.training.photos import (
    FIRST_WINDOW,
    WINDOW_BYTES,
    PhotoStream,
    _blocks,
    _prepared_batches,
    _windows,
    prepare_micro_batches,
)
from jobs.training.tasks import task_pool
from model.images import read_pixels, resize_image
from model.micro_batches import MicroBatch
from model.splitting import id_hashes, keyed
from model.transforms import augment
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
    stream = PhotoStream(str(tmp_path / "bins.parquet"), seed=0, augmentation=0.5, anonymous=False)
    (prepared,) = stream([MicroBatch(np.array([0]), 32, 0)])
    assert prepared.pixels.shape == (1, 32, 32, 3)
    ray.kill(holder)
    while ray.available_resources().get("CPU", 0) < free:  # or the next test would find less than it expects
        time.sleep(0.1)


def test_a_photo_is_augmented_anew_in_each_epoch_as_far_as_was_asked_for(tmp_path: Path) -> None:
    data, small = photo(3, 1), Preprocessing(image_size=32)
    (tmp_path / "1.jpg").write_bytes(data)
    columns = {"bin_id": ["1"], "image_uri": [str(tmp_path / "1.jpg")]}
    bins = pa.table({**columns, "image_sha256": [hashlib.sha256(data).hexdigest()]})
    pq.write_table(bins, tmp_path / "bins.parquet")
    stream = PhotoStream(str(tmp_path / "bins.parquet"), seed=7, augmentation=0.5, anonymous=False)
    (block,) = _blocks([MicroBatch(np.array([0]), 32, epoch) for epoch in (None, 0, 1)], num_cpus=1)
    plain, *found = (next(_prepared_batches(table)).pixels[0] for table in prepare_micro_batches(block, stream))
    assert np.array_equal(plain, resize_image(read_pixels(data), small))
    for epoch, pixels in enumerate(found):
        (key,) = keyed(id_hashes(["1"]), 8, epoch).tolist()
        assert np.array_equal(pixels, augment(read_pixels(data), key, 0.5, small.image_size))
    assert not np.array_equal(*found)


def test_another_photo_than_when_training_began_is_named(tmp_path: Path) -> None:
    uri = tmp_path / "1.jpg"
    uri.write_bytes(photo(3, 1))
    columns = {"bin_id": ["1"], "image_uri": [str(uri)], "image_sha256": ["0" * 64]}
    pq.write_table(pa.table(columns), tmp_path / "bins.parquet")
    stream = PhotoStream(str(tmp_path / "bins.parquet"), seed=0, augmentation=0.5, anonymous=False)
    (block,) = _blocks([MicroBatch(np.array([0]), 32, 0)], num_cpus=1)
    with pytest.raises(ValueError, match=f"{uri}: another photo than when training began; put the former back"):
        next(prepare_micro_batches(block, stream))


def test_workers_that_read_at_the_same_time_share_the_cluster_s_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0})
    assert [task_pool(100, num_readers).size for num_readers in (1, 8)] == [64, 8]
    assert task_pool(3).size == 3


def test_the_next_micro_batch_is_fetched_while_one_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [photo(3, number) for number in range(2)]
    uris = [str(tmp_path / f"{number}.jpg") for number in range(2)]
    for uri, file in zip(uris, files, strict=True):
        Path(uri).write_bytes(file)
    digests = [hashlib.sha256(file).hexdigest() for file in files]
    bins = pa.table({"bin_id": ["0", "1"], "image_uri": uris, "image_sha256": digests})
    pq.write_table(bins, tmp_path / "bins.parquet")
    fetch, asked = photos._fetch, {uri: threading.Event() for uri in uris}

    def note(uri: str, **given: Any) -> bytes:
        asked[uri].set()
        return fetch(uri, **given)

    monkeypatch.setattr(photos, "_fetch", note)
    (block,) = _blocks([MicroBatch(np.array([number]), 32, None) for number in range(2)], num_cpus=1)
    rows = prepare_micro_batches(
        block, PhotoStream(str(tmp_path / "bins.parquet"), seed=0, augmentation=0.5, anonymous=False)
    )
    next(rows)
    assert asked[uris[1]].wait(10)
    assert len(list(rows)) == 1
