"""The manifest's files: claimed, written part by part, and declared whole at the end.

A folder that holds a mark, `_incomplete-…`, is no manifest: each run has one there from before its first part until after
its last one, readers refuse the folder for it (`parquet_files`), and the same command writes it anew.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from jobs.ingesting.matching import EXAMPLES, count_reasons, make_rejects
from jobs.ingesting.records import StorageOutage, read_records, record_columns
from jobs.platform import storage
from jobs.platform.fetching import NotFetched
from jobs.platform.parquet import INCOMPLETE, write_table
from jobs.platform.uris import join
from schemas.abid import BinRecord
from schemas.arrow import conform
from schemas.errors import GateError, InputError
from schemas.manifest import FORMAT_VERSION, MANIFEST_SCHEMA

ROW_GROUP_ROWS = 1024
"""Also what is fetched and parsed at a time."""

_OUR_PARTS = re.compile(r"part-\d{5}(-\d{5})?\.parquet")


@dataclass(frozen=True)
class Target:
    """Where the parts go and what every one of them says."""

    manifest_uri: str
    rejects_uri: str
    audit_date: str
    images_uri: str
    anonymous: bool


@dataclass(frozen=True)
class PartReport:
    """What the driver learns of one part."""

    num_read: int
    """Bins of the slice."""
    num_bins: int
    """Those of them that the part holds."""
    num_inconsistent: int
    rejects: dict[str, int]
    num_unfetched: int = 0
    unfetched: list[str] = field(default_factory=list)
    """The first EXAMPLES records that did not come, and why: their bins are neither in the part nor among the rejects."""


def check_target(target: Target, *, replace: bool) -> None:
    """Raises InputError where the manifest may not or can't be written, before anything is read."""
    for uri in (target.manifest_uri, target.rejects_uri):
        foreign = [entry.uri for entry in _parquet_below(uri) if not _is_ours(uri, entry.uri)]
        if foreign:
            raise InputError(
                f"{uri}: expected a folder of this job's own, found {foreign[0]}; choose another --manifest-uri"
            )
    if not replace and not _marks(target) and _parquet_below(target.manifest_uri):
        raise InputError(f"{target.manifest_uri}: a manifest is already there; choose another place or give --replace")
    for uri in (target.manifest_uri, target.rejects_uri):
        storage.check_writable(uri)


def begin(target: Target, *, replace: bool) -> str:
    """Marks the folder as incomplete, then clears it of a former manifest and of the marks of runs that did not finish it.
    Returns the mark's URI. Raises GateError where another run has finished a manifest since `check_target`."""
    others = _marks(target)
    mark = join(target.manifest_uri, f"{INCOMPLETE}-{uuid.uuid4().hex}")
    storage.write_bytes(mark, b"")
    if not replace and not others and _parquet_below(target.manifest_uri):
        storage.delete([mark])
        raise GateError(
            f"{target.manifest_uri}: another ingest has finished a manifest there meanwhile; it is left as it is"
        )
    storage.delete(others)
    for uri in (target.manifest_uri, target.rejects_uri):
        storage.delete(entry.uri for entry in _parquet_below(uri))
    return mark


def write_rejects(target: Target, rejects: list[Any]) -> None:
    """Writes the rejects (references) of each range of keys."""
    write = ray.remote(write_table)
    uris = [join(target.rejects_uri, f"part-{index:05d}.parquet") for index in range(len(rejects))]
    ray.get([write.remote(uri, table) for uri, table in zip(uris, rejects, strict=True)])


def finish(target: Target, mark: str, facts: dict[str, Any]) -> None:
    """Declares the manifest whole, made as `facts` say. Raises GateError where another run began meanwhile in the same
    folder."""
    if _marks(target) != [mark]:
        # the other may have finished already, or finish yet, and some of what lies there now is ours
        storage.write_bytes(mark, b"")
        raise GateError(
            f"{target.manifest_uri}: another ingest wrote into the same folder meanwhile; run one at a time"
        )
    # beside the manifest and not in its files: the same bins are the same manifest, whichever version found them
    storage.write_json(f"{target.manifest_uri}.json", facts)
    storage.settle(mark)  # a power cut must not take parts of a manifest that is declared whole
    storage.delete([mark])


def write_part(bins: pa.Table, target: Target) -> PartReport:
    """Writes one slice of bins (from `match_range`) as one manifest file, and their unreadable records as rejects.
    Raises GateError where the storage stops answering."""
    tables, reject_rows, unfetched = [], [], []
    is_abid = "skus" not in bins.column_names
    for start in range(0, bins.num_rows, ROW_GROUP_ROWS):
        rows = bins.slice(start, ROW_GROUP_ROWS)
        if is_abid:
            try:
                rows, unreadable, missing = _add_records(rows, target.anonymous)
            except StorageOutage as error:
                raise GateError(f"{error}; the manifest is not complete, run the same command again") from error
            reject_rows += unreadable
            unfetched += missing
        tables.append(conform(rows.append_column("group", _find_groups(rows, is_abid=is_abid)), MANIFEST_SCHEMA))
    name = f"part-{bins['range'][0].as_py():05d}-{bins['slice'][0].as_py():05d}.parquet"
    manifest = pa.concat_tables(tables).replace_schema_metadata(
        {"audit_date": target.audit_date, "images_uri": target.images_uri, "format_version": FORMAT_VERSION}
    )
    rejects = make_rejects(reject_rows)
    if rejects.num_rows:
        write_table(join(target.rejects_uri, name), rejects)
    if manifest.num_rows:
        write_table(join(target.manifest_uri, name), manifest, row_group_size=ROW_GROUP_ROWS)
    num_inconsistent = Counter(manifest["record_inconsistent"].to_pylist())[True]
    return PartReport(
        bins.num_rows,
        manifest.num_rows,
        num_inconsistent,
        count_reasons(rejects),
        num_unfetched=len(unfetched),
        unfetched=unfetched[:EXAMPLES],
    )


def _add_records(rows: pa.Table, anonymous: bool) -> tuple[pa.Table, list[tuple[str, str, str, str]], list[str]]:
    """Bins with their record columns, two reject rows for each unreadable record (its own and its image's), and which
    records did not come."""
    uris = rows["record_uri"].to_pylist()
    found = read_records(uris, anonymous=anonymous)
    readable = [isinstance(record, BinRecord) for record in found]
    rejects, unfetched = [], []
    for bin_id, uri, image_uri, record in zip(
        rows["bin_id"].to_pylist(), uris, rows["image_uri"].to_pylist(), found, strict=True
    ):
        if isinstance(record, NotFetched):
            unfetched.append(f"{uri}: {record}")
        elif not isinstance(record, BinRecord):
            rejects.append((bin_id, "image", "no_record", f"{image_uri}: its record can't be read"))
            rejects.append((bin_id, "record", "unreadable_record", f"{uri}: {record}"))
    rows = rows.filter(pa.array(readable, pa.bool_()))
    for name, values in record_columns([record for record in found if isinstance(record, BinRecord)]).items():
        rows = rows.append_column(name, values)
    return rows, rejects, unfetched


def _find_groups(rows: pa.Table, *, is_abid: bool) -> pa.Array:
    """What must not be split between training and test: in ABID neighbours by number show the same goods (`00123` is in block
    `1` with 100 to 199), elsewhere those with the same first SKU do.
    """
    groups = []
    for bin_id, lines in zip(rows["bin_id"].to_pylist(), rows["skus"].to_pylist(), strict=True):
        if is_abid and bin_id.isascii() and bin_id.isdecimal():
            groups.append(bin_id[:-2].lstrip("0") or "0")
        else:
            groups.append(lines[0]["sku"] if lines else bin_id)
    return pa.array(groups, pa.string())


def _marks(target: Target) -> list[str]:
    """Of runs that did not finish the manifest, or not yet."""
    prefix = join(target.manifest_uri, INCOMPLETE)
    return [entry.uri for entry in storage.list_objects(target.manifest_uri) if entry.uri.startswith(prefix)]


def _parquet_below(uri: str) -> list[storage.StoredObject]:
    return [entry for entry in storage.list_objects(uri) if entry.uri.endswith(".parquet")]


def _is_ours(folder_uri: str, uri: str) -> bool:
    return _OUR_PARTS.fullmatch(uri.removeprefix(folder_uri + "/")) is not None
