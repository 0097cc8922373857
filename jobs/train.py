"""Trains a counter on labelled bins with Ray Train and writes its bundle.

    python -m jobs.train --manifest-uri demo/learn-manifest --bundle-uri demo/counter --image-size 112 --max-epochs 12
    ray job submit --working-dir . -- python -m jobs.train --manifest-uri s3://b/learn --bundle-uri s3://b/bundle

Writes the bundle: weights.safetensors, bundle.json, training_images.parquet and the training report, report.html.
The same command after a kill continues from the last checkpoint, which lies in <bundle-uri>.training until then.
Exit codes: 0 written, 1 not complete or stopped as unhealthy, 2 bad arguments or inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jobs.config.train import TrainConfig
from jobs.platform import storage
from jobs.platform.cluster import connect
from jobs.platform.command import run_command
from jobs.platform.uris import beside, join
from jobs.training.bundle import write_bundle
from jobs.training.checkpoints import list_runs, ray_storage, remove_run
from jobs.training.labelled_bins import check_photos, read_labelled_bins
from jobs.training.splits import assign_splits, split_bins
from jobs.training.start import read_start
from jobs.training.trainer import WATCHDOG, run_name, train_network
from jobs.training.workers import await_workers

logger = logging.getLogger("jobs.train")


def run_train(config: TrainConfig) -> None:
    """The whole job. Raises InputError for data or settings that can't be used, GateError for a training that failed or was
    stopped as unhealthy."""
    training_uri = beside(config.bundle_uri, ".training")
    bins = read_labelled_bins(config)
    assign_splits(bins.table, config)  # what is wrong with the data is said before a cluster starts
    start = read_start(config)
    ray_storage(training_uri)  # and so are AWS settings by which no checkpoint could be written
    storage.check_writable(config.bundle_uri)  # which is written hours later, beside the checkpoints
    with connect(quiet=WATCHDOG):
        await_workers(config)  # a cluster that is too small or busy is said before every photo is read
        bins = split_bins(check_photos(bins, config), config, start.seen)
        name = run_name(bins.table, config, start)
        _tell_of_others(training_uri, name)
        trained = train_network(bins.table, config, start, training_uri)
        write_bundle(bins, config, start, trained)
    # also those of trainings with other settings, which never got as far
    for run in list_runs(training_uri) | {name}:
        remove_run(join(training_uri, run))


def _tell_of_others(training_uri: str, name: str) -> None:
    """A training that was cut short is gone on with by the same command on the same bins only: a photo that has
    vanished since makes another training of it, which should not begin anew without a word."""
    found = list_runs(training_uri)
    if found and name not in found:
        logger.warning(
            "%s holds the checkpoints of a training of other bins, photos or settings; this one begins anew, and they are "
            "deleted once its bundle is written",
            training_uri,
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(TrainConfig, run_train, job="train", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
