"""The nightly audit: from a manifest to results, recount plan and summary, committed as one night.

    python -m jobs.audit --manifest-uri demo/night-manifest --bundle-uri demo/bundle --output-uri demo/audits

    ray job submit --working-dir . -- python -m jobs.audit --manifest-uri s3://stock/manifests/2026-11-22 \
        --bundle-uri s3://stock/bundles/2026-11 --output-uri s3://stock/audits

Writes below --output-uri: results/, recount_plan/ and summary/ (one folder a night), views.sql, and runs/<run_id>/,
which is private to the run. The same command after a crash continues the run. Exit codes: 0 the night is committed,
1 it could not be completed, a quality gate failed, or it is committed and its report could not be written, 2 bad arguments
or inputs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import ray

from jobs.config.audit import AuditConfig
from jobs.counting.belief import Belief
from jobs.platform import storage
from jobs.platform.cluster import await_free, connect
from jobs.platform.command import run_command
from jobs.platform.layout import STAGED, WORKLIST, committed_run, whole_night
from jobs.platform.provenance import provenance
from jobs.platform.run_record import finish_run, read_run
from jobs.platform.uris import absolute, join
from jobs.reporting.closing import close_night
from jobs.reporting.nights import Night, read_night
from jobs.stages.conclude import Decisions, Rules, WrittenParts, decide_night, group_shards, write_parts
from jobs.stages.images import FetchPlan
from jobs.stages.knowledge import freeze_knowledge
from jobs.stages.night_lock import NightLock, hold_night
from jobs.stages.progress import Progress
from jobs.stages.publish import check_committed, check_in_force, clean_up, publish_night
from jobs.stages.reconcile import Reconciler
from jobs.stages.staging import stage_shards
from jobs.stages.summary import summarize_night
from jobs.stages.tonight import Tonight, settle_night, tell_of_others
from jobs.stages.worklist import write_worklist
from model.posterior import build_assessor
from schemas.errors import GateError
from schemas.results import ImageStatus

logger = logging.getLogger("jobs.audit")


def run_audit(config: AuditConfig) -> None:
    """The whole job. Raises InputError (nothing was scored) or GateError (nothing was committed, or only its report is
    missing)."""
    with connect():
        tonight = settle_night(config)
        if tonight.is_committed:
            _finish(tonight)
            return
        logger.info(
            "run %s: %s bins of %s, bundle %s, %s on %s",
            tonight.run_id,
            f"{tonight.manifest.num_rows:,}",
            tonight.manifest.uri,
            tonight.bundle.bundle_id,
            tonight.precision,
            tonight.resources.device,
        )
        with hold_night(tonight.output_uri, tonight.audit_date, tonight.run_id) as lock:
            check_in_force(tonight.output_uri, tonight.audit_date, tonight.replaces)
            frozen, last_counts = freeze_knowledge(tonight)
            belief = Belief.from_dict(frozen["belief"])
            tell_of_others(tonight)
            await_free(tonight.resources.least())  # another job may have begun since the first look
            started = time.monotonic()  # while it waited, the cluster worked for others
            progress = _score(tonight)
            written, decisions = _conclude(tonight, belief, last_counts, lock)
            seconds = time.monotonic() - started
            summary = summarize_night(written.sums, tonight, belief, decisions, progress, seconds)
            publish_night(
                written,
                summary,
                output_uri=tonight.output_uri,
                audit_date=tonight.audit_date,
                run_id=tonight.run_id,
                replaces=tonight.replaces,
                replace_counted=config.replace_counted,
                lock=lock,
            )
            seconds = round(time.monotonic() - started, 1)
            outcome = _outcome(config, whole_night(summary), seconds=seconds, num_fresh=progress.num_fresh)
            finish_run(tonight.run_uri, frozen, outcome)
        check_committed(tonight.output_uri, tonight.audit_date, tonight.run_id, tonight.manifest.num_rows)
        close_night(Night(tonight.output_uri, tonight.audit_date, tonight.run_id, summary), config.report_uri)


def _finish(tonight: Tonight) -> None:
    """What an earlier try of this run left undone when it died after its commit."""
    logger.info("run %s committed the night %s in an earlier try; finishing it", tonight.run_id, tonight.audit_date)
    with hold_night(tonight.output_uri, tonight.audit_date, tonight.run_id):
        if committed_run(tonight.output_uri, tonight.audit_date) == tonight.run_id:
            clean_up(tonight.output_uri, tonight.audit_date, tonight.run_id)
            known = read_run(tonight.run_uri)
            if "outcome" not in known:
                whole = read_night(tonight.output_uri, tonight.audit_date).whole
                # how long the try that committed took, and how much of it was its own, went with it
                outcome = _outcome(tonight.config, whole, seconds=None, num_fresh=None)
                finish_run(tonight.run_uri, known, outcome)
    check_committed(tonight.output_uri, tonight.audit_date, tonight.run_id, tonight.manifest.num_rows)
    close_night(read_night(tonight.output_uri, tonight.audit_date), tonight.config.report_uri)


def _outcome(
    config: AuditConfig, whole: dict[str, Any], *, seconds: float | None, num_fresh: int | None
) -> dict[str, object]:
    """Of the try that ends: the run may have begun with other gates, by another version. `whole` is the summary's row of the
    whole night."""
    counts = {str(status): whole[f"num_{status}"] for status in ImageStatus}
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "seconds": seconds,
        "scored_in_this_try": num_fresh,
        "statuses": {status: count for status, count in counts.items() if count},
        **provenance(),
    }


def _score(tonight: Tonight) -> Progress:
    """Pass 1. Raises GateError, with the findings written to the run's folder, where a quality gate fails."""
    config = tonight.config
    image_size = tonight.bundle.preprocessing.image_size
    shards = write_worklist(tonight.manifest, join(tonight.run_uri, WORKLIST), image_size)
    progress = Progress(tonight.manifest.num_rows, config.max_unreadable_share, config.max_missing_share)
    plan = FetchPlan(
        tonight.bundle.preprocessing, tonight.allowed_roots, config.anonymous, ray.put(tonight.training_photos)
    )
    staged = stage_shards(
        shards,
        join(tonight.run_uri, STAGED),
        plan,
        scorer=tonight.resources.plan_scorer(absolute(config.bundle_uri), tonight.bundle, tonight.precision),
        resources=tonight.resources,
    )
    try:
        for shard in staged:
            progress.add(shard)
    except GateError as error:
        progress.write_findings(join(tonight.run_uri, "findings.json"), error)
        raise
    _require_all(progress.num_done, tonight, "staged")
    return progress


def _conclude(
    tonight: Tonight, belief: Belief, last_counts: pd.DataFrame, lock: NightLock
) -> tuple[WrittenParts, Decisions]:
    """Pass 2. Raises GateError should the parts not hold every bin exactly once.

    Nothing is written before the stage is known to be whole: were this process paused until another one took the run
    over, committed it and cleared the stage, its parts would go over the committed ones."""
    config = tonight.config
    reconciler = Reconciler(
        assessor=build_assessor(tonight.bundle.label_histogram, belief.noise_rate, belief.record_model),
        prediction_set_threshold=tonight.bundle.prediction_set_threshold,
        audit_date=date.fromisoformat(tonight.audit_date),
        max_photo_age_hours=config.max_photo_age_hours,
        count_valid_nights=config.count_valid_nights,
        last_counts=last_counts,
    )
    rules = Rules(reconciler, tonight.run_id, config, tonight.bundle, belief)
    staged = sorted(storage.list_objects(join(tonight.run_uri, STAGED)), key=lambda entry: entry.uri)
    groups = group_shards(staged)
    cpus = tonight.resources.small_task_cpus
    decisions = decide_night(groups, rules, cpus)
    _require_all(decisions.num_bins, tonight, "staged")
    lock.check()
    written = write_parts(groups, rules, decisions, tonight.output_uri, cpus)
    _require_all(written.num_bins, tonight, "written")
    return written, decisions


def _require_all(num_bins: int, tonight: Tonight, what: str) -> None:
    if num_bins != tonight.manifest.num_rows:
        raise GateError(
            f"{num_bins} rows for {tonight.manifest.num_rows} bins were {what}; nothing was committed, the same command "
            "goes on"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(AuditConfig, run_audit, job="audit", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
