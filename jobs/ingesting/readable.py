"""Whether any record of the bins can be read: asked before a former manifest makes way for what may come to nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from jobs.ingesting.matching import EXAMPLES
from jobs.ingesting.parts import Target
from jobs.ingesting.records import REQUESTS_IN_FLIGHT, RecordsDenied, StorageOutage, read_records
from jobs.platform.fetching import NotFetched
from schemas.abid import BinRecord
from schemas.errors import GateError, InputError


@dataclass
class Probe:
    """What a look at the records of one slice of bins found; it ends at the first one that can be read."""

    readable: bool = False
    num_unfetched: int = 0
    unfetched: list[str] = field(default_factory=list)
    """Up to EXAMPLES records that did not come, and why."""
    unreadable: list[str] = field(default_factory=list)
    """The same of those that are no records."""


def check_readable(slices: list[Any], target: Target) -> None:
    """Raises InputError where no bin of the slices (references) has a record that can be read, GateError where that can't
    be known because records don't come."""
    probes: list[Probe] = []
    for some in (slices[:1], slices[1:]):  # the first slice answers, or nearly every record is bad
        probes += ray.get([_probe.remote(part, target.anonymous) for part in some])
        if any(probe.readable for probe in probes):
            return
    num_unfetched = sum(probe.num_unfetched for probe in probes)
    if num_unfetched:
        raise unfetched_error(
            num_unfetched, [line for probe in probes for line in probe.unfetched], "nothing was written"
        )
    unreadable = [line for probe in probes for line in probe.unreadable][:EXAMPLES]
    what = f"{target.images_uri}: no image has a readable record of its stem; nothing was written. The first of the records:"
    raise InputError("\n  ".join([what, *unreadable]))


def unfetched_error(number: int, examples: list[str], outcome: str) -> GateError:
    """What to say of records that did not come."""
    what = f"{number:,} records could not be fetched; {outcome}, run the same command again. The first of them:"
    return GateError("\n  ".join([what, *examples[:EXAMPLES]]))


def probe(bins: pa.Table, anonymous: bool) -> Probe:
    """Looks for a record that can be read. Raises GateError where the storage stops answering."""
    if "skus" in bins.column_names:  # an export's, and read already
        return Probe(readable=bins.num_rows > 0)
    looked = Probe()
    uris = bins["record_uri"].to_pylist()
    for start in range(0, len(uris), REQUESTS_IN_FLIGHT):
        some = uris[start : start + REQUESTS_IN_FLIGHT]
        try:
            records = read_records(some, anonymous=anonymous)
        except RecordsDenied as error:
            raise InputError(
                f"{error}; nothing was written; let the job read the records (s3:GetObject, and kms:Decrypt where they are "
                "encrypted)"
            ) from error
        except StorageOutage as error:
            raise GateError(f"{error}; nothing was written, run the same command again") from error
        for uri, record in zip(some, records, strict=True):
            if isinstance(record, BinRecord):
                return Probe(readable=True)
            if isinstance(record, NotFetched):
                looked.num_unfetched += 1
                looked.unfetched = [*looked.unfetched, f"{uri}: {record}"][:EXAMPLES]
            else:
                looked.unreadable = [*looked.unreadable, f"{uri}: {record}"][:EXAMPLES]
    return looked


_probe = ray.remote(probe)
