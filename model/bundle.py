"""A bundle with its network: written into a folder, loaded strictly."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from model.bundle_files import (
    INFO_FILE,
    REPORT_FILE,
    TRAINING_IMAGES_FILE,
    TRAINING_IMAGES_SCHEMA,
    WEIGHTS_FILE,
    read_bundle_info,
    read_weights,
)
from model.network import build_network
from schemas.bundle import FORMAT_VERSION, BundleInfo, class_names, content_id
from schemas.errors import InputError


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: what it says, and its network (float32, evaluation mode, channels_last, on the CPU)."""

    info: BundleInfo
    network: nn.Module


def save_bundle(
    folder: Path,
    *,
    network: nn.Module,
    fields: dict[str, Any],
    training_images: pa.Table,
    report_html: str,
) -> BundleInfo:
    """Writes the four files into `folder`.

    `fields`: those of BundleInfo but `format_version`, `classes`, `bundle_id` and the checksums, which are worked out
    here. `training_images`: columns image_sha256, bin_id, split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    weights, images = save(state), io.BytesIO()
    table = training_images.select(TRAINING_IMAGES_SCHEMA.names).cast(TRAINING_IMAGES_SCHEMA)
    pq.write_table(table, images, compression="zstd")
    complete = {
        **fields,
        "format_version": FORMAT_VERSION,
        "classes": class_names(fields["top_class"]),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training_images_sha256": hashlib.sha256(images.getvalue()).hexdigest(),
        "bundle_id": "",
    }
    # through the document once, so that the id is computed from what a reader will see
    complete = json.loads(BundleInfo.model_validate(complete).model_dump_json())
    info = BundleInfo.model_validate(complete | {"bundle_id": content_id(complete)})
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / TRAINING_IMAGES_FILE).write_bytes(images.getvalue())
    (folder / REPORT_FILE).write_text(report_html, encoding="utf-8")
    (folder / INFO_FILE).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return info


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle strictly: version, checksum and every tensor must fit. Executes no pickle.

    Raises InputError where it is missing, damaged, of another version or of another architecture.
    """
    info = read_bundle_info(folder)
    network = build_network(info.architecture, info.num_classes)
    try:
        network.load_state_dict(load(read_weights(folder, info)), strict=True)
    except (RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{folder / WEIGHTS_FILE}: doesn't fit {info.architecture} with {info.num_classes} classes ({first})"
        ) from error
    network.eval().requires_grad_(False)
    return Bundle(info=info, network=network.to(memory_format=torch.channels_last))
