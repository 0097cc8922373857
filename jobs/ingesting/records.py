"""ABID records fetched, many at a time, and parsed: from the bins' record URIs to the manifest's record columns."""

from __future__ import annotations

import asyncio

import pyarrow as pa

from jobs.platform.fetching import OUTAGE_FAILURES, FailureStreak, Fault, NotFetched, fetch_bytes
from schemas.abid import MAX_RECORD_BYTES, BinRecord, UnreadableRecord, parse_record
from schemas.manifest import SKU_LINE

REQUESTS_IN_FLIGHT = 64
"""Per task. A record is a few kB: the wait for its first byte is all that costs."""

UNREADABLE = {
    Fault.MISSING: "expected the object that was listed, found it gone",
    # an inventory may name what obstore takes for no path
    Fault.NO_KEY: "expected a valid key, found one with empty parts or control characters",
    Fault.TOO_LARGE: f"expected at most {MAX_RECORD_BYTES:,} bytes, found more",
}


class StorageOutage(RuntimeError):  # noqa: N818 - an outage, said as what it is
    """The storage stopped answering: what it holds can't be called unreadable."""


class RecordsDenied(StorageOutage):
    """The storage answers, and that these records may not be read: no later try of the same command changes that."""


Found = BinRecord | UnreadableRecord | NotFetched
"""NotFetched: the storage did not deliver, or denied; what the record says, nobody knows."""


def read_records(uris: list[str], *, anonymous: bool) -> list[Found]:
    """For each URI its record, or why there is none. Raises StorageOutage where the storage stops answering."""
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


async def _read_all(uris: list[str], anonymous: bool) -> list[Found]:
    slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
    streak = FailureStreak()

    async def read(uri: str) -> Found:
        async with slots:
            found: Found
            try:
                found = parse_record(await fetch_bytes(uri, anonymous=anonymous, most_bytes=MAX_RECORD_BYTES))
            except UnreadableRecord as reason:
                found = reason
            except NotFetched as reason:
                found = UnreadableRecord(UNREADABLE[reason.fault]) if reason.fault in UNREADABLE else reason
            if not isinstance(found, NotFetched):
                streak.end()
            elif streak.add():
                kind = RecordsDenied if found.fault is Fault.DENIED else StorageOutage
                raise kind(f"can't be fetched: {uri}: {found}, like {OUTAGE_FAILURES - 1} others before it") from found
            return found

    return await asyncio.gather(*(read(uri) for uri in uris))
