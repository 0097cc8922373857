"""From a trained network to its bundle: calibration on selection bins, figures on test bins, the report."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.provenance import provenance
from jobs.platform.uris import absolute, join
from jobs.training.labelled_bins import LabelledBins, fingerprint
from jobs.training.report import render_training_report
from jobs.training.start import Start
from jobs.training.trainer import Trained
from model.bundle import save_bundle
from model.bundle_files import INFO_FILE, TRAINING_IMAGES_SCHEMA
from model.calibration import FittedCalibration, apply_calibration, calibrate
from model.metrics import evaluate_counts, format_interval
from model.network import build_network, resnet_state
from model.targets import classes_of
from schemas.bundle import BundleInfo

logger = logging.getLogger(__name__)

TRACE_FILE = "trace.json.gz"


def write_bundle(labelled: LabelledBins, config: TrainConfig, start: Start, trained: Trained) -> BundleInfo:
    """Calibrates, measures, and writes the bundle to `config.bundle_uri`, `bundle.json` last."""
    outcome, made, bins, left_out = trained.outcome, provenance(), labelled.table, labelled.left_out
    labels = classes_of(bins["expected_qty"].to_numpy(), config.top_class)
    groups = np.array(bins["group"].to_pylist())
    selection, test = outcome["rows"]["selection"], outcome["rows"]["test"]
    splits = np.array(bins["split"].to_pylist())
    histogram = np.bincount(labels[splits == "train"], minlength=config.num_classes)
    fitted = calibrate(outcome["logits"]["selection"], labels[selection], groups[selection], histogram)
    probabilities = apply_calibration(outcome["logits"]["test"], fitted.calibration)
    metrics = {
        "test": evaluate_counts(probabilities, labels[test], groups[test]),
        "selection": evaluate_counts(fitted.held_out_probabilities, labels[selection], groups[selection]),
    }
    fields = {
        "architecture": config.architecture,
        "top_class": config.top_class,
        "preprocessing": {"image_size": config.image_size},
        "test_time_flip": config.test_time_flip,
        "calibration": fitted.calibration.model_dump(),
        "prediction_set_threshold": fitted.prediction_set_threshold,
        "num_calibration": fitted.num_calibration,
        "record_outside_set_share": fitted.record_outside_set_share,
        "num_independent": fitted.num_independent,
        "activation_ranges": outcome["activation_ranges"],
        "label_histogram": histogram.tolist(),
        "metrics": metrics,
        "training": config.model_dump(mode="json")
        | {"best_epoch": outcome["best_epoch"] + 1, "epochs": len(outcome["history"])}
        | {name: outcome[name] for name in ("stopped", "precision")}
        | {"left_out": left_out, "weights_started_from": start.weights, "weights_bundle_id": start.bundle_id},
        "data_fingerprint": fingerprint(bins),
        **made,
    }
    network = build_network(config.architecture, config.num_classes)
    network.load_state_dict(resnet_state(trained.state))
    report = render_training_report(
        config=config,
        outcome=outcome,
        metrics=metrics,
        fitted=fitted,
        probabilities=probabilities,
        labels=labels[test],
        split_sizes=split_sizes(splits, groups),
        left_out=left_out,
        provenance=made,
    )
    bundle_uri = absolute(config.bundle_uri)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = save_bundle(
            folder, network=network, fields=fields, training_images=all_photos(bins, start.seen), report_html=report
        )
        if outcome["trace"] is not None:
            (folder / TRACE_FILE).write_bytes(outcome["trace"])
        # an older bundle there stops being one before its weights are overwritten
        storage.delete([join(bundle_uri, name) for name in (INFO_FILE, TRACE_FILE)])
        storage.upload_folder(folder, bundle_uri, last=INFO_FILE)
    storage.settle(bundle_uri)  # the checkpoints go next: a power cut must not take both
    _announce(info, metrics, fitted, bundle_uri)
    return info


def all_photos(bins: pa.Table, seen: pa.Table) -> pa.Table:
    """The photos of these bins and those that the loaded weights had `seen` before: none of them is to be judged by the
    new bundle."""
    names = TRAINING_IMAGES_SCHEMA.names
    before = seen.filter(pc.invert(pc.is_in(seen["image_sha256"], bins["image_sha256"].combine_chunks())))
    return pa.concat_tables([table.select(names).cast(TRAINING_IMAGES_SCHEMA) for table in (bins, before)])


def split_sizes(splits: np.ndarray, groups: np.ndarray) -> dict[str, dict[str, Any]]:
    """By split its `num_bins` and sorted `groups`, of the bins' splits and groups (n,)."""
    return {
        split: {"num_bins": int((splits == split).sum()), "groups": sorted(set(groups[splits == split].tolist()))}
        for split in ("train", "selection", "test")
    }


def _announce(info: BundleInfo, metrics: dict[str, Any], fitted: FittedCalibration, bundle_uri: str) -> None:
    print(f"bundle {info.bundle_id} written to {bundle_uri}")
    for scope, found in metrics["test"].items():
        if scope != "calibration_error":
            print(
                f"test bins, {scope}: exact {format_interval(found['exact'], '.1%')}, MAE {format_interval(found['mae'], '.3f')}, "
                f"{found['num_bins']} bins; always saying {info.classes[found['majority']['says']]}: {found['majority']['exact']:.1%}"
            )
    error = metrics["test"]["calibration_error"]
    print(
        f"calibration: {fitted.calibration.method} scaling, error {error['excess']:.3f} "
        f"(raw {error['raw']:.3f}, noise floor {error['noise_floor']:.3f})"
    )
