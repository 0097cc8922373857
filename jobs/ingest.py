r"""Builds the night's manifest: one row per bin, its photo beside its record.

    python -m jobs.ingest --images-uri demo/night/bin-images --records-uri demo/night/metadata --manifest-uri demo/manifest

    ray job submit --working-dir . -- python -m jobs.ingest --images-uri s3://bucket/bin-images \
        --records-uri s3://bucket/metadata --manifest-uri s3://bucket/manifests/2026-01-31

Writes Parquet files below the manifest's URI (one row per bin, sorted by bin_id) and below `<manifest-uri>.rejects`
(`key, kind, reason, detail`: every image and every record that is no bin). Every image and every record is found in
one of the two. `<manifest-uri>.json` names the settings and versions that made them.
Exit codes: 0 written, 1 not complete or beyond --max-missing-share, 2 bad arguments or inputs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
import ray.data

from jobs.config.base import tell_future_night
from jobs.config.ingest import IngestConfig
from jobs.ingesting import parts
from jobs.ingesting.exchange import choose_bounds, exchange
from jobs.ingesting.inputs import list_inputs
from jobs.ingesting.matching import EXAMPLES, Matched, match_range
from jobs.ingesting.parts import Target
from jobs.ingesting.readable import check_readable, unfetched_error
from jobs.platform.cluster import await_slot, connect
from jobs.platform.command import run_command
from jobs.platform.line_timer import LineTimer
from jobs.platform.provenance import provenance
from jobs.platform.reports import read_reports, report_table
from jobs.platform.uris import absolute, beside
from schemas.errors import GateError, InputError

logger = logging.getLogger("jobs.ingest")


def run_ingest(config: IngestConfig) -> None:
    now = datetime.now(UTC)
    if config.audit_date is not None:
        tell_future_night(config.audit_date, "--audit-date", now)
    images_uri = absolute(config.images_uri)
    manifest_uri = absolute(config.manifest_uri)
    target = Target(
        manifest_uri=manifest_uri,
        rejects_uri=beside(manifest_uri, ".rejects"),
        audit_date=(config.audit_date or now.date()).isoformat(),
        images_uri=images_uri,
        anonymous=config.anonymous,
    )
    parts.check_target(target, replace=config.replace)
    with connect():
        await_slot(1.0)  # of its tasks; on a cluster that others fill it would wait without a word
        images, records = list_inputs(config)
        num_images, num_records = images.num_rows, records.num_rows
        bounds = choose_bounds(images, records)
        slice_rows = choose_slice_rows(min(num_images, num_records))
        image_ranges, record_ranges = exchange(images, bounds), exchange(records, bounds)
        matched, rejects, slices = match_ranges(slice_rows, image_ranges, record_ranges)
        num_bins = sum(found.num_bins for found in matched)
        if not num_bins:
            raise InputError(
                f"{images_uri}: no image has a readable record of its stem ({num_images:,} images, {num_records:,} "
                f"records); nothing was written. The first of them:{describe_examples(matched)}"
            )
        check_missing(sum(found.rejects.get("no_image", 0) for found in matched), num_records, config)
        check_readable(slices, target)
        # only now, when it is known that there will be bins, a former manifest makes way
        mark = parts.begin(target, replace=config.replace)
        parts.write_rejects(target, rejects)
        counts = write_parts(target, num_bins, slices)
        for found in matched:
            counts.update(found.rejects)
        if not counts["bins"]:
            raise GateError(
                f"{target.manifest_uri}: the records that could be read at first are gone or unreadable now; the manifest "
                "is not complete, run the same command again"
            )
        facts = {"config": config.model_dump(mode="json"), "audit_date": target.audit_date, "counts": dict(counts)}
        parts.finish(target, mark, facts | provenance())
    reasons = ", ".join(f"{counts[reason]:,} {reason}" for reason in sorted(counts) if reason not in ("bins", "odd"))
    logger.info(
        "%s bins of %s images and %s records, %s with a record that contradicts itself; rejects: %s",
        *(f"{number:,}" for number in (counts["bins"], num_images, num_records, counts["odd"])),
        reasons or "none",
    )
    logger.info("manifest of %s: %s; rejects: %s", target.audit_date, target.manifest_uri, target.rejects_uri)


def check_missing(num_missing: int, num_records: int, config: IngestConfig) -> None:
    """Raises GateError where too many of the records have no photo."""
    if num_missing > config.max_missing_share * num_records:
        raise GateError(
            f"{config.images_uri}: {num_missing:,} of {num_records:,} records have no photo there, or several of one name, "
            f"and --max-missing-share allows {config.max_missing_share:.1%}; nothing was written; where an upload is late, run "
            "the same command again"
        )


def choose_slice_rows(num_bins: int) -> int:
    """Rows of one manifest file: a task each, so many for little work, and few files for much."""
    rows = max(parts.ROW_GROUP_ROWS, min(num_bins // 64, 64 * parts.ROW_GROUP_ROWS))
    return rows // parts.ROW_GROUP_ROWS * parts.ROW_GROUP_ROWS


def match_ranges(
    slice_rows: int, image_ranges: list[list[Any]], record_ranges: list[list[Any]]
) -> tuple[list[Matched], list[Any], list[Any]]:
    """Matches every range of keys; gives what was found, and references of each range's rejects and of the slices of
    bins."""
    generators = [
        match_range.remote(index, slice_rows, len(images), *images, *records)
        for index, (images, records) in enumerate(zip(image_ranges, record_ranges, strict=True))
    ]
    image_ranges.clear()
    record_ranges.clear()
    matched, rejects, slices = [], [], []
    for generator in generators:
        matched.append(ray.get(next(generator)))
        rejects.append(next(generator))
        slices += list(generator)
    return matched, rejects, slices


def describe_examples(matched: list[Matched]) -> str:
    """A line each for a few images and records that found no partner."""
    of_kind = ([line for found in matched for line in found.examples[kind]][:EXAMPLES] for kind in ("image", "record"))
    return "".join(f"\n  {line}" for lines in of_kind for line in lines)


def write_parts(target: Target, num_bins: int, slices: list[Any]) -> Counter[str]:
    """Reads the slices' records and writes their manifest files; gives counts of bins and of rejects by reason.

    Raises GateError where the storage stops answering, and at the end where single records did not come: what is not
    known is no reject, and without it the manifest is not complete.
    """
    counts: Counter[str] = Counter()
    write: Any = _write_part  # ray's annotation knows no function with further arguments
    dataset = ray.data.from_arrow_refs(slices).map_batches(
        write, batch_size=None, batch_format="pyarrow", fn_kwargs={"target": target}
    )
    started, timer = time.monotonic(), LineTimer(5.0)
    num_read = num_unfetched = 0
    unfetched: list[str] = []
    for report in read_reports(dataset):
        num_read += report.num_read
        num_unfetched += report.num_unfetched
        unfetched = (unfetched + report.unfetched)[:EXAMPLES]
        counts.update({"bins": report.num_bins, "odd": report.num_inconsistent, **report.rejects})
        if timer.is_due():
            rate = num_read / (time.monotonic() - started)
            logger.info("records: %s of %s read (%s/s)", f"{num_read:,}", f"{num_bins:,}", f"{rate:,.0f}")
    if num_unfetched:
        raise unfetched_error(num_unfetched, unfetched, "the manifest is not complete")
    return counts


def _write_part(bins: pa.Table, target: Target) -> pa.Table:
    return report_table(parts.write_part(bins, target))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(IngestConfig, run_ingest, job="ingest", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
