"""What is checked and settled before anything is scored: the inputs, the cluster's resources, the run's name."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any

import numpy as np

from jobs.config.audit import AuditConfig
from jobs.config.base import tell_future_night
from jobs.counting.counted import explain_counted, has_counts
from jobs.platform import storage
from jobs.platform.bundles import read_bundle
from jobs.platform.cluster import await_free
from jobs.platform.layout import REPORT_FACTS, RUNS, STAGED, committed_run, list_below, night_of, partition_uri, run_uri
from jobs.platform.run_record import read_run
from jobs.platform.uris import absolute, join
from jobs.stages.manifest import Manifest, check_manifest, settle_roots
from jobs.stages.publish import tidy_up
from jobs.stages.resources import Resources, settle_resources
from model.bundle_files import digests, learned_from
from model.processor import Precision
from schemas.bundle import BundleInfo
from schemas.errors import InputError

logger = logging.getLogger(__name__)

RESULT_SETTINGS = (
    "recount_budget",
    "random_share",
    "alpha",
    "objective",
    "count_valid_nights",
    "max_photo_age_hours",
    "seed",
)
"""Settings that change a row of the results; the quality gates only decide whether there are any."""


@dataclass(frozen=True)
class Tonight:
    """One run of the audit, settled."""

    config: AuditConfig
    output_uri: str
    manifest: Manifest
    bundle: BundleInfo
    training_photos: np.ndarray
    """(n, 32) uint8: SHA-256 of the photos that the bundle has learned from."""
    allowed_roots: tuple[str, ...]
    resources: Resources
    precision: Precision
    replaces: str | None
    """The committed run of the same night that this one replaces."""
    is_committed: bool = False
    """An earlier try of this run committed the night, and did not live to finish what follows."""

    @property
    def audit_date(self) -> str:
        return self.manifest.audit_date

    @cached_property
    def run_id(self) -> str:
        """`<audit_date>-<12 hex digits>`. A replacement is another run than the one that it replaces, so that readers
        never see both under one name."""
        facts = {name: getattr(self.config, name) for name in RESULT_SETTINGS} | {
            "audit_date": self.audit_date,
            "manifest": self.manifest.fingerprint,
            "weights": self.bundle.weights_sha256,
            "bundle": self.bundle.bundle_id,
            "device": self.resources.device,
            "precision": self.precision,
            "batch_size": self.resources.batch_size,
            "allowed_roots": sorted(self.allowed_roots),
            "replaces": self.replaces,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.audit_date}-{digest[:12]}"

    @property
    def run_uri(self) -> str:
        return run_uri(self.output_uri, self.run_id)


def settle_night(config: AuditConfig) -> Tonight:
    """Checks every input, before any image is read, and waits for the cluster's other jobs. Raises InputError for what
    doesn't fit, GateError where the cluster stays busy."""
    output_uri = absolute(config.output_uri)
    bundle, images = read_bundle(config.bundle_uri)
    training_photos = digests(learned_from(images))
    manifest = check_manifest(config.manifest_uri, config.audit_date)
    place = f"{manifest.uri}: file metadata audit_date" if config.audit_date is None else "--audit-date"
    tell_future_night(date.fromisoformat(manifest.audit_date), place, datetime.now(UTC))
    _check_flags(config, manifest)
    roots = settle_roots(manifest.uri, manifest.images_uri, config.allowed_root)
    if config.report_uri is not None:
        storage.check_writable(config.report_uri)
    resources, precision = settle_resources(config.precision, bundle)
    committed = committed_run(output_uri, manifest.audit_date)
    tonight = Tonight(config, output_uri, manifest, bundle, training_photos, roots, resources, precision, committed)
    if committed is not None:
        frozen = read_run(run_uri(output_uri, committed))
        before = replace(tonight, replaces=frozen.get("replaces"), is_committed=True)
        if before.run_id == committed and _is_unfinished(config, frozen):
            return before
        _check_replacement(config, output_uri, manifest.audit_date, committed)
    for table in ("results", "recount_plan", "summary"):  # first written once all photos are scored
        storage.check_writable(partition_uri(output_uri, table, manifest.audit_date))
    await_free(resources.least())
    return tonight


def tell_of_others(tonight: Tonight) -> None:
    """The same command goes on with its run on the same kinds of devices only: after a node with a GPU has died it is another
    run, which should not begin anew without a word."""
    prefix = f"{tonight.audit_date}-"
    names = (name.split("/") for name in list_below(tonight.output_uri, RUNS, prefix))
    begun = {run_id for run_id, *rest in names if run_id.startswith(prefix) and rest[:1] == [STAGED]}
    if tonight.run_id in begun:
        return
    now = {
        "device": tonight.resources.device,
        "precision": tonight.precision,
        "batch_size": tonight.resources.batch_size,
    }
    for run_id in sorted(begun - {tonight.replaces}):
        try:
            then = read_run(run_uri(tonight.output_uri, run_id))
        except InputError:  # damaged, as by a power cut
            then = {}
        changes = [
            f"{name} {then[name]} then, {value} now" for name, value in now.items() if then.get(name, value) != value
        ]
        logger.warning(
            "run %s of this night was begun and not finished; this one is another (%s) and begins anew",
            run_id,
            "; ".join(changes) or "other inputs or settings",
        )


def _is_unfinished(config: AuditConfig, frozen: dict[str, Any]) -> bool:
    """Whether the try of this command that committed the run died before it said so, or before its report was written."""
    if "outcome" not in frozen:
        return frozen["config"]["replace"] == config.replace
    if config.report_uri is None:
        return False
    # asked for anew, unless this very command died before its report
    if config.replace and frozen["outcome"].get("config") != config.model_dump(mode="json"):
        return False
    reported, is_complete = _reported_run(config.report_uri)
    # nights may share a folder: the report of a later one stays
    return not (is_complete and reported == frozen["run_id"]) and night_of(reported) <= night_of(frozen["run_id"])


def _reported_run(report_uri: str) -> tuple[str, bool]:
    """The run that the report there is of (empty where there is none, or none of ours), and whether it has all its files."""
    try:
        report = storage.read_json(join(absolute(report_uri), REPORT_FACTS))
    except (FileNotFoundError, InputError):
        return "", False
    if not isinstance(report, dict):
        return "", False
    return str(report.get("run_id", "")), report.get("complete") is not False  # once there was no such word


def _check_flags(config: AuditConfig, manifest: Manifest) -> None:
    if config.max_photo_age_hours is not None and not manifest.has_photo_ages:
        raise InputError(
            f"{manifest.uri}: --max-photo-age-hours: expected photo_at and expected_as_of, found no row with both; ingest "
            "records that have them, or drop the flag"
        )
    if config.objective != "value":
        return
    if not manifest.has_all_unit_values:
        raise InputError(
            f"{manifest.uri}: --objective value: expected a unit_value in every row, found rows without one; "
            "add them or use --objective probability"
        )
    if len(manifest.currencies) > 1:
        found = ", ".join(currency or "none" for currency in manifest.currencies)
        raise InputError(
            f"{manifest.uri}: --objective value: expected one currency, found {found}; "
            "convert unit_value to one of them and name it in every row"
        )


def _check_replacement(config: AuditConfig, output_uri: str, audit_date: str, committed: str) -> None:
    if not config.replace:
        tidy_up(output_uri, audit_date, committed)  # should its own clean-up have been cut short
        raise InputError(
            f"{output_uri}: the night {audit_date} is already committed (run {committed}); "
            "pass --replace to audit it again"
        )
    if has_counts(output_uri, audit_date) and not config.replace_counted:
        raise InputError(explain_counted(output_uri, audit_date))
