"""Bins with records and photos to learn from or to be judged on: read from a manifest and checked, photos included."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.parquet import parquet_files
from jobs.platform.uris import absolute
from jobs.stages.images import LISTED_COLUMNS, FetchPlan, explain_poor, fetch_photos
from jobs.stages.manifest import check_unchanged, explain_duplicate, problems_of_files, refuse, settle_roots
from jobs.stages.manifest_file import report_file
from jobs.training.tasks import TASK_CPUS, task_pool
from schemas.arrow import conform
from schemas.bundle import Preprocessing
from schemas.errors import GateError, InputError
from schemas.manifest import MANIFEST_SCHEMA, stock_moved
from schemas.results import ImageStatus, Reason

logger = logging.getLogger(__name__)

COLUMNS = ("bin_id", "image_uri", "expected_qty", "num_skus", "group")
ROWS_PER_TASK = 256


@dataclass(frozen=True)
class LabelledBins:
    """Bins to learn from: a table with COLUMNS (and LISTED_COLUMNS, until the photos are checked), sorted by bin_id, and where
    their photos may be read."""

    table: pa.Table
    roots: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    """How many bins are not in the table, by the status of their photo, or `moved` (their stock, since the photo) or
    `photo_of_another_split`."""


def read_labelled_bins(config: TrainConfig) -> LabelledBins:
    """The manifest's bins, before any photo is read. A bin without a group is a group of its own.

    Raises InputError with all kinds of problems at once, as the audit finds them.
    """
    uri = absolute(config.manifest_uri)
    reports, tables = [], []
    listed = parquet_files(uri)
    for entry in listed:
        try:
            data = storage.read_bytes(entry.uri)
        except FileNotFoundError:
            break
        reports.append(report_file(entry.uri, data))
        if not reports[-1].problems:
            tables.append(_training_columns(data))
    check_unchanged(uri, listed)
    problems = problems_of_files(reports, uri)
    images_uris = {report.metadata["images_uri"] for report in reports if "images_uri" in report.metadata}
    if len(images_uris) > 1 and not config.allowed_root:
        problems.append(
            f"{uri}: the files disagree on images_uri; say with --allowed-root where photos may be read from"
        )
    refuse(problems)
    bins = pa.concat_tables(tables).combine_chunks()
    counts = pc.value_counts(bins["bin_id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        first = twice[0].as_py()
        places = [
            (report.uri, int(row) + 1)
            for report, table in zip(reports, tables, strict=True)
            for row in np.flatnonzero(pc.equal(table["bin_id"], first["values"]).to_numpy())
        ]
        told = explain_duplicate(uri, first["values"], first["counts"], places)
        raise InputError(f"{told} ({len(twice)} such bins)")
    # as the audit, which does not compare such a record with the photo either
    moved = stock_moved(bins)
    bins = bins.filter(pc.invert(moved)).select(list(dict.fromkeys((*COLUMNS, *LISTED_COLUMNS))))
    num_moved = pc.sum(moved).as_py()
    if num_moved:
        logger.warning("%d bins are left out: their stock has moved since the photo", num_moved)
    if not bins.num_rows:
        raise InputError(
            f"{uri}: moves_since_photo: expected bins whose stock has not moved since the photo, found none"
        )
    if bins["group"].null_count:
        logger.warning(
            "%d of %d bins name no group: each is taken as one of its own, so that bins with the same products may "
            "both train and test, and the figures flatter",
            bins["group"].null_count,
            bins.num_rows,
        )
    group = pc.coalesce(bins["group"], bins["bin_id"])
    bins = bins.set_column(bins.schema.get_field_index("group"), "group", group)
    roots = settle_roots(uri, next(iter(images_uris), None), config.allowed_root)
    return LabelledBins(bins.sort_by("bin_id"), roots, {"moved": num_moved} if num_moved else {})


def _training_columns(data: bytes) -> pa.Table:
    """The columns that training needs of a file of a manifest; what else is in it may be large, damaged or there twice."""
    needed = pa.schema(
        [MANIFEST_SCHEMA.field(name) for name in dict.fromkeys((*COLUMNS, *LISTED_COLUMNS, "moves_since_photo"))]
    )
    with pq.ParquetFile(io.BytesIO(data)) as file:
        table = file.read(columns=[name for name in needed.names if name in file.schema_arrow.names])
    return conform(table, needed).replace_schema_metadata(None)


def check_photos(bins: LabelledBins, config: TrainConfig) -> LabelledBins:
    """The bins whose photos can be used, with a column image_sha256.

    Fetches and decodes every photo once, on the cluster's CPUs, by the audit's own rules. Raises InputError where none
    can be used, GateError where so many can't that the rest is not what was meant (--max-unusable-share).
    """
    table = bins.table
    blocks = [
        table.slice(start, ROWS_PER_TASK).select(["bin_id", *LISTED_COLUMNS])
        for start in range(0, table.num_rows, ROWS_PER_TASK)
    ]
    checked = ray.data.from_blocks(blocks).map_batches(  # from_arrow's own tasks need a whole CPU
        _check_batch,
        batch_size=ROWS_PER_TASK,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
        compute=task_pool(len(blocks)),
        fn_kwargs={"plan": FetchPlan(Preprocessing(image_size=config.image_size), bins.roots, config.anonymous, None)},
    )
    found = pa.concat_tables(list(checked.iter_batches(batch_size=None, batch_format="pyarrow")))
    found = found.sort_by("bin_id")
    table = table.select(COLUMNS).append_column("image_sha256", found["image_sha256"].combine_chunks())
    usable = table.filter(pc.is_valid(table["image_sha256"]))
    if usable.num_rows == table.num_rows:
        return replace(bins, table=usable)
    failed = found.filter(pc.is_null(found["image_sha256"]))
    left_out = dict(Counter(failed["status"].to_pylist()).most_common())
    first = pc.index(table["bin_id"], failed["bin_id"][0]).as_py()
    said = (
        f"{failed.num_rows:,} of {table.num_rows:,} photos can't be used "
        f"({', '.join(f'{count:,} {status}' for status, count in left_out.items())}; the first, "
        f"{table['image_uri'][first].as_py()}: {failed['error'][0].as_py()})"
    )
    if pc.any(failed["gave_up"]).as_py():  # else the same command would train on other bins when storage is back
        raise GateError(f"{said}; when storage is back, the same command goes on")
    if not usable.num_rows:
        raise InputError(
            f"manifest: image_uri: expected photos that can be read, found none: {said}; check the folder, its "
            "permissions and the manifest's URIs"
        )
    if failed.num_rows > config.max_unusable_share * table.num_rows:
        raise GateError(
            f"{said}; --max-unusable-share allows {config.max_unusable_share:.0%}: check the folder and its "
            "permissions, ingest again, or allow more"
        )
    logger.warning("%s; their bins are left out", said)
    return replace(bins, table=usable, left_out=bins.left_out | left_out)


def _check_batch(batch: pa.Table, plan: FetchPlan) -> pa.Table:
    photos = fetch_photos(batch, plan)
    # what an audit doesn't assess teaches nothing either, and tests nothing
    poor = [explain_poor(photo.contrast) for photo in photos]
    statuses = [
        str(photo.status if why is None else Reason.POOR_PHOTO) for photo, why in zip(photos, poor, strict=True)
    ]
    hashes = [
        photo.sha256.hex() if status == ImageStatus.SCORED else None
        for photo, status in zip(photos, statuses, strict=True)
    ]
    return pa.table(
        {
            "bin_id": batch["bin_id"],
            "image_sha256": pa.array(hashes, pa.string()),
            "status": pa.array(statuses, pa.string()),
            "error": pa.array([why or photo.error for photo, why in zip(photos, poor, strict=True)], pa.string()),
            "gave_up": pa.array([photo.gave_up for photo in photos], pa.bool_()),
        }
    )


def fingerprint(bins: pa.Table) -> str:
    """SHA-256 over bins, records, groups and photos, whatever the order and layout of the manifest's files."""
    digest = hashlib.sha256()
    names = [name for name in (*COLUMNS, "image_sha256") if name in bins.column_names]
    for start in range(0, bins.num_rows, 65536):
        part = bins.slice(start, 65536)
        columns = [np.char.encode(np.asarray(part[name].to_pylist(), dtype=str)) for name in names]
        digest.update(b"\x1e".join(b"\x1f".join(row) for row in zip(*columns, strict=True)))
    return digest.hexdigest()
