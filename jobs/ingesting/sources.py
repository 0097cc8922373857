"""Parquet and CSV files of others, read chunk by chunk; a damaged one is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.ingesting.keys import CHUNK_ROWS
from jobs.platform.parquet import damage_named
from jobs.platform.ranges import open_ranges

BUFFER_BYTES = 8 * 2**20


def read_chunks(uri: str, parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of `parquet`, which lies at `uri`. Raises DamagedParquet where a page of it is damaged."""
    with damage_named(uri):
        for batch in parquet.iter_batches(CHUNK_ROWS, columns=list(columns)):
            batch.validate(full=True)  # of a text that is no UTF-8 nobody would say in which file it stands
            yield pa.Table.from_batches([batch])


def open_csv(uri: str, *, anonymous: bool) -> pa.NativeFile:
    """A .csv or .csv.gz file as a stream of text. Raises FileNotFoundError."""
    ranges = open_ranges(uri, anonymous=anonymous)
    source = pa.BufferedInputStream(pa.PythonFile(ranges, mode="r"), BUFFER_BYTES)
    return pa.CompressedInputStream(source, "gzip") if uri.lower().endswith(".gz") else source
