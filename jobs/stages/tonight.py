"""What is checked and settled before anything is scored: the inputs, the cluster's resources, the run's name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.config.audit import AuditConfig
from jobs.counting.counted import has_counts
from jobs.platform import storage
from jobs.platform.bundles import local_bundle
from jobs.stages import run
from jobs.stages.manifest import Manifest, check_manifest, settle_roots
from jobs.stages.publish import committed_run, tidy_up
from jobs.stages.resources import Resources, plan_resources, resolve_precision
from schemas.bundle import BundleInfo
from schemas.errors import InputError


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
    precision: str
    replaces: str | None
    """The committed run of the same night that this one replaces."""
    run_id: str

    @property
    def audit_date(self) -> str:
        return self.manifest.audit_date

    @property
    def run_uri(self) -> str:
        return storage.join(self.output_uri, "runs", self.run_id)


def settle_night(config: AuditConfig) -> Tonight:
    """Checks every input, before any image is read. Raises InputError for what doesn't fit."""
    output_uri = storage.absolute(config.output_uri)
    if any(not 0 < alpha < 1 for alpha in config.alpha):
        raise InputError(f"--alpha: expected rates between 0 and 1, found {config.alpha}")
    bundle, training_photos = _read_bundle(config.bundle_uri)
    manifest = check_manifest(config.manifest_uri, config.audit_date)
    _check_objective(config, manifest)
    roots = settle_roots(manifest, config.allowed_root)
    if config.report_uri is not None:
        storage.check_writable(config.report_uri)
    resources = plan_resources()
    precision = resolve_precision(config.precision, resources.device)
    replaces = _check_replacement(config, output_uri, manifest.audit_date)
    run_id = run.name_run(
        config,
        audit_date=manifest.audit_date,
        manifest_fingerprint=manifest.fingerprint,
        weights_sha256=bundle.weights_sha256,
        bundle_id=bundle.bundle_id,
        device=resources.device,
        precision=precision,
        batch_size=resources.batch_size,
        allowed_roots=roots,
        replaces=replaces,
    )
    return Tonight(config, output_uri, manifest, bundle, training_photos, roots, resources, precision, replaces, run_id)


def _read_bundle(uri: str) -> tuple[BundleInfo, np.ndarray]:
    # torch comes with it, so not at the top: bad flags should fail at once
    from model.bundle import load_bundle, read_training_images

    with local_bundle(uri) as folder:
        info = load_bundle(folder).info
        images = read_training_images(folder)
    # what neither weights nor calibration have seen may be audited
    seen = [
        digest
        for digest, split in zip(images["image_sha256"].to_pylist(), images["split"].to_pylist(), strict=True)
        if split != "test"
    ]
    return info, np.frombuffer(b"".join(bytes.fromhex(digest) for digest in seen), np.uint8).reshape(-1, 32)


def _check_objective(config: AuditConfig, manifest: Manifest) -> None:
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


def _check_replacement(config: AuditConfig, output_uri: str, audit_date: str) -> str | None:
    committed = committed_run(output_uri, audit_date)
    if committed is None:
        return None
    if not config.replace:
        tidy_up(output_uri, audit_date, committed)  # should its own clean-up have been cut short
        raise InputError(
            f"{output_uri}: the night {audit_date} is already committed (run {committed}); "
            "pass --replace to audit it again"
        )
    if has_counts(output_uri, audit_date) and not config.replace_counted:
        raise InputError(
            f"{output_uri}: counts against a plan of {audit_date} have come in; "
            "pass --replace-counted as well to make a new plan (the counts are kept)"
        )
    return committed
