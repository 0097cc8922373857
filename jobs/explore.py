r"""Looks at a manifest before anything is trained or audited: quantities, photos, suspicious records.

    python -m jobs.explore --manifest-uri demo/night-manifest --output-uri demo/exploration

    ray job submit --working-dir . -- python -m jobs.explore --manifest-uri s3://stock/manifests/2026-11-22 \
        --output-uri s3://stock/explorations/2026-11-22

Writes index.html (one page with plots and photos, which needs no network) below --output-uri. Exit codes: 0 written
(whatever was found), 1 could not complete, 2 bad arguments or inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.config.explore import ExploreConfig
from jobs.exploring.looks import LOOK
from jobs.exploring.page import photos_to_show, render_exploration
from jobs.exploring.survey import MAX_IDENTICAL, Survey, survey_bins
from jobs.platform import storage
from jobs.platform.cluster import connect
from jobs.platform.command import run_command
from jobs.platform.provenance import provenance
from jobs.platform.uris import absolute, join
from jobs.stages.images import FetchPlan
from jobs.stages.manifest import check_manifest, settle_roots
from jobs.stages.resources import plan_resources
from jobs.stages.thumbnails import read_thumbnails
from jobs.stages.worklist import temporary_worklist

logger = logging.getLogger("jobs.explore")


def run_explore(config: ExploreConfig) -> None:
    """The whole job. Raises InputError for a manifest that can't be used, GateError where storage or cluster fail."""
    output_uri = absolute(config.output_uri)
    with connect():
        manifest = check_manifest(config.manifest_uri, None, needs_night=False)
        plan = FetchPlan(
            LOOK, settle_roots(manifest.uri, manifest.images_uri, config.allowed_root), config.anonymous, None
        )
        logger.info("%d bins of %s", manifest.num_rows, manifest.uri)
        with temporary_worklist(manifest, output_uri, image_size=0) as shards:
            survey = survey_bins(
                shards,
                plan,
                share=min(1.0, config.num_photos / manifest.num_rows),
                seed=config.seed,
                resources=plan_resources(),
            )
    about = {
        "manifest_uri": manifest.uri,
        "fingerprint": manifest.fingerprint,
        "audit_date": manifest.audit_date,
        "num_bins": manifest.num_rows,
        "explored_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "config": config.model_dump(mode="json"),
        **provenance(),
    }
    thumbnails = read_thumbnails(photos_to_show(survey), plan)
    storage.write_bytes(join(output_uri, "index.html"), render_exploration(survey, thumbnails, about).encode())
    print(describe_survey(survey))
    print(f"written: {join(output_uri, 'index.html')}")


def describe_survey(survey: Survey) -> str:
    """What was found in a few lines for a terminal."""
    records = survey.records
    quantities = ", ".join(f"{count}: {records.quantities[count]:,}" for count in range(6))
    more = sum(bins for count, bins in records.quantities.items() if count > 5)
    at_least = "at least " if len(survey.identical) == MAX_IDENTICAL else ""
    looked_at = len(survey.photos) + len(survey.failed)
    return (
        f"{records.num_bins:,} bins in {sum(survey.group_sizes.values()):,} groups; by quantity {quantities}, "
        f"6 or more: {more:,}\n"
        f"{looked_at:,} photos looked at, {len(survey.failed):,} of them fail\n"
        f"{records.num_inconsistent:,} records whose total differs from their lines, "
        f"{at_least}{len(survey.identical)} photos shown by several bins"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ExploreConfig, run_explore, job="explore", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
