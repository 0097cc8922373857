"""Bins with records and photos to learn from or to be judged on: read from a manifest and checked, photos included."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from jobs.platform import storage
from model.images import RejectedImage, UnreadableImage, decode_image
from schemas.arrow import conform, schema_problems
from schemas.bundle import Preprocessing
from schemas.errors import InputError
from schemas.manifest import MANIFEST_SCHEMA

logger = logging.getLogger(__name__)

COLUMNS = ("bin_id", "image_uri", "expected_qty", "num_skus", "group")
ROWS_PER_TASK = 256
FETCHES_AT_ONCE = 16
TASK_CPUS = 0.25


def read_labelled_bins(manifest_uri: str) -> pa.Table:
    """The manifest's columns bin_id, image_uri, expected_qty, num_skus and group, sorted by bin_id.

    A bin without a group is a group of its own. Raises InputError with all kinds of problems at once.
    """
    uri = storage.absolute(manifest_uri)
    problems: list[str] = []
    tables = []
    for entry in storage.parquet_files(uri):
        table = storage.read_table(entry.uri)
        found = schema_problems(table.schema, MANIFEST_SCHEMA)
        if found:
            problems += [f"{entry.uri}: {problem}" for problem in found]
            continue
        try:
            tables.append(conform(table, MANIFEST_SCHEMA).select(COLUMNS).replace_schema_metadata(None))
        except pa.ArrowInvalid as error:
            problems.append(f"{entry.uri}: {error}")
    if problems:
        raise InputError("\n  ".join(["the manifest can't be read:", *problems[:20]]))
    bins = pa.concat_tables(tables).combine_chunks()
    if not bins.num_rows:
        raise InputError(f"{uri}: expected at least one bin, found no rows")
    for name in COLUMNS[:4]:
        if bins[name].null_count:
            raise InputError(f"{uri}: {name}: expected a value in every row, found {bins[name].null_count} without")
    for name in ("expected_qty", "num_skus"):
        lowest = pc.min(bins[name]).as_py()
        if lowest < 0:
            row = pc.index(bins[name], lowest).as_py()
            raise InputError(f"{uri}: row {row}: {name}: expected 0 or more, found {lowest}")
    counts = pc.value_counts(bins["bin_id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        first = twice[0].as_py()
        raise InputError(
            f"{uri}: bin_id {first['values']!r} stands in {first['counts']} rows ({len(twice)} such bins); "
            "every bin must stand in exactly one"
        )
    group = pc.coalesce(bins["group"], bins["bin_id"])
    bins = bins.set_column(bins.schema.get_field_index("group"), "group", group)
    return bins.sort_by("bin_id")


def check_photos(bins: pa.Table, *, anonymous: bool) -> pa.Table:
    """`bins` whose photos can be used, with a column image_sha256; how many are left out is logged by reason.

    Fetches and decodes every photo once, on the cluster's CPUs. Raises InputError where none can be used.
    """
    blocks = [
        bins.slice(start, ROWS_PER_TASK).select(["bin_id", "image_uri"])
        for start in range(0, bins.num_rows, ROWS_PER_TASK)
    ]
    checked = ray.data.from_arrow(blocks).map_batches(
        _check_batch,  # type: ignore[arg-type]
        batch_size=ROWS_PER_TASK,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
        fn_kwargs={"anonymous": anonymous},
    )
    found = pa.concat_tables(list(checked.iter_batches(batch_size=None, batch_format="pyarrow")))
    found = found.sort_by("bin_id")
    bins = bins.append_column("image_sha256", found["image_sha256"].combine_chunks())
    usable = bins.filter(pc.is_valid(bins["image_sha256"]))
    left_out = Counter(found["problem"].drop_null().to_pylist())
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        logger.warning("%d of %d photos are left out: %s", sum(left_out.values()), bins.num_rows, reasons)
    if not usable.num_rows:
        raise InputError(
            f"manifest: image_uri: expected photos that can be read, found none ({reasons}; "
            f"first: {bins['image_uri'][0].as_py()}); check the folder, its permissions and the manifest's URIs"
        )
    return usable


def fetch_all(uris: list[str], *, anonymous: bool = False) -> list[bytes | None]:
    """The photos' bytes, many requests at once; None for one that isn't there."""
    with ThreadPoolExecutor(FETCHES_AT_ONCE) as pool:
        return list(pool.map(partial(_fetch, anonymous=anonymous), uris))


def _fetch(uri: str, anonymous: bool) -> bytes | None:
    try:
        return storage.read_bytes(uri, anonymous=anonymous)
    except FileNotFoundError:
        return None


def _check_batch(batch: pa.Table, anonymous: bool) -> pa.Table:
    cv2.setNumThreads(1)
    small = Preprocessing(image_size=16)
    hashes: list[str | None] = []
    problems: list[str | None] = []
    for data in fetch_all(batch["image_uri"].to_pylist(), anonymous=anonymous):
        problem = "missing" if data is None else _problem(data, small)
        problems.append(problem)
        hashes.append(hashlib.sha256(data).hexdigest() if data is not None and problem is None else None)
    return pa.table(
        {
            "bin_id": batch["bin_id"],
            "image_sha256": pa.array(hashes, pa.string()),
            "problem": pa.array(problems, pa.string()),
        }
    )


def _problem(data: bytes, preprocessing: Preprocessing) -> str | None:
    try:
        decode_image(data, preprocessing)
    except UnreadableImage:
        return "unreadable"
    except RejectedImage:
        return "beyond the size limits"
    return None


def fingerprint(bins: pa.Table) -> str:
    """SHA-256 over bins, records, groups and photos, whatever the order and layout of the manifest's files."""
    digest = hashlib.sha256()
    names = [name for name in (*COLUMNS, "image_sha256") if name in bins.column_names]
    for start in range(0, bins.num_rows, 65536):
        part = bins.slice(start, 65536)
        columns = [np.char.encode(np.asarray(part[name].to_pylist(), dtype=str)) for name in names]
        digest.update(b"\x1e".join(b"\x1f".join(row) for row in zip(*columns, strict=True)))
    return digest.hexdigest()
