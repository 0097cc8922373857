"""Does training wait for its photos? The same loop on streamed photos and on photos already decoded in memory.

    python -m tests.benchmarks.training --manifest-uri M --image-size 112 --repeats 2 [--json FILE]

Streamed: as `jobs.train` does it (fetched, decoded and augmented by Ray Data beside the training, anew in each epoch).
In memory: every photo decoded once before the first step, not augmented. Both train the same network for three epochs
on this machine, in turns. All three count, from the first step on, as photos of the later ones are prepared in the first
one already: all photos but those of the first window (FIRST_WINDOW) are prepared in the time that is counted, and Ray's
workers start in it. Prints photos per second, the share of the time that was spent waiting for photos, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import RunConfig
from safetensors.torch import save

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.cluster import connect
from jobs.platform.parquet import read_table, write_table
from jobs.training.labelled_bins import check_photos, read_labelled_bins
from jobs.training.photos import PhotoStream
from jobs.training.start import read_start
from jobs.training.trainer import BINS_FILE, INITIAL_FILE, controller_environment, load_inputs
from jobs.training.workers import plan_workers, worker_environment
from model.images import decode_image
from model.micro_batches import MicroBatch, PhotoSource, PreparedBatch, TrainingSet
from model.training import LoopSettings, train_loop_per_worker
from schemas.bundle import Preprocessing

EPOCHS = 3


@dataclass(frozen=True)
class PhotosInMemory:
    """A `PhotoSource` of photos that are decoded already: uint8 (n, S, S, 3)."""

    pixels: np.ndarray

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Iterator[PreparedBatch]:
        for batch in micro_batches:
            yield PreparedBatch(self.pixels[batch.rows], {})


def load_in_memory(
    initial_uri: str, photos: PhotoStream, preprocessing: Preprocessing
) -> tuple[TrainingSet, dict[str, torch.Tensor], PhotoSource]:
    """`load_inputs`, with the photos decoded before training starts."""
    bins, state, _ = load_inputs(initial_uri, photos)
    uris = read_table(photos.bins_uri, columns=["image_uri"])["image_uri"].to_pylist()
    pixels = np.stack([decode_image(storage.read_bytes(uri), preprocessing) for uri in uris])
    return bins, state, PhotosInMemory(pixels)


def choose_bins(config: TrainConfig, num_photos: int) -> pa.Table:
    """Labelled bins, nearly all for training: what is measured is the training."""
    bins = read_labelled_bins(config)
    table = check_photos(replace(bins, table=bins.table.slice(0, num_photos)), config).table
    splits = np.full(table.num_rows, "train", dtype="<U9")
    splits[-32:] = "selection"
    return table.append_column("split", pa.array(splits, pa.string()))


def measure(config: TrainConfig, folder: Path, *, streamed: bool) -> dict[str, float]:
    """Photos per second and waiting share, from the first step on."""
    recipe = config.recipe()
    photos = PhotoStream(str(folder / BINS_FILE), recipe.seed, recipe.augmentation, anonymous=False)
    inputs = str(folder / INITIAL_FILE), photos
    in_memory = partial(load_in_memory, *inputs, Preprocessing(image_size=recipe.image_size))
    scaling, threads = plan_workers(config)
    settings = LoopSettings(
        recipe=recipe, load=partial(load_inputs, *inputs) if streamed else in_memory, threads=threads, conclude=()
    )
    with tempfile.TemporaryDirectory() as place, controller_environment():
        result = TorchTrainer(
            train_loop_per_worker,  # type: ignore[arg-type]
            train_loop_config={"settings": settings},
            scaling_config=scaling,
            run_config=RunConfig(  # type: ignore[arg-type]
                name="run", storage_path=place, worker_runtime_env={"env_vars": worker_environment(threads)}
            ),
        ).fit()
    history = result.return_value["history"]  # type: ignore[attr-defined]
    trained = read_table(photos.bins_uri, columns=["split"])["split"].to_pylist().count("train")
    num_photos = trained // recipe.batch_size * recipe.batch_size
    return {
        "photos_per_second": num_photos * len(history) / sum(epoch["seconds"] for epoch in history),
        "wait_share": statistics.mean(epoch["wait_share"] for epoch in history),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--manifest-uri", required=True)
    parser.add_argument("--num-photos", type=int, default=2560)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    config = TrainConfig(
        manifest_uri=arguments.manifest_uri,
        bundle_uri="none",
        architecture=arguments.architecture,
        image_size=arguments.image_size,
        progressive_resizing=False,
        max_epochs=EPOCHS,
    )
    figures: dict[str, list[dict[str, float]]] = {"streamed": [], "in memory": []}
    with connect(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(str(folder / BINS_FILE), choose_bins(config, arguments.num_photos))
        (folder / INITIAL_FILE).write_bytes(save(read_start(config).state))
        for _ in range(arguments.repeats):
            for kind, found in figures.items():
                found.append(measure(config, folder, streamed=kind == "streamed"))
    for kind, found in figures.items():
        rates = [run["photos_per_second"] for run in found]
        waits = statistics.mean(run["wait_share"] for run in found)
        print(
            f"{kind:10} {statistics.median(rates):7.1f} photos/s ({min(rates):.1f} to {max(rates):.1f}), waiting {waits:.1%}"
        )
    ratio = statistics.median(run["photos_per_second"] for run in figures["streamed"]) / statistics.median(
        run["photos_per_second"] for run in figures["in memory"]
    )
    print(f"streamed / in memory: {ratio:.3f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"figures": figures, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
