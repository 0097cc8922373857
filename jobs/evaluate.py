r"""Measures a bundle on labelled bins: counts, calibration, and how well it doubts wrong records.

    python -m jobs.evaluate --manifest-uri demo/night-manifest --bundle-uri demo/bundle --output-uri demo/evaluation

    ray job submit --working-dir . -- python -m jobs.evaluate --manifest-uri s3://stock/manifests/2026-11-22 \
        --bundle-uri s3://stock/bundles/2026-11 --output-uri s3://stock/evaluations/2026-11

Writes metrics.json (every figure, bundle, manifest, settings, versions) and index.html (a page with plots and the worst
errors with their photos) below --output-uri. Exit codes: 0 written, 1 could not be completed, or written but more than
5 % of the photos have no score or fewer than 99 % of the counts in int8 are those without it, 2 bad arguments or inputs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray

from jobs.config.evaluate import EvaluateConfig
from jobs.evaluating.figures import measure
from jobs.evaluating.page import find_warnings, render_evaluation
from jobs.evaluating.predictions import SCORED, Predictions, compare_counts, predict_bins
from jobs.platform import storage
from jobs.platform.bundles import read_bundle
from jobs.platform.cluster import await_free, connect
from jobs.platform.command import run_command
from jobs.platform.provenance import provenance
from jobs.platform.uris import absolute, join
from jobs.stages.images import FetchPlan
from jobs.stages.manifest import Manifest, check_manifest, settle_roots
from jobs.stages.resources import settle_resources
from jobs.stages.thumbnails import read_thumbnails
from jobs.stages.worklist import temporary_worklist
from model.bundle_files import digests, learned_from
from model.metrics import format_interval
from schemas.bundle import BundleInfo
from schemas.errors import GateError, InputError

logger = logging.getLogger("jobs.evaluate")

MAX_UNSCORED_SHARE = 0.05
MIN_AGREEMENT = 0.99
"""Share of the counts in int8 that must be the same without it."""


def run_evaluate(config: EvaluateConfig) -> None:
    """The whole job. Raises InputError where there is nothing to evaluate, GateError where too many photos failed or int8
    counts too differently."""
    output_uri = absolute(config.output_uri)
    started = time.monotonic()
    with connect():
        info, photos, bins = _read_bundle(config)
        manifest = check_manifest(config.manifest_uri, None, needs_night=False)
        roots = settle_roots(manifest.uri, manifest.images_uri, config.allowed_root)
        resources, precision = settle_resources(config.precision, info)
        await_free(resources.least())
        logger.info(
            "%d bins of %s, bundle %s, %s on %s",
            manifest.num_rows, manifest.uri, info.bundle_id, precision, resources.device,
        )  # fmt: skip
        plan = FetchPlan(info.preprocessing, roots, config.anonymous, ray.put(photos))
        with temporary_worklist(manifest, output_uri, info.preprocessing.image_size) as shards:
            predict = partial(
                predict_bins,
                shards,
                plan,
                split=config.split,
                known_bins=bins,
                info=info,
                resources=resources,
            )
            scorer = resources.plan_scorer(absolute(config.bundle_uri), info, precision)
            predictions = predict(scorer=scorer)
            agreement = None
            if precision == "int8" and len(predictions):
                _, reference = settle_resources("auto", info)
                logger.info("all once more in %s, to compare", reference)
                again = predict(scorer=replace(scorer, precision=reference))
                agreement = compare_counts(predictions, again) | {"with": reference}
    _check_any(predictions, manifest, config)
    scored_seconds = time.monotonic() - started
    figures = _describe(config, info, manifest, predictions) | {"device": resources.device, "precision": precision}
    figures["agreement"] = agreement
    logger.info("figures and their intervals of %d bins", len(predictions))
    figures |= measure(predictions, info, seed=config.seed)
    thumbnails = read_thumbnails((error.image_uri for error in predictions.worst), plan)
    page = render_evaluation(figures, predictions.worst, thumbnails)
    figures["seconds"] = {"scoring": round(scored_seconds, 1), "all": round(time.monotonic() - started, 1)}
    document = json.dumps(figures, indent=1, allow_nan=False) + "\n"
    storage.write_bytes(join(output_uri, "index.html"), page.encode())
    storage.write_bytes(join(output_uri, "metrics.json"), document.encode())
    print(describe_figures(figures))
    for warning in find_warnings(figures):
        logger.warning(warning)
    print(f"written: {join(output_uri, 'index.html')} and metrics.json")
    _check_gate(predictions)
    if agreement and agreement["share"] < MIN_AGREEMENT:
        raise GateError(
            f"--precision int8: {agreement['share']:.2%} of {agreement['num_bins']} counts are those of {agreement['with']}, "
            f"fewer than {MIN_AGREEMENT:.0%}: don't audit with this bundle in int8"
        )


def describe_figures(figures: dict[str, Any]) -> str:
    """The figures in a few lines for a terminal."""
    moved = f"{figures['num_moved']:,} whose stock moved since the photo, " if figures["num_moved"] else ""
    lines = [f"bundle {figures['bundle_id']} on {figures['num_bins']:,} bins ({figures['num_left_out']:,} left out, {moved}"
             f"{sum(figures['unscored'].values()):,} photos without a score)"]  # fmt: skip
    lines.append(
        f"{'scope':8}{'bins':>7}  {'exact (95 %)':22}{'within 1':>9}{'MAE (95 %)':>23}{'RMSE':>7}{'bias':>8}{'NLL':>7}"
    )
    for scope, found in figures["metrics"].items():
        majority = found["majority"]
        lines.append(
            f"{scope:8}{found['num_bins']:7,}  {format_interval(found['exact'], '.1%'):22}{found['within_one']['value']:9.1%}"
            f"{format_interval(found['mae'], '.3f'):>23}{found['rmse']['value']:7.3f}{found['bias']['value']:+8.3f}"
            f"{found['nll']['value']:7.3f}"
        )
        lines.append(
            f"{'  always ' + figures['confusion']['classes'][majority['says']]:15}  {majority['exact']:<22.1%}{majority['within_one']:9.1%}"
            f"{majority['mae']:>23.3f}{majority['rmse']:7.3f}{majority['bias']:+8.3f}"
        )
    calibration, sets = figures["calibration"], figures["prediction_sets"]
    lines.append(
        f"calibration error {calibration['excess']:.4f} (raw {calibration['raw']:.4f}, noise floor "
        f"{calibration['noise_floor']:.4f}, by chance up to {calibration['noise_high']:.4f}); 90 % sets cover "
        f"{format_interval(sets['coverage'], '.1%')} with {sets['mean_size']['value']:.2f} counts"
    )
    if found := figures["agreement"]:
        lines.append(f"int8: {found['share']:.2%} of {found['num_bins']:,} counts are those of {found['with']}")
    return "\n".join(lines)


def _read_bundle(config: EvaluateConfig) -> tuple[BundleInfo, np.ndarray, frozenset[str]]:
    """The bundle, (n, 32) uint8 SHA-256 of the photos that --split is about, and the bins that have such photos only: of one
    that was tested on too, a photo that fails may be either."""
    info, images = read_bundle(config.bundle_uri)
    tested = images.filter(pc.equal(images["split"], "test"))
    meant = tested if config.split == "test" else learned_from(images)
    if config.split == "test" and not meant.num_rows:
        raise InputError(
            f"{config.bundle_uri}: --split test: expected test photos in training_images.parquet, found none; "
            "use --split unseen"
        )
    bins = set(meant["bin_id"].to_pylist())
    if config.split != "test":
        bins -= set(tested["bin_id"].to_pylist())
    return info, digests(meant), frozenset(bins)


def _check_any(predictions: Predictions, manifest: Manifest, config: EvaluateConfig) -> None:
    if len(predictions):
        return
    if predictions.num_left_out == manifest.num_rows:
        remedy = "give bins that training has not seen" + (", or --split unseen" if config.split == "test" else "")
        raise InputError(
            f"{manifest.uri}: expected bins for --split {config.split}, found that all {manifest.num_rows} are left out "
            f"by it; {remedy}, or --split all"
        )
    if not predictions.unscored:
        raise InputError(
            f"{manifest.uri}: moves_since_photo: expected bins whose stock has not moved since the photo, found that all "
            f"{predictions.num_moved} have; photograph them again"
        )
    first = predictions.unscored[0]
    raise InputError(
        f"{manifest.uri}: expected photos that can be scored, found none of {sum(predictions.statuses.values())}; "
        f"the first, {first['image_uri']}, is {first['status']}: {first['error']}"
    )


def _describe(config: EvaluateConfig, info: BundleInfo, manifest: Manifest, predictions: Predictions) -> dict[str, Any]:
    return {
        "bundle_id": info.bundle_id,
        "weights_sha256": info.weights_sha256,
        "architecture": info.architecture,
        "image_size": info.preprocessing.image_size,
        "manifest": {"uri": manifest.uri, "fingerprint": manifest.fingerprint, "num_bins": manifest.num_rows},
        "config": config.model_dump(mode="json"),
        "evaluated_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "num_left_out": predictions.num_left_out,
        "num_moved": predictions.num_moved,
        "num_learned_from": predictions.num_learned_from,
        "unscored": {status: count for status, count in sorted(predictions.statuses.items()) if status != SCORED},
        "unscored_examples": predictions.unscored,
        **provenance(),
    }


def _check_gate(predictions: Predictions) -> None:
    asked = sum(predictions.statuses.values())
    failed = asked - predictions.statuses[SCORED]
    if failed > MAX_UNSCORED_SHARE * asked:
        first = predictions.unscored[0]
        raise GateError(
            f"{failed} of {asked} photos have no score, more than {MAX_UNSCORED_SHARE:.0%}, so the figures may not stand "
            f"for the manifest (the first, {first['image_uri']}, is {first['status']}: {first['error']})"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(EvaluateConfig, run_evaluate, job="evaluate", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
