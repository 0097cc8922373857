"""Parquet files at a URI: whole tables, single row groups, data sets of many files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.platform import storage
from jobs.platform.ranges import RangeReader, open_ranges
from jobs.platform.uris import absolute, join
from schemas.arrow import DAMAGED_PARQUET
from schemas.errors import InputError

INCOMPLETE = "_incomplete"
"""Names that begin so stand in a folder of Parquet files from before its first file until after its last one is written."""


class DamagedParquet(InputError):  # noqa: N818 - what the file is
    """No Parquet file, or a damaged one as a power cut may leave it; one that may not be read is none of these."""


@contextmanager
def damage_named(uri: str) -> Iterator[None]:
    """Around the reading of a Parquet file: damage, which Arrow finds where it stands, in the footer or in some page of
    some column, is a DamagedParquet that names the file."""
    try:
        yield
    except DAMAGED_PARQUET as error:
        # no __init__ of its own: what a worker raises is pickled
        raise DamagedParquet(
            f"{uri}: expected a Parquet file, found something else or a damaged one ({error})"
        ) from error


SUFFIX = ".parquet"
"""In any case: other systems write `.PARQUET`."""


def parquet_files(uri: str, *, anonymous: bool = False) -> list[storage.StoredObject]:
    """The Parquet files of a data set (one file, or a folder of them), sorted by URI. Names with `_` or `.` in front, of
    files and of folders (`_temporary`, `_delta_log`), are those of what wrote it.

    Raises InputError where there is none, and where the folder is marked as not yet whole.
    """
    if uri.lower().endswith(SUFFIX) and (one := storage.describe(uri, anonymous=anonymous)) is not None:
        return [one]
    listed = list(storage.list_objects(uri, anonymous=anonymous))
    below = join(absolute(uri), "")
    if any(entry.uri.removeprefix(below).startswith(INCOMPLETE) for entry in listed):
        raise InputError(
            f"{uri}: expected a whole data set, found one being written or cut short; run the job that writes it again"
        )
    found = [
        entry
        for entry in listed
        if entry.uri.lower().endswith(SUFFIX)
        and not any(name.startswith(("_", ".")) for name in entry.uri.removeprefix(below).split("/"))
    ]
    if not found:
        raise InputError(f"{uri}: expected a Parquet file or a folder of .parquet files, found none")
    return sorted(found, key=lambda entry: entry.uri)


def open_parquet(uri: str, *, anonymous: bool = False) -> pq.ParquetFile:
    """A Parquet file that is read range by range. Raises DamagedParquet where it is none."""
    ranges = open_ranges(uri, anonymous=anonymous)
    with damage_named(uri):
        parquet = pq.ParquetFile(pa.PythonFile(ranges, mode="r"))
        _ = parquet.schema_arrow.names  # names that are no UTF-8 are found damaged here, and not by who asks for them
        return parquet


def read_row_group(uri: str, row_group: int) -> pa.Table:
    """One of the many row groups of a file: its footer, megabytes where there are thousands, is read once a process.

    Raises FileNotFoundError where the file is not there, DamagedParquet where it is no Parquet file or a damaged one."""
    found = storage.find_object(uri)
    ranges = pa.PythonFile(RangeReader(found), mode="r")
    with damage_named(uri):
        return pq.ParquetFile(ranges, metadata=_footer(found)).read_row_group(row_group)


@lru_cache(maxsize=1)  # a worker goes through files one after the other, and a parsed footer takes up to 50 MB
def _footer(found: storage.StoredObject) -> pq.FileMetaData:
    return open_parquet(found.uri).metadata


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file as a table. Raises DamagedParquet where it is none."""
    data = storage.read_bytes(uri)
    with damage_named(uri):
        return pq.ParquetFile(io.BytesIO(data)).read(columns)


def write_table(uri: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
    """One Parquet file, written whole or not at all."""
    storage.write_bytes(uri, parquet_bytes(table, row_group_size=row_group_size))


def parquet_bytes(table: pa.Table, *, row_group_size: int | None = None) -> memoryview:
    """A table as the bytes of one Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getbuffer()
