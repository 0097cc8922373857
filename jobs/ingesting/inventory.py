"""Keys from an S3 Inventory instead of a listing, which takes hours where there are a hundred million of them.

Format: docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html. A `manifest.json` names the inventory's
files and, for CSV, which has no header, the columns. Only current versions count, and no delete markers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import ray

from jobs.ingesting.keys import CHUNK_ROWS, ChunkInfo, Folder, make_chunk
from jobs.ingesting.sources import open_csv, read_chunks
from jobs.platform import storage
from jobs.platform.parquet import open_parquet
from jobs.platform.uris import bucket_of, is_s3
from schemas.errors import InputError

_COLUMNS = {
    "bucket": "bucket",
    "key": "key",
    "size": "num_bytes",
    "islatest": "is_latest",
    "isdeletemarker": "is_deleted",
}
"""From the names in manifest.json and in Parquet files (without `_`, in lower case) to ours."""


def read_inventories(uris: Sequence[str], folder: Folder) -> list[Any]:
    """Starts reading: one generator of the folder's keys per file. Raises InputError for what is no inventory."""
    generators = []
    for uri in uris:
        if uri.endswith(".json"):
            generators += _read_manifest(uri, folder)
        elif uri.endswith(".parquet"):
            generators.append(_read_parquet.remote(uri, folder))
        elif uri.endswith((".csv", ".csv.gz")):
            # AWS puts Bucket and Key first; what other columns mean only manifest.json says.
            generators.append(_read_csv.remote(uri, ["bucket", "key"], folder))
        else:
            raise InputError(f"{uri}: expected an inventory's manifest.json, .parquet, .csv or .csv.gz file")
    return generators


def _is_public(uri: str, folder: Folder) -> bool:
    """Whether it is read as the folder is: beside public photos, yes; in a bucket of one's own, with one's credentials."""
    return folder.anonymous and are_in_one_bucket(folder.uri, uri)


def are_in_one_bucket(uri: str, other: str) -> bool:
    return is_s3(uri) and bucket_of(uri) == bucket_of(other)


def _read_manifest(uri: str, folder: Folder) -> list[Any]:
    try:
        document = storage.read_json(uri, anonymous=_is_public(uri, folder))
        file_format, columns = document["fileFormat"], [name.strip() for name in document["fileSchema"].split(",")]
        keys = [entry["key"] for entry in document["files"]]
        bucket = document["destinationBucket"].rpartition(":")[2]
    except FileNotFoundError as error:
        raise InputError(f"{uri}: expected an S3 Inventory's manifest.json, found nothing") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{uri}: expected an S3 Inventory's manifest.json with fileFormat, fileSchema, files and "
            f"destinationBucket, found another document ({type(error).__name__}: {error})"
        ) from error
    if file_format == "Parquet":
        return [_read_parquet.remote(f"s3://{bucket}/{key}", folder) for key in keys]
    if file_format == "CSV":
        names = [_our_name(name) for name in columns]
        _check_names(uri, names, columns)
        return [_read_csv.remote(f"s3://{bucket}/{key}", names, folder) for key in keys]
    raise InputError(
        f"{uri}: fileFormat: expected CSV or Parquet, found {file_format}; set the inventory up as Parquet"
    )


@ray.remote(num_returns="streaming")
def _read_parquet(uri: str, folder: Folder) -> Iterator[ChunkInfo | pa.Table]:
    try:
        parquet = open_parquet(uri, anonymous=_is_public(uri, folder))
    except FileNotFoundError as error:
        raise InputError(f"{uri}: expected an S3 Inventory file, found nothing") from error
    names = {name: _our_name(name) for name in parquet.schema_arrow.names if _our_name(name) in _COLUMNS.values()}
    _check_names(uri, list(names.values()), parquet.schema_arrow.names)
    try:
        for rows in read_chunks(uri, parquet, list(names)):
            yield from _make_chunk(rows.rename_columns([names[name] for name in rows.column_names]), folder)
    except pa.ArrowException as error:  # of a type that is no text, or no number
        kinds = ", ".join(f"{name} ({parquet.schema_arrow.field(name).type})" for name in names)
        raise InputError(f"{uri}: expected an S3 Inventory's columns, found {kinds}: {error}") from error


def _check_names(uri: str, ours: list[str], found: Sequence[str]) -> None:
    if not {"bucket", "key"} <= set(ours) or len(set(ours)) < len(ours):
        raise InputError(
            f"{uri}: expected an S3 Inventory with the columns bucket and key, each column once, found {', '.join(found)}"
        )


@ray.remote(num_returns="streaming")
def _read_csv(uri: str, names: list[str], folder: Folder) -> Iterator[ChunkInfo | pa.Table]:
    try:
        source = open_csv(uri, anonymous=_is_public(uri, folder))
    except FileNotFoundError as error:
        raise InputError(f"{uri}: expected an S3 Inventory file, found nothing") from error
    try:
        reader = pyarrow.csv.open_csv(
            source,
            read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=8 * 2**20, use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=[name for name in names if name in _COLUMNS.values()],
            ),
        )
        for batch in reader:
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                rows = pa.Table.from_batches([batch.slice(start, CHUNK_ROWS)])
                # In CSV, and only there, keys are URL-encoded.
                keys = [unquote_plus(key) for key in rows["key"].to_pylist()]
                rows = rows.set_column(rows.column_names.index("key"), "key", pa.array(keys, pa.string()))
                yield from _make_chunk(rows, folder)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{uri}: expected an S3 Inventory in CSV with {len(names)} columns ({', '.join(names)}); "
            f"give its manifest.json, which names the columns ({error})"
        ) from error
    except (OSError, EOFError) as error:
        raise InputError(f"{uri}: expected an S3 Inventory file, found a damaged one ({error})") from error


def _make_chunk(rows: pa.Table, folder: Folder) -> Iterator[ChunkInfo | pa.Table]:
    """Keeps what is below the folder and current."""
    bucket, _, prefix = folder.uri.removeprefix("s3://").partition("/")
    for name in ("bucket", "key"):  # a dictionary of texts, as some writers make it, compares with none
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.string()))
    wanted = pc.equal(rows["bucket"], bucket)
    if prefix:
        wanted = pc.and_(wanted, pc.starts_with(rows["key"], prefix + "/"))
    for name, value in (("is_latest", "true"), ("is_deleted", "false")):
        if name in rows.column_names:
            said = pc.utf8_lower(rows[name].cast(pa.string()))
            wanted = pc.and_(wanted, pc.fill_null(pc.equal(said, value), True))
    rows = rows.filter(wanted)
    nothing = [None] * rows.num_rows
    yield from make_chunk(
        folder,
        [f"s3://{bucket}/{key}" for key in rows["key"].to_pylist()],
        rows["num_bytes"].cast(pa.int64()).to_pylist() if "num_bytes" in rows.column_names else nothing,
        # No ETag: an inventory is a day old or more, and the audit refuses a photo whose ETag is not the manifest's.
        nothing,
    )


def _our_name(name: str) -> str:
    return _COLUMNS.get(name.replace("_", "").lower(), name)
