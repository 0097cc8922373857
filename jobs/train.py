"""Trains a counter on labelled bins with Ray Train and writes its bundle.

    python -m jobs.train --manifest-uri learn-manifest --bundle-uri bundle --image-size 112 --max-epochs 12
    ray job submit --working-dir . -- python -m jobs.train --manifest-uri s3://b/learn --bundle-uri s3://b/bundle

Writes the bundle: weights.safetensors, bundle.json, training_images.parquet and the training report, report.html.
The same command after a kill continues from the last checkpoint, which lies in <bundle-uri>.training until then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.cluster import connect
from jobs.platform.command import run_command
from jobs.training.bundle import write_bundle
from jobs.training.labelled_bins import check_photos, read_labelled_bins
from jobs.training.network import WATCHDOG, assign_splits, await_workers, initial_state, remove_run, train_network

logger = logging.getLogger(__name__)


def run_train(config: TrainConfig) -> None:
    bins = read_labelled_bins(config.manifest_uri)
    assign_splits(bins, config)  # what is wrong with the data is said before a cluster starts
    initial_state(config.recipe())
    training_uri = storage.absolute(config.bundle_uri) + ".training"
    with connect(quiet=WATCHDOG):
        await_workers(config)  # a cluster that is too small or busy is said before every photo is read
        bins = assign_splits(check_photos(bins, anonymous=config.anonymous), config)
        trained = train_network(bins, config, training_uri)
        write_bundle(bins, config, trained)
    remove_run(trained.run_uri)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(
        TrainConfig, run_train, job="train", description="Train a counter and write its bundle.", argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
