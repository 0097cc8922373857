"""Images meet their records: one of each is a bin, everything else is a reject. Nothing is guessed, nothing is lost.

Every image and every record ends up exactly once as a bin or as a reject: of two images (or records) with one key
neither is used, because nobody knows which one is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.ingesting.exchange import merge
from schemas.manifest import REJECTS_SCHEMA

EXAMPLES = 3
"""So many of each kind are named in a message."""


@dataclass(frozen=True)
class Matched:
    """What the driver learns of one range of keys."""

    num_bins: int
    rejects: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Of each kind, image and record, up to EXAMPLES rejects."""


@ray.remote(num_returns="streaming")
def match_range(index: int, slice_rows: int, num_image_pieces: int, *pieces: pa.Table) -> Iterator[Matched | pa.Table]:
    """Matches the images (the first pieces) and records of range `index`.

    Yields a `Matched`, the rejects, then the bins, sorted, in slices of `slice_rows`; each knows its manifest file by its
    columns `range` and `slice`.
    """
    records = merge(pieces[num_image_pieces:])
    if "problem" not in records.column_names:  # keys of ABID records, still to be read: the stem is the bin
        records = records.select(["key", "uri"]).append_column("bin_id", records["key"])
        records = records.append_column("problem", pa.nulls(records.num_rows, pa.string()))
    bins, rejects = match(merge(pieces[:num_image_pieces]), records)
    yield Matched(bins.num_rows, count_reasons(rejects), _choose_examples(rejects))
    yield rejects
    for number, start in enumerate(range(0, bins.num_rows, slice_rows)):
        rows = bins.slice(start, slice_rows)
        rows = rows.append_column("range", pa.repeat(pa.scalar(index, pa.int32()), rows.num_rows))
        yield rows.append_column("slice", pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows)).combine_chunks()


def match(images: pa.Table, records: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The bins and the rejects.

    `images` has the columns of KEYS_SCHEMA; `records` has `key`, `uri` (where it stands), `bin_id` and `problem` (why
    it can't be used, else null) and any others. The bins have the records' columns, `uri` as `record_uri`, and
    image_uri, image_bytes, image_etag.
    """
    images_of_image, records_of_image = _count(images, images), _count(images, records)
    images_of_record, records_of_record = _count(records, images), _count(records, records)
    spoiled = pc.is_valid(records["problem"]).to_numpy()
    spoiled_image = pc.is_in(images["key"], records["key"].filter(pa.array(spoiled)).combine_chunks()).to_numpy()

    is_bin = (images_of_record == 1) & (records_of_record == 1) & ~spoiled
    usable = records.filter(pa.array(is_bin))
    photos = images.take(pc.index_in(usable["key"], images["key"].combine_chunks()))
    bins = usable.rename_columns({"uri": "record_uri"}).drop_columns(["key", "problem"])
    for name, source in (("image_uri", "uri"), ("image_bytes", "num_bytes"), ("image_etag", "etag")):
        bins = bins.append_column(name, photos[source])

    unmatched = pa.array((images_of_image > 1) | (records_of_image != 1) | spoiled_image)
    image_rejects = _reject_images(
        images.filter(unmatched),
        *(values[unmatched.to_numpy(zero_copy_only=False)] for values in (images_of_image, records_of_image)),
    )
    record_rejects = _reject_records(
        records.filter(pa.array(~is_bin)), images_of_record[~is_bin], records_of_record[~is_bin]
    )
    return bins, pa.concat_tables([image_rejects, record_rejects]).sort_by(
        [("key", "ascending"), ("kind", "ascending")]
    )


def make_rejects(rows: Iterable[tuple[str, str, str, str]]) -> pa.Table:
    """Rejects from (key, kind, reason, detail)."""
    columns = list(zip(*rows, strict=True)) or [()] * 4
    return pa.Table.from_arrays([pa.array(values, pa.string()) for values in columns], schema=REJECTS_SCHEMA)


def count_reasons(rejects: pa.Table) -> dict[str, int]:
    return dict(Counter(rejects["reason"].to_pylist()))


def _choose_examples(rejects: pa.Table) -> dict[str, list[str]]:
    return {
        kind: rejects.filter(pc.equal(rejects["kind"], kind)).slice(0, EXAMPLES)["detail"].to_pylist()
        for kind in ("image", "record")
    }


def _reject_images(images: pa.Table, num_images: np.ndarray, num_records: np.ndarray) -> pa.Table:
    rows = []
    keys, uris = images["key"].to_pylist(), images["uri"].to_pylist()
    for key, uri, same, found in zip(keys, uris, num_images, num_records, strict=True):
        if same > 1:
            rows.append((key, "image", "duplicate_image", f"{uri}: one of {same} images of this key; none is used"))
        else:
            why = {0: "no record of this key", 1: "its record can't be read"}.get(found, f"{found} records of this key")
            rows.append((key, "image", "no_record", f"{uri}: {why}"))
    return make_rejects(rows)


def _reject_records(records: pa.Table, num_images: np.ndarray, num_records: np.ndarray) -> pa.Table:
    rows = []
    columns = [records[name].to_pylist() for name in ("key", "bin_id", "uri", "problem")]
    for key, bin_id, uri, problem, found, same in zip(*columns, num_images, num_records, strict=True):
        if problem is not None:
            reason, why = "unreadable_record", problem
        elif same > 1:
            reason, why = "duplicate_record", f"one of {same} records of this key; none is used"
        else:
            reason, why = "no_image", f"{found} images of this key" if found else "no image of this key"
        rows.append((bin_id or key, "record", reason, f"{uri}: {why}"))
    return make_rejects(rows)


def _count(rows: pa.Table, others: pa.Table) -> np.ndarray:
    """For each of `rows` how many of `others` have its key."""
    counted = pc.value_counts(others["key"].combine_chunks())
    place = pc.index_in(rows["key"], counted.field("values"))
    return pc.fill_null(counted.field("counts").take(place), 0).to_numpy()
