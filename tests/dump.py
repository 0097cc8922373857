"""Small dumps for the tests: photos, a manifest over them, a bundle with random weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from jobs.platform import storage
from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from schemas.manifest import FORMAT_VERSION, MANIFEST_SCHEMA

TOP_CLASS = 6
NIGHT = "2026-11-22"


def photo(count: int, seed: int, *, size: tuple[int, int] = (96, 72), kind: str = "JPEG", **options: Any) -> bytes:
    """A photo of `count` bright blobs on a dark, noisy ground."""
    generator = np.random.default_rng(seed)
    ground = generator.integers(20, 70, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        x, y = generator.integers(8, size[0] - 8), generator.integers(8, size[1] - 8)
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=tuple(generator.integers(150, 255, 3).tolist()))
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def blank_frame() -> bytes:
    """A photo of one colour, as of a camera whose shutter stays closed."""
    sink = io.BytesIO()
    Image.new("RGB", (96, 72), (90, 60, 30)).save(sink, "JPEG")
    return sink.getvalue()


def write_photos(images_uri: str, quantities: list[int]) -> None:
    """One photo per bin, `00000.jpg` and so on."""
    for number, quantity in enumerate(quantities):
        storage.write_bytes(join(images_uri, f"{number:05d}.jpg"), photo(quantity, number))


def manifest_table(images_uri: str, quantities: list[int], **columns: list) -> pa.Table:
    """MANIFEST_SCHEMA for the bins of `write_photos`; `columns` replace or add values."""
    n = len(quantities)
    values: dict[str, list] = {name: [None] * n for name in MANIFEST_SCHEMA.names}
    values |= {
        "bin_id": [f"{number:05d}" for number in range(n)],
        "image_uri": [join(images_uri, f"{number:05d}.jpg") for number in range(n)],
        "expected_qty": quantities,
        "num_skus": [min(1, quantity) for quantity in quantities],
        "skus": [
            [{"sku": "S1", "name": "a thing", "quantity": quantity}] if quantity else [] for quantity in quantities
        ],
        "record_inconsistent": [False] * n,
        "group": [str(number // 10) for number in range(n)],
    }
    values |= columns
    metadata = {"audit_date": NIGHT, "images_uri": images_uri, "format_version": FORMAT_VERSION}
    return pa.Table.from_pydict(values, schema=MANIFEST_SCHEMA).replace_schema_metadata(metadata)


def write_dump(folder: str, num_bins: int, **columns: list) -> str:
    """Photos and their manifest below `folder`; the manifest's URI."""
    quantities = [number % 8 for number in range(num_bins)]
    write_photos(join(folder, "bin-images"), quantities)
    uri = join(folder, "manifest")
    write_table(join(uri, "part-0.parquet"), manifest_table(join(folder, "bin-images"), quantities, **columns))
    return uri


def write_bundle(
    folder: Path,
    *,
    image_size: int = 32,
    architecture: str = "resnet18",
    seen: pa.Table | None = None,
) -> Path:
    """A network with random weights (the same ones every time)."""
    import torch

    from model.bundle import save_bundle
    from model.bundle_files import TRAINING_IMAGES_SCHEMA
    from model.network import build_network
    from model.quantisation import activation_ranges

    torch.manual_seed(0)
    network = build_network(architecture, TOP_CLASS + 1)
    identity = np.eye(TOP_CLASS + 1).tolist()
    save_bundle(
        folder,
        network=network,
        training_images=seen if seen is not None else TRAINING_IMAGES_SCHEMA.empty_table(),
        report_html="",
        fields={
            "architecture": architecture,
            "top_class": TOP_CLASS,
            "preprocessing": {"image_size": image_size},
            "calibration": {"method": "none", "weight": identity, "bias": [0.0] * (TOP_CLASS + 1)},
            "prediction_set_threshold": 0.9,
            "num_calibration": 500,
            "record_outside_set_share": 0.1,
            "num_independent": 500,
            "activation_ranges": activation_ranges(network, [torch.randn(8, 3, image_size, image_size)]),
            "label_histogram": [20, 80, 140, 170, 150, 120, 320],
        },
    )
    return folder
