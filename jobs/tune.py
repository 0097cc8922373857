"""Searches the settings of a training with Ray Tune and writes the best trial's bundle.

    python -m jobs.tune --manifest-uri demo/learn-manifest --bundle-uri demo/searched --image-size 112 --num-trials 8
    ray job submit --working-dir . -- python -m jobs.tune --manifest-uri s3://b/learn --bundle-uri s3://b/bundle

Writes the bundle as `jobs.train` does and, to <bundle-uri>.search or --output-uri: trials.parquet (one row per trial),
search.html, and search.json and trials/, from which the same command continues after a kill. Trials are chosen by
their selection bins; only the best one, trained to its end, sees the test bins, once. Exit codes: 0 written, 1 not complete:
trials were cut short by storage or a lost process (a training that fails by its settings has had its trial), or none
succeeded, 2 bad arguments or inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jobs.config.tune import TuneConfig
from jobs.platform import storage
from jobs.platform.bundles import read_bundle
from jobs.platform.cluster import connect
from jobs.platform.command import run_command
from jobs.platform.uris import absolute, beside, join
from jobs.training.bundle import write_bundle
from jobs.training.checkpoints import ray_storage
from jobs.training.labelled_bins import LabelledBins, check_photos, fingerprint, read_labelled_bins
from jobs.training.splits import assign_splits, split_bins
from jobs.training.start import Start, read_start
from jobs.training.trainer import WATCHDOG, TrainingStoppedError, train_network
from jobs.training.workers import await_workers
from jobs.tuning.page import publish_search
from jobs.tuning.search import run_trials
from jobs.tuning.space import batches, search_space, trial_config
from jobs.tuning.trials import COMPLETED, FAILED, STOPPED_EARLY, TrialRecord, Trials, format_trials, median_nll, ranked
from model.bundle_files import INFO_FILE
from schemas.bundle import BundleInfo
from schemas.errors import GateError, InputError

logger = logging.getLogger("jobs.tune")


def run_tune(config: TuneConfig) -> None:
    """The whole job. Raises InputError for data or settings that can't be used, GateError where trials were cut short."""
    of_batches = batches(config)
    smallest, largest = of_batches[0], of_batches[-1]
    output_uri = absolute(config.output_uri or beside(config.bundle_uri, ".search"))
    bins = read_labelled_bins(config)
    assign_splits(bins.table, largest)  # what is wrong with the data is said before a cluster starts
    start = read_start(config)
    ray_storage(output_uri)  # and so are AWS settings by which no checkpoint could be written
    storage.check_writable(config.bundle_uri)  # which is written hours later, elsewhere than the search
    with connect(quiet=WATCHDOG):
        await_workers(smallest, config.max_concurrent)
        bins = split_bins(check_photos(bins, config), largest, start.seen)
        trials = Trials(config, output_uri, fingerprint(bins.table), start.weights)
        run_trials(bins.table, start, trials)
        publish_search(trials, None)
        best, info = finish_best(bins, start, trials)
    publish_search(trials, info)
    print(format_trials(trials.records, list(search_space(config))))
    if best is not None:
        print(
            f"best: trial {best.number}, selection NLL {best.selection_nll:.4f} (median trial "
            f"{median_nll(trials.records):.4f})"
        )
    print(f"table and page: {output_uri}")
    require_whole_search(trials.records, best)


def require_whole_search(records: list[TrialRecord], best: TrialRecord | None) -> None:
    """Raises GateError where trials have not had their chance (one that failed by its own settings has had it), or where
    none is the `best`."""
    undone = [record for record in records if not record.final]
    if undone:
        raise GateError(
            f"{len(undone)} of {len(records)} trials were cut short (trial {undone[0].number}: {undone[0].reason}); "
            f"{'no bundle is written' if best is None else 'the bundle is that of the best of the others'}; the same command "
            "runs them again"
        )
    if best is None:
        raise GateError(
            f"all {len(records)} trials failed, so no bundle is written; the search's page says why: change the settings and "
            "search again"
        )


def finish_best(bins: LabelledBins, start: Start, trials: Trials) -> tuple[TrialRecord | None, BundleInfo | None]:
    """The best trial, trained to its end, and its bundle, written; the next best where that fails; None where all do."""
    bundle_uri = trials.config.bundle_uri
    for record in ranked(trials.records):
        info = written_bundle(bundle_uri, record)
        if info is not None:
            print(f"bundle {info.bundle_id} of trial {record.number} stands in {bundle_uri} already")
            _remove_checkpoints(record, trials)  # an earlier run may have ended just before
            return record, info
        settings = trial_config(trials.config, record.parameters)
        try:
            trained = train_network(bins.table, settings, start, trials.training_uri)
        except TrainingStoppedError as error:
            record.end(FAILED, error.reason)
            trials.save(record)
            continue
        if record.status == STOPPED_EARLY:
            record.end(COMPLETED, f"stopped early after {len(record.epochs)} epochs; as the best, trained to its end")
        for epoch in trained.outcome["history"]:
            record.add_epoch(epoch)
        record.run = trained.run_uri.rpartition("/")[2]
        info = write_bundle(bins, settings, start, trained)
        for other in trials.records:
            other.bundle_id = info.bundle_id if other is record else None
            trials.save(other)
        _remove_checkpoints(record, trials)
        return record, info
    return None, None


def _remove_checkpoints(record: TrialRecord, trials: Trials) -> None:
    if record.run is not None:
        storage.settle(trials.output_uri)  # the records, as the bundle, must outlive the checkpoints
        trials.drop_checkpoints(record)


def written_bundle(bundle_uri: str, record: TrialRecord) -> BundleInfo | None:
    """The bundle of this trial, where an earlier run of the search has written it."""
    if record.bundle_id is None or not storage.exists(join(absolute(bundle_uri), INFO_FILE)):
        return None
    try:
        info, _ = read_bundle(bundle_uri)
    except InputError as error:
        logger.warning("%s; it is written anew", error)
        return None
    return info if info.bundle_id == record.bundle_id else None


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(TuneConfig, run_tune, job="tune", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
