"""Parquet files of others, read chunk by chunk; a damaged one is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.ingesting.keys import CHUNK_ROWS
from schemas.errors import InputError


def read_chunks(uri: str, parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of `parquet`, which lies at `uri`. Raises InputError where a page of it is damaged."""
    try:
        for batch in parquet.iter_batches(CHUNK_ROWS, columns=list(columns)):
            batch.validate(full=True)  # of a text that is no UTF-8 nobody would say in which file it stands
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: expected a Parquet file, found a damaged one ({error})") from error
