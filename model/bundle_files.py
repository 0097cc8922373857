"""A bundle's files, and what they say without its network: the driver of a job needs no torch to read them.

A bundle is a folder with `weights.safetensors`, `bundle.json`, `training_images.parquet`, `report.html`.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from schemas.arrow import DAMAGED_PARQUET, column
from schemas.bundle import FORMAT_VERSION, BundleInfo, content_id
from schemas.errors import InputError

WEIGHTS_FILE = "weights.safetensors"
INFO_FILE = "bundle.json"
TRAINING_IMAGES_FILE = "training_images.parquet"
REPORT_FILE = "report.html"

TRAINING_IMAGES_SCHEMA = pa.schema(
    [
        column("image_sha256", pa.string(), "SHA-256 of the photo's bytes, hex"),
        column("bin_id", pa.string(), "the bin that the photo shows"),
        column("split", pa.string(), "train, selection (stopping, calibration) or test (figures only)"),
    ]
)


def learned_from(images: pa.Table) -> pa.Table:
    """Of TRAINING_IMAGES_SCHEMA, the photos that weights or calibration have seen: all but the test photos. They say
    nothing of the camera any more, so no audit judges their bins."""
    return images.filter(pc.not_equal(images["split"], "test"))


def digests(images: pa.Table) -> NDArray[np.uint8]:
    """SHA-256 of the photos, (n, 32)."""
    return np.frombuffer(bytes.fromhex("".join(images["image_sha256"].to_pylist())), np.uint8).reshape(-1, 32)


def read_bundle_info(folder: Path) -> BundleInfo:
    """What a bundle says of itself, without its weights. Raises InputError where it is missing, damaged or of
    another version."""
    path = folder / INFO_FILE
    try:
        text = _read(path, missing="expected a bundle written by jobs.train").decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected JSON, found binary data; train the bundle anew") from error
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate is JSON, but no text
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits no JSONDecodeError
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


def read_weights(folder: Path, info: BundleInfo) -> bytes:
    """The weights' file as it is, in the safetensors format. Raises InputError where it is missing or not the one that
    `info` is of."""
    return _read_checked(folder / WEIGHTS_FILE, info.weights_sha256)


def read_training_images(folder: Path, info: BundleInfo) -> pa.Table:
    """Every photo that training has seen: columns image_sha256, bin_id, split. Raises InputError where the file is missing
    or not the one that `info` is of."""
    path = folder / TRAINING_IMAGES_FILE
    data = _read_checked(path, info.training_images_sha256)
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            table = file.read()
    except DAMAGED_PARQUET as error:
        raise InputError(f"{path}: expected a Parquet file, found a damaged one ({error})") from error
    if table.schema != TRAINING_IMAGES_SCHEMA:
        expected, found = (
            schema.to_string(show_field_metadata=False) for schema in (TRAINING_IMAGES_SCHEMA, table.schema)
        )
        raise InputError(f"{path}: columns: expected {expected!r}, found {found!r}")
    return table


def _read_checked(path: Path, sha256: str) -> bytes:
    data = _read(path, missing="the bundle is incomplete: copy it again or train it anew")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: SHA-256: expected {sha256[:12]}…, found {found[:12]}…; "
            "the file is damaged or from another bundle: copy it again"
        )
    return data


def _read(path: Path, missing: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: not found; {missing}") from error
    except OSError as error:
        raise InputError(
            f"{path}: expected a file that may be read, found: {error.strerror}; who runs this needs access"
        ) from error
