"""A bundle on disk: a folder with `weights.safetensors`, `bundle.json`, `training_images.parquet`, `report.html`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from model.network import build_network
from schemas.bundle import FORMAT_VERSION, BundleInfo, class_names, content_id
from schemas.errors import InputError

WEIGHTS_FILE = "weights.safetensors"
INFO_FILE = "bundle.json"
TRAINING_IMAGES_FILE = "training_images.parquet"
REPORT_FILE = "report.html"

TRAINING_IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_sha256", pa.string(), metadata={"description": "SHA-256 of the photo's bytes, hex"}),
        pa.field("bin_id", pa.string(), metadata={"description": "the bin that the photo shows"}),
        pa.field(
            "split",
            pa.string(),
            metadata={"description": "train, selection (stopping, calibration) or test (figures only)"},
        ),
    ]
)


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
    report_html: str | None = None,
) -> BundleInfo:
    """Writes the four files, `bundle.json` last: without it the folder is no bundle, so none is ever half written.

    `fields`: those of BundleInfo but `format_version`, `classes`, `weights_sha256` and `bundle_id`, which are
    worked out here. `training_images`: columns image_sha256, bin_id, split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    weights = save(state)
    complete = {
        "label_noise": {"rate": 0.02, "assumed": True},
        "test_time_flip": False,
        **fields,
        "format_version": FORMAT_VERSION,
        "classes": class_names(fields["top_class"]),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "bundle_id": "",
    }
    # through the document once, so that the id is computed from what a reader will see
    complete = json.loads(BundleInfo.model_validate(complete).model_dump_json())
    info = BundleInfo.model_validate(complete | {"bundle_id": content_id(complete)})
    (folder / WEIGHTS_FILE).write_bytes(weights)
    table = training_images.select(TRAINING_IMAGES_SCHEMA.names).cast(TRAINING_IMAGES_SCHEMA)
    pq.write_table(table, folder / TRAINING_IMAGES_FILE, compression="zstd")
    if report_html is not None:
        (folder / REPORT_FILE).write_text(report_html, encoding="utf-8")
    partial = folder / (INFO_FILE + ".partial")
    partial.write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / INFO_FILE)
    return info


def read_bundle_info(folder: Path) -> BundleInfo:
    """What a bundle says of itself, without its weights. Raises InputError where it is missing, damaged or of
    another version."""
    path = folder / INFO_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: not found; expected a bundle written by jobs.train") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected JSON, found binary data; train the bundle anew") from error
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: expected JSON, found a damaged file ({error}); train the bundle anew") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version: expected {FORMAT_VERSION}, found {version!r}; "
            "train the bundle anew with this release, or use the release that wrote it"
        )
    try:
        info = BundleInfo.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path}: {problems}; train the bundle anew") from error
    expected_id = content_id(json.loads(info.model_dump_json()))
    if expected_id != info.bundle_id:
        raise InputError(
            f"{path}: bundle_id: expected {expected_id} from the content, found {info.bundle_id}; "
            "the file was changed by hand: restore it or train the bundle anew"
        )
    return info


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle strictly: version, checksum and every tensor must fit. Executes no pickle.

    Raises InputError where it is missing, damaged, of another version or of another architecture.
    """
    info = read_bundle_info(folder)
    path = folder / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; the bundle is incomplete: copy it again or train it anew") from error
    found = hashlib.sha256(data).hexdigest()
    if found != info.weights_sha256:
        raise InputError(
            f"{path}: SHA-256: expected {info.weights_sha256[:12]}…, found {found[:12]}…; "
            "the file is damaged or from another bundle: copy it again"
        )
    network = build_network(info.architecture, info.num_classes)
    try:
        network.load_state_dict(load(data), strict=True)
    except (RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path}: doesn't fit {info.architecture} with {info.num_classes} classes ({first})"
        ) from error
    network.eval().requires_grad_(False)
    return Bundle(info=info, network=network.to(memory_format=torch.channels_last))


def read_training_images(folder: Path) -> pa.Table:
    """Every photo that training has seen: columns image_sha256, bin_id, split. Raises InputError."""
    path = folder / TRAINING_IMAGES_FILE
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; the bundle is incomplete: copy it again") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected a Parquet file, found a damaged one ({error})") from error
    if table.schema.names != TRAINING_IMAGES_SCHEMA.names:
        raise InputError(f"{path}: columns: expected {TRAINING_IMAGES_SCHEMA.names}, found {table.schema.names}")
    return table
