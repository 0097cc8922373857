"""The manifest cut into shards: each a fixed range of rows, one row group of a run's own copy of the manifest.

A shard is the unit of work and of resume: one staged file each. The copy is needed because a foreign manifest may be one
row group of a million rows.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from jobs.platform import storage
from jobs.platform.cluster import CHECK_CPUS
from jobs.platform.parquet import DamagedParquet, open_parquet, read_row_group
from jobs.platform.uris import is_s3, join
from jobs.stages.manifest import Manifest
from schemas.arrow import conform
from schemas.errors import InputError
from schemas.manifest import MANIFEST_SCHEMA

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 2**30
"""Of decoded photos: they are one Arrow array, whose 32-bit offsets end at 2 GiB, and each worker holds a shard."""


@dataclass(frozen=True)
class Shard:
    """One row group of the run's copy of the manifest."""

    index: int
    uri: str
    row_group: int
    num_rows: int

    def read(self) -> pa.Table:
        """The shard's rows, MANIFEST_SCHEMA."""
        return read_row_group(self.uri, self.row_group)


def write_worklist(manifest: Manifest, folder_uri: str, image_size: int) -> list[Shard]:
    """Copies the manifest into `folder_uri`, one shard a row group; files that a former try wrote whole are kept.

    `image_size`: side of the decoded photos that a shard is to hold, 0 for none. Raises InputError where a file is not
    the one that was checked any more.
    """
    rows = shard_rows(manifest.num_rows, image_size)
    copies = [join(folder_uri, f"{index:05d}.parquet") for index in range(len(manifest.files))]
    work = [
        {"source": file.uri, "sha256": file.sha256, "num_rows": file.num_rows, "target": target, "rows": rows}
        for file, target in zip(manifest.files, copies, strict=True)
    ]
    ray.data.from_items(work, override_num_blocks=len(work)).map(_copy_file, num_cpus=CHECK_CPUS).materialize()
    shards: list[Shard] = []
    for file, target in zip(manifest.files, copies, strict=True):
        for row_group, start in enumerate(range(0, file.num_rows, rows)):
            shards.append(Shard(len(shards), target, row_group, min(rows, file.num_rows - start)))
    return shards


def shard_dataset(shards: Sequence[Shard]) -> ray.data.Dataset:
    """One row and one block a shard, for tasks that take them out again by `shards_in`."""
    return ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))


def shards_in(items: pa.Table) -> list[Shard]:
    """The shards of a block of `shard_dataset`."""
    return [Shard(**item) for item in items.to_pylist()]


def shard_rows(num_rows: int, image_size: int) -> int:
    """Rows of a shard: small ones give progress and cheap resume, large ones keep the staged files few."""
    most = MAX_SHARD_BYTES // max(1, 3 * image_size**2)
    return max(1, min(most, int(np.clip(2 ** np.ceil(np.log2(max(1, num_rows) / 4096)), 256, 2048))))


@contextmanager
def temporary_worklist(manifest: Manifest, output_uri: str, image_size: int) -> Iterator[list[Shard]]:
    """The manifest's shards for a job that keeps nothing to resume from, copied to where all workers can read them and
    deleted at the end of the block. `image_size`: as in write_worklist."""
    # of this job alone: another one with the same output must not delete it
    folder_uri = join(output_uri, f"worklist-{uuid.uuid4().hex}")
    try:
        yield write_worklist(manifest, folder_uri, image_size)
    finally:
        if is_s3(folder_uri):
            storage.delete([entry.uri for entry in storage.list_objects(folder_uri)])
        else:  # with what a killed worker was writing, which no listing names
            shutil.rmtree(folder_uri, ignore_errors=True)


def _copy_file(row: dict) -> dict:
    if _is_whole(row["target"], row["num_rows"]):
        return {"target": row["target"]}
    try:
        data = storage.read_bytes(row["source"])
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise InputError(
            f"{row['source']}: expected the file that was checked a moment ago, found another one or none; leave the "
            "manifest alone while a job reads it, and run the same command again"
        )
    parquet = pq.ParquetFile(io.BytesIO(data))
    present = [field.name for field in MANIFEST_SCHEMA if field.name in parquet.schema_arrow.names]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, MANIFEST_SCHEMA, compression="zstd") as writer:
        held: pa.Table | None = None
        for batch in parquet.iter_batches(batch_size=65536, columns=present):
            table = conform(pa.Table.from_batches([batch]), MANIFEST_SCHEMA).replace_schema_metadata(None)
            if "sku" not in present:
                table = table.set_column(
                    table.schema.get_field_index("sku"), MANIFEST_SCHEMA.field("sku"), _sole_skus(table)
                )
            held = table if held is None else pa.concat_tables([held, table])
            whole = held.num_rows // row["rows"] * row["rows"]
            if whole:
                writer.write_table(held.slice(0, whole), row_group_size=row["rows"])
                held = held.slice(whole)
        if held is not None and held.num_rows:
            writer.write_table(held, row_group_size=row["rows"])
    storage.write_bytes(row["target"], sink.getvalue())
    return {"target": row["target"]}


def _sole_skus(rows: pa.Table) -> pa.Array:
    """(n,) the SKU of which a bin of one holds pieces, null in others."""
    lines = zip(rows["num_skus"].to_pylist(), rows["skus"].to_pylist(), strict=True)
    first = [
        next((line["sku"] for line in skus if line["quantity"]), None) if num == 1 else None for num, skus in lines
    ]
    return pa.array(first, pa.string())


def _is_whole(uri: str, num_rows: int) -> bool:
    """Whether a former try's copy is there: a power cut can leave a file of any length under its final name."""
    try:
        return open_parquet(uri).metadata.num_rows == num_rows
    except FileNotFoundError:
        return False
    except DamagedParquet as error:
        logger.warning("%s; it is written again", error)
        return False
