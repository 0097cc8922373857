"""The nightly audit: from a manifest to results, recount plan and summary, committed as one night.

    python -m jobs.audit --manifest-uri demo/night-manifest --bundle-uri demo/bundle --output-uri demo/audits

    ray job submit --working-dir . -- python -m jobs.audit --manifest-uri s3://stock/manifests/2026-11-22 \
        --bundle-uri s3://stock/bundles/2026-11 --output-uri s3://stock/audits

Writes below --output-uri: results/, recount_plan/ and summary/ (one folder a night), views.sql, and runs/<run_id>/,
which is private to the run. The same command after a crash continues the run. Exit codes: 0 the night is committed,
1 it could not be completed or a quality gate failed, 2 bad arguments or inputs.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import ray
from numpy.typing import ArrayLike

from jobs.config.audit import AuditConfig
from jobs.config.report import ReportConfig
from jobs.counting.belief import Belief, learn_belief, true_shares
from jobs.counting.history import History, read_history
from jobs.counting.last_counts import freeze_last_counts
from jobs.platform import storage
from jobs.platform.cluster import await_free, connect
from jobs.platform.command import message, run_command
from jobs.platform.layout import STAGED, WORKLIST, committed_run, whole_night
from jobs.platform.provenance import provenance
from jobs.platform.run_record import finish_run, freeze_run, read_run
from jobs.reporting.files import write_report
from jobs.reporting.nights import explain_no_accuracy, read_night
from jobs.stages.conclude import Decisions, Rules, WrittenParts, decide_night, group_shards, write_parts
from jobs.stages.images import FetchPlan
from jobs.stages.night_lock import NightLock, hold_night
from jobs.stages.progress import Progress
from jobs.stages.publish import check_committed, clean_up, publish_night
from jobs.stages.reconcile import Reconciler
from jobs.stages.staging import stage_shards
from jobs.stages.summary import summarize
from jobs.stages.tonight import Tonight, settle_night, tell_of_others
from jobs.stages.worklist import write_worklist
from model.posterior import build_assessor
from schemas.bundle import BundleInfo
from schemas.errors import GateError, InputError
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
            _check_uncommitted(tonight)
            frozen, last_counts = freeze_knowledge(tonight)
            belief = Belief.from_dict(frozen["belief"])
            tell_of_others(tonight)
            await_free(tonight.resources.least())  # another job may have begun since the first look
            started = time.monotonic()  # while it waited, the cluster worked for others
            progress = _score(tonight)
            night, decisions = _conclude(tonight, belief, last_counts, lock)
            seconds = time.monotonic() - started
            facts = _facts_of_night(tonight, belief, decisions)
            of_whole = _facts_of_whole(tonight, belief, decisions, progress, seconds)
            facts_of = {("all", None): of_whole, **_facts_of_zones(belief)}
            summary = summarize(night.sums, facts, facts_of, tonight.manifest.currencies)
            publish_night(
                night,
                summary,
                output_uri=tonight.output_uri,
                audit_date=tonight.audit_date,
                run_id=tonight.run_id,
                replaces=tonight.replaces,
                replace_counted=config.replace_counted,
                lock=lock,
            )
            outcome = {
                **_outcome(config),
                "seconds": round(time.monotonic() - started, 1),
                "scored_in_this_try": progress.num_fresh,
                "statuses": dict(progress.statuses),
            }
            finish_run(tonight.run_uri, frozen, outcome)
        check_committed(tonight.output_uri, tonight.audit_date, tonight.run_id, tonight.manifest.num_rows)
        _report_and_tell(tonight, whole_night(summary))


def _finish(tonight: Tonight) -> None:
    """What an earlier try of this run left undone when it died after its commit."""
    logger.info("run %s committed the night %s in an earlier try; finishing it", tonight.run_id, tonight.audit_date)
    with hold_night(tonight.output_uri, tonight.audit_date, tonight.run_id):
        if committed_run(tonight.output_uri, tonight.audit_date) == tonight.run_id:
            clean_up(tonight.output_uri, tonight.audit_date, tonight.run_id)
            known = read_run(tonight.run_uri)
            if "outcome" not in known:
                finish_run(tonight.run_uri, known, _outcome(tonight.config))
    check_committed(tonight.output_uri, tonight.audit_date, tonight.run_id, tonight.manifest.num_rows)
    _report_and_tell(tonight, read_night(tonight.output_uri, tonight.audit_date).whole)


def _outcome(config: AuditConfig) -> dict[str, object]:
    """Of the try that ends: the run may have begun with other gates, by another version."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    return {"finished_at": ended, "config": config.model_dump(mode="json"), **provenance()}


def _report_and_tell(tonight: Tonight, whole: dict[str, Any]) -> None:
    """`whole`: the summary's row of the whole night."""
    try:
        if tonight.config.report_uri is not None:
            _report(tonight, tonight.config.report_uri)
    finally:
        _tell(tonight, whole)


def _check_uncommitted(tonight: Tonight) -> None:
    """Raises GateError where another run committed the night while this one waited to hold it."""
    committed = committed_run(tonight.output_uri, tonight.audit_date)
    if committed != tonight.replaces:
        raise GateError(
            f"{tonight.output_uri}: the night {tonight.audit_date} was committed by run {committed} while this one waited "
            "for it; pass --replace to audit it again"
        )


def freeze_knowledge(tonight: Tonight) -> tuple[dict[str, Any], pd.DataFrame]:
    """The run's record with its belief, and the last counts of bins, as they were known when the run began: in this try or
    in an earlier one."""
    history = read_history(tonight.output_uri, tonight.audit_date)
    shares = true_shares(tonight.manifest.class_histogram(tonight.bundle.top_class))
    belief = _believe(tonight.config, history, tonight.bundle, shares)
    frozen = freeze_run(tonight.run_uri, _facts(tonight, belief))
    return frozen, freeze_last_counts(tonight.run_uri, history.last_counts)


def _believe(config: AuditConfig, history: History, bundle: BundleInfo, class_shares: ArrayLike) -> Belief:
    belief = learn_belief(history, bundle, class_shares)
    return belief if config.recount_budget > 0 and config.random_share > 0 else belief.without_claims()


def _facts(tonight: Tonight, belief: Belief) -> dict[str, object]:
    return {
        "run_id": tonight.run_id,
        "audit_date": tonight.audit_date,
        "config": tonight.config.model_dump(mode="json"),
        "manifest": {
            "uri": tonight.manifest.uri,
            "fingerprint": tonight.manifest.fingerprint,
            "num_bins": tonight.manifest.num_rows,
        },
        "bundle": {
            "uri": storage.absolute(tonight.config.bundle_uri),
            "bundle_id": tonight.bundle.bundle_id,
            "weights_sha256": tonight.bundle.weights_sha256,
        },
        "allowed_roots": sorted(tonight.allowed_roots),
        "device": tonight.resources.device,
        "batch_size": tonight.resources.batch_size,
        "precision": tonight.precision,
        "replaces": tonight.replaces,
        "belief": belief.to_dict(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(),
    }


def _score(tonight: Tonight) -> Progress:
    """Pass 1. Raises GateError, with the findings written to the run's folder, where a quality gate fails."""
    config = tonight.config
    image_size = tonight.bundle.preprocessing.image_size
    shards = write_worklist(tonight.manifest, storage.join(tonight.run_uri, WORKLIST), image_size)
    progress = Progress(tonight.manifest.num_rows, config.max_unreadable_share, config.max_missing_share)
    plan = FetchPlan(
        tonight.bundle.preprocessing, tonight.allowed_roots, config.anonymous, ray.put(tonight.training_photos)
    )
    staged = stage_shards(
        shards,
        storage.join(tonight.run_uri, STAGED),
        plan,
        scorer=tonight.resources.plan_scorer(storage.absolute(config.bundle_uri), tonight.bundle, tonight.precision),
        resources=tonight.resources,
    )
    try:
        for shard in staged:
            progress.add(shard)
    except GateError as error:
        findings = [
            {"status": status, "error": text, "below": below, "images": count}
            for (status, text, below), count in progress.findings.most_common()
        ]
        told = {"failed": message(error), "findings": findings}
        try:
            storage.write_json(storage.join(tonight.run_uri, "findings.json"), told)
        except (GateError, InputError) as unwritten:  # by the same outage, perhaps, which is what the user must read
            logger.warning("the findings were not written: %s", message(unwritten))
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
    staged = sorted(storage.list_objects(storage.join(tonight.run_uri, STAGED)), key=lambda entry: entry.uri)
    groups = group_shards(staged)
    cpus = tonight.resources.small_task_cpus
    decisions = decide_night(groups, rules, cpus)
    _require_all(decisions.num_bins, tonight, "staged")
    lock.check()
    night = write_parts(groups, rules, decisions, tonight.output_uri, cpus)
    _require_all(night.num_bins, tonight, "written")
    return night, decisions


def _require_all(num_bins: int, tonight: Tonight, what: str) -> None:
    if num_bins != tonight.manifest.num_rows:
        raise GateError(
            f"{num_bins} rows for {tonight.manifest.num_rows} bins were {what}; nothing was committed, the same command "
            "goes on"
        )


def _facts_of_night(tonight: Tonight, belief: Belief, decisions: Decisions) -> dict[str, object]:
    """What stands in every row of the summary."""
    calibration = tonight.bundle.calibration
    return {
        "run_id": tonight.run_id,
        "bundle_id": tonight.bundle.bundle_id,
        "calibration_id": belief.calibration_id,
        "record_model": belief.state,
        "record_error_rate_used": belief.record_model.error_rate,
        "label_noise_used": belief.noise_rate,
        "temperature": 1 / calibration.weight[0][0] if calibration.method == "temperature" else None,
        "alpha": max((alpha for alpha, limit in decisions.thresholds.items() if limit > 0), default=None),
        # recounts are estimated from for the whole night only
        "estimator": "none",
        "window_nights": 0,
        "num_random_window": 0,
        "num_priority_window": 0,
        "num_pending_window": 0,
    }


def _facts_of_whole(
    tonight: Tonight, belief: Belief, decisions: Decisions, progress: Progress, seconds: float
) -> dict[str, object]:
    """What stands in the summary's row of the whole night only."""
    price = None
    if tonight.config.node_price is not None and progress.has_scored_all():
        hours = seconds / 3600 * tonight.resources.num_nodes
        price = tonight.config.node_price * hours / progress.num_fresh * 1000
    return {
        **asdict(belief.estimates),
        "drill_recall": decisions.drill_recall,
        "drift_alarm": decisions.drift_alarm,
        "images_per_second": progress.images_per_second(),
        "price_per_1000_images": price,
    }


def _facts_of_zones(belief: Belief) -> dict[tuple[str, str | None], dict[str, object]]:
    """What stands in the summary's rows of zones only."""
    rates = belief.record_model.zone_error_rates
    return {("zone", zone): {"record_error_rate_used": rate} for zone, rate in rates.items()}


def _report(tonight: Tonight, report_uri: str) -> None:
    """Raises GateError for whatever keeps a committed night from its report."""
    config = ReportConfig(
        output_uri=tonight.output_uri,
        audit_date=date.fromisoformat(tonight.audit_date),
        report_uri=report_uri,
    )
    try:
        write_report(config)
    except (InputError, GateError) as error:
        flags = " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in config)
        raise GateError(
            f"the night {tonight.audit_date} is committed, but its report is not written ({message(error)}); mend it and "
            f"run: python -m jobs.report {flags}"
        ) from error


def _tell(tonight: Tonight, summary: dict) -> None:
    """The night in a few lines, on standard output."""
    share = summary["coverage"] or 0
    statuses = {status: summary[f"num_{status}"] for status in sorted(ImageStatus)}
    lines = [
        f"night {tonight.audit_date} is committed by run {tonight.run_id}",
        "images: " + ", ".join(f"{count:,} {status}" for status, count in statuses.items() if count),
        f"assessed: {summary['num_assessed']:,} of {summary['num_bins']:,} bins ({share:.1%})",
        f"tonight's list: {summary['num_priority']} priority recounts (claims {summary['exp_wrong_in_list']:.1f} wrong "
        f"records), {summary['num_random']} random ones; record model: {summary['record_model']}",
    ]
    if summary["error_rate"] is None:
        only = "" if summary["num_certified"] else ": ranking only"
        lines.append(f"record accuracy: {explain_no_accuracy(summary)}{only}")
    else:
        low, high = 1 - summary["error_rate_high"], 1 - summary["error_rate_low"]
        lines.append(
            f"record accuracy: {summary['ira']:.1%} (95 %: {low:.1%} to {high:.1%}; {summary['num_random_window']} resolved "
            f"random counts, mean of {summary['window_nights']} nights)"
        )
    if summary["drift_alarm"]:
        lines.append(
            "drift alarm: records leave the camera's 90 % set more often than when it was calibrated, or than in earlier nights"
        )
    lines.append(
        f"results: {tonight.output_uri}/results/audit_date={tonight.audit_date}/, views: {tonight.output_uri}/views.sql"
    )
    print("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(AuditConfig, run_audit, job="audit", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
