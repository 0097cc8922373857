"""ABID records fetched, many at a time, and parsed: from the bins' record URIs to the manifest's record columns."""

from __future__ import annotations

import asyncio

import pyarrow as pa
from obstore.exceptions import BaseError, NotFoundError

from jobs import storage
from schemas.abid import MAX_RECORD_BYTES, BinRecord, UnreadableRecord, parse_record
from schemas.manifest import SKU_LINE

REQUESTS_IN_FLIGHT = 64
"""Per task. A record is a few kB: the wait for its first byte is all that costs."""


def read_records(uris: list[str], *, anonymous: bool) -> list[BinRecord | UnreadableRecord]:
    """For each URI its record, or why there is none."""
    return asyncio.run(_read_all(uris, anonymous))


def record_columns(records: list[BinRecord]) -> dict[str, pa.Array]:
    """The manifest's columns that come from the records."""
    expected_skus = [list(dict.fromkeys(line.sku for line in record.lines if line.quantity)) for record in records]
    lines = [
        [{"sku": line.sku, "name": line.name, "quantity": line.quantity} for line in record.lines] for record in records
    ]
    return {
        "expected_qty": pa.array([record.expected_qty for record in records], pa.int32()),
        "num_skus": pa.array([len(skus) for skus in expected_skus], pa.int32()),
        "skus": pa.array(lines, pa.list_(SKU_LINE)),
        "sku": pa.array([skus[0] if len(skus) == 1 else None for skus in expected_skus], pa.string()),
        "record_inconsistent": pa.array([record.inconsistent for record in records], pa.bool_()),
    }


async def _read_all(uris: list[str], anonymous: bool) -> list[BinRecord | UnreadableRecord]:
    slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT)

    async def read(uri: str) -> BinRecord | UnreadableRecord:
        async with slots:
            try:
                return parse_record(await _fetch(uri, anonymous))
            except UnreadableRecord as reason:
                return reason

    return await asyncio.gather(*(read(uri) for uri in uris))


async def _fetch(uri: str, anonymous: bool) -> bytes:
    store, key = storage.locate(uri, anonymous=anonymous)
    try:
        found = await store.get_async(key)
        if found.meta["size"] > MAX_RECORD_BYTES:
            raise UnreadableRecord(f"expected at most {MAX_RECORD_BYTES:,} bytes, found {found.meta['size']:,}")
        return bytes(await found.bytes_async())
    except (NotFoundError, FileNotFoundError) as error:
        raise UnreadableRecord("expected the object that was listed, found it gone") from error
    except (BaseError, OSError) as error:
        raise UnreadableRecord(f"can't be fetched ({storage.explain_any(error)})") from error
