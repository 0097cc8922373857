"""The streaming pass of the exploration, and what it found."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from jobs.exploring.looks import draw_sample, look_at
from jobs.exploring.records import RecordFacts, count_groups, gather_facts
from jobs.platform.cluster import CHECK_CPUS
from jobs.platform.line_timer import LineTimer
from jobs.platform.reports import read_reports, report_table
from jobs.stages.duplicates import find_duplicates
from jobs.stages.images import FetchPlan
from jobs.stages.resources import Resources
from jobs.stages.worklist import Shard, shard_dataset, shards_in
from schemas.results import ImageStatus

logger = logging.getLogger(__name__)

MAX_IDENTICAL = 12


@dataclass
class Survey:
    """All that the page tells."""

    records: RecordFacts
    photos: list[dict[str, Any]]
    """Readable photos of the sample, by bin_id; see looks.look_at."""
    failed: list[dict[str, Any]]
    """Photos of the sample that are missing or unreadable, by bin_id."""
    group_sizes: Counter[int]
    identical: list[dict[str, Any]]
    """Photos that several bins show: `bin_ids`, `image_uri` of one, `how` they were found."""


def survey_bins(shards: list[Shard], plan: FetchPlan, *, share: float, seed: int, resources: Resources) -> Survey:
    """Reads all records and about `share` of the photos."""
    found = shard_dataset(shards).map_batches(
        _survey_shard,  # type: ignore[arg-type]
        fn_kwargs={"plan": plan, "share": share, "seed": seed},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(resources.num_fetchers, len(shards))),
        num_cpus=resources.fetcher_cpus,
    )
    records, looks = RecordFacts(), []
    num_bins = sum(shard.num_rows for shard in shards)
    timer = LineTimer(10.0)
    for facts, found_looks in read_reports(found):
        records.merge(facts)
        looks += found_looks
        if timer.is_due() or records.num_bins == num_bins:
            logger.info("%d of %d bins, %d photos looked at", records.num_bins, num_bins, len(looks))
    looks.sort(key=lambda look: look["bin_id"])
    photos = [look for look in looks if look["status"] == ImageStatus.SCORED]
    return Survey(
        records=records,
        photos=photos,
        failed=[look for look in looks if look["status"] != ImageStatus.SCORED],
        group_sizes=count_groups(shards),
        identical=_find_identical(shards, photos),
    )


def _survey_shard(items: pa.Table, plan: FetchPlan, share: float, seed: int) -> pa.Table:
    reports = []
    for shard in shards_in(items):
        rows = shard.read()
        sample = rows.filter(pa.array(draw_sample(rows["bin_id"].to_pylist(), share, seed)))
        reports.append((gather_facts(rows), look_at(sample, plan)))
    return report_table(*reports)


def _find_identical(shards: list[Shard], photos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By content among the sample's photos; by URI and ETag among all bins' (an S3 ETag is a digest of the content,
    that of a local file is its inode)."""
    found = []
    by_content = defaultdict(list)
    for photo in photos:
        by_content[photo["sha256"]].append(photo)
    for same in by_content.values():
        # those of one URI are found below, among all bins
        if len({photo["image_uri"] for photo in same}) > 1:
            found.append(
                _identical([photo["bin_id"] for photo in same], same[0]["image_uri"], "same content", len(same))
            )
    files = sorted({shard.uri for shard in shards})
    for column, how in (("image_uri", "same image_uri"), ("image_etag", "same ETag")):
        counts = dict(find_duplicates(files, column, limit=MAX_IDENTICAL))
        if not counts:
            continue
        rows = _rows_with(shards, column, list(counts))
        for value, num_bins in counts.items():
            same_rows = rows.filter(pc.equal(rows[column], value))
            if column == "image_etag" and len(pc.unique(same_rows["image_uri"])) == 1:
                continue
            found.append(_identical(same_rows["bin_id"].to_pylist(), same_rows["image_uri"][0].as_py(), how, num_bins))
    unique: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in found:
        unique.setdefault(tuple(entry["bin_ids"]), entry)
    return sorted(unique.values(), key=lambda entry: entry["bin_ids"])[:MAX_IDENTICAL]


def _identical(bin_ids: list[str], image_uri: str, how: str, num_bins: int) -> dict[str, Any]:
    return {"bin_ids": sorted(bin_ids)[:MAX_IDENTICAL], "num_bins": num_bins, "image_uri": image_uri, "how": how}


def _rows_with(shards: list[Shard], column: str, values: list[str]) -> pa.Table:
    """The first rows of each value of `column` (bin_id, image_uri, image_etag), at most MAX_IDENTICAL of it."""
    dataset = shard_dataset(shards).map_batches(
        _take_rows,  # type: ignore[arg-type]
        fn_kwargs={"column": column, "values": values},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CHECK_CPUS,
    )
    found: pa.Table | None = None
    for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        found = _first_of_each(rows if found is None else pa.concat_tables([found, rows]), column, values)
    assert found is not None
    return found


def _take_rows(items: pa.Table, column: str, values: list[str]) -> pa.Table:
    rows = [shard.read().select(["bin_id", "image_uri", "image_etag"]) for shard in shards_in(items)]
    return _first_of_each(pa.concat_tables(rows), column, values)


def _first_of_each(rows: pa.Table, column: str, values: list[str]) -> pa.Table:
    """The first MAX_IDENTICAL rows by bin_id of each value: the same whatever order the shards come in."""
    rows = rows.filter(pc.is_in(rows[column], pa.array(values))).sort_by("bin_id")
    return pa.concat_tables([rows.filter(pc.equal(rows[column], value)).slice(0, MAX_IDENTICAL) for value in values])
