"""Photos of dots, labelled by their number: what trainings learn from, and the settings of one that takes seconds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.config.train import TrainConfig
from schemas.manifest import MANIFEST_SCHEMA

NUM_BINS = 200
SIDE = 40


def draw_dots(count: int, generator: np.random.Generator) -> bytes:
    """A photo of `count` bright squares on a dim ground."""
    pixels = generator.integers(20, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    for cell in generator.choice(16, count, replace=False):
        row, column = 10 * (cell // 4) + 2, 10 * (cell % 4) + 2
        pixels[row : row + 6, column : column + 6] = (230, 180, 60)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def write_dump(folder: Path, **columns: Any) -> str:
    """A manifest of NUM_BINS bins of 0..4 dots in ten groups; `columns` replace its columns."""
    generator = np.random.default_rng(11)
    (folder / "bin-images").mkdir(parents=True)
    counts = [i % 5 for i in range(NUM_BINS)]
    rows: dict[str, Any] = {
        "bin_id": [f"{i:05d}" for i in range(NUM_BINS)],
        "image_uri": [str(folder / "bin-images" / f"{i:05d}.jpg") for i in range(NUM_BINS)],
        "expected_qty": counts,
        "num_skus": [min(1, count) for count in counts],
        "skus": [[] for _ in counts],
        "group": [f"block-{i // 20}" for i in range(NUM_BINS)],
        "record_inconsistent": [False] * NUM_BINS,
    }
    for uri, count in zip(rows["image_uri"], counts, strict=True):
        Path(uri).write_bytes(draw_dots(count, generator))
    rows |= columns
    types = {field.name: field.type for field in MANIFEST_SCHEMA}
    table = pa.table({name: pa.array(values, types[name]) for name, values in rows.items()})
    table = table.replace_schema_metadata({"images_uri": str(folder / "bin-images")})
    pq.write_table(table, folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def training_settings(**changes: Any) -> dict[str, Any]:
    return {
        "architecture": "resnet18",
        "image_size": 32,
        "max_epochs": 2,
        "top_class": 3,
        "batch_size": 32,
        "micro_batch_size": 16,
        "max_failures": 0,
    } | changes


def training_flags(manifest_uri: str, bundle_uri: Path, **changes: Any) -> list[str]:
    found = ["--manifest-uri", manifest_uri, "--bundle-uri", str(bundle_uri)]
    for name, value in training_settings(**changes).items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def training_config(manifest_uri: str = "unused", **changes: Any) -> TrainConfig:
    return TrainConfig(manifest_uri=manifest_uri, bundle_uri="unused", **training_settings(**changes))


def few_bins() -> pa.Table:
    """What is read of such a manifest, without photos."""
    rows = range(NUM_BINS)
    columns = {"bin_id": [f"{i:05d}" for i in rows], "image_uri": ["none"] * NUM_BINS, "num_skus": [1] * NUM_BINS}
    return pa.table(columns | {"expected_qty": [i % 5 for i in rows], "group": [f"block-{i // 20}" for i in rows]})
