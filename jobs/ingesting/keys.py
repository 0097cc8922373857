"""The keys of a folder of images or records, listed in a task and passed on in chunks, so that nobody holds them all.

Every source of rows (a listing, an inventory, an export's lines, the records made from them) is a Ray generator that
yields pairs: what the driver must know of a chunk (`ChunkInfo`, constant size), then the chunk itself, an Arrow table
with a text column `key` that it is sorted by. Chunks stay in Ray's object store, which spills them to disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.platform import storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
RECORD_SUFFIXES = (".json",)

CHUNK_ROWS = 50_000
ROWS_PER_SAMPLE = 2000
"""One key in so many is kept by the driver, to cut the keys into partitions of equal size."""

KEYS_SCHEMA = pa.schema([("key", pa.string()), ("uri", pa.string()), ("num_bytes", pa.int64()), ("etag", pa.string())])


@dataclass(frozen=True)
class Folder:
    """What of a folder is wanted."""

    uri: str
    """Absolute, without a trailing slash."""
    suffixes: tuple[str, ...]
    anonymous: bool = False
    key_is_uri: bool = False
    """Whether the rows' key is the whole URI (the export names its images) and not the stem."""


@dataclass(frozen=True)
class ChunkInfo:
    """What the driver learns of a chunk."""

    num_rows: int
    sample: list[str] = field(default_factory=list)
    num_others: int = 0
    """Objects passed over for their suffix."""
    others: list[str] = field(default_factory=list)
    """Up to three of them."""
    num_repeated: int = 0
    """Lines of an export that are those of another one in every column."""
    repeated: list[str] = field(default_factory=list)
    """Where up to three of them stand."""


def describe_chunk(table: pa.Table, others: Sequence[str] = ()) -> ChunkInfo:
    """`table` is sorted by key, so that every so-manieth key is a fair sample."""
    places = pa.array(range(0, table.num_rows, ROWS_PER_SAMPLE), pa.int64())
    return ChunkInfo(
        num_rows=table.num_rows,
        sample=table["key"].take(places).to_pylist(),
        num_others=len(others),
        others=list(others[:3]),
    )


# Not begun anew by Ray where a worker is lost: of a folder that grows meanwhile the chunks would be cut elsewhere, and those
# of both listings would hold a key twice or not at all.
@ray.remote(num_returns="streaming", max_retries=0)
def list_keys(folder: Folder) -> Iterator[ChunkInfo | pa.Table]:
    """Yields the folder's keys, chunk by chunk. Raises InputError where it can't be listed."""
    entries = iter(storage.list_objects(folder.uri, anonymous=folder.anonymous))
    while some := list(islice(entries, CHUNK_ROWS)):
        yield from make_chunk(
            folder, [entry.uri for entry in some], [entry.num_bytes for entry in some], [entry.etag for entry in some]
        )


def make_chunk(
    folder: Folder, uris: list[str], num_bytes: Sequence[int | None], etags: Sequence[str | None]
) -> Iterator[ChunkInfo | pa.Table]:
    """Yields the info and the table of one chunk of objects; other suffixes than the wanted ones are only counted."""
    stems = [find_stem(uri, folder.suffixes) for uri in uris]
    others = [uri for uri, stem in zip(uris, stems, strict=True) if stem is None]
    rows = {"key": uris if folder.key_is_uri else stems, "uri": uris, "num_bytes": num_bytes, "etag": etags}
    table = pa.table(rows, schema=KEYS_SCHEMA).filter(pc.is_valid(pa.array(stems, pa.string())))
    table = table.sort_by([("key", "ascending"), ("uri", "ascending")])
    yield describe_chunk(table, others)
    yield table


def find_stem(uri: str, suffixes: tuple[str, ...]) -> str | None:
    """The file's name without its suffix; None where the suffix is another (`.JPG` is `.jpg`) or all of the name."""
    stem, dot, suffix = uri.rpartition("/")[2].rpartition(".")
    return stem if stem and (dot + suffix).lower() in suffixes else None
