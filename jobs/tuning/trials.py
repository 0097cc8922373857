"""The trials of a search: what is kept of each, where, and as a table.

A search keeps its own records (JSON, one object a trial) and not Ray Tune's, which are pickles: whoever can write to a
bucket could run code in a search that continues from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.config.tune import TuneConfig
from jobs.platform import storage
from jobs.platform.uris import join
from jobs.training.checkpoints import remove_run
from jobs.tuning.space import SETTINGS, trial_config
from schemas.errors import InputError

logger = logging.getLogger(__name__)

SEARCH_FILE, TABLE_FILE = "search.json", "trials.parquet"
COMPLETED, STOPPED_EARLY, FAILED = "completed", "stopped early", "failed"
NOT_COMPARED = (
    "manifest_uri",
    "bundle_uri",
    "output_uri",
    "num_trials",
    "max_concurrent",
    "num_workers",
    "max_failures",
    "max_unusable_share",
    "allowed_root",
    "anonymous",
)
"""Settings that may change when a search continues: places, resources, and how long it goes on. What photos they let in
is in the fingerprint of the data."""

EPOCH_FIELDS = {
    "epoch": pa.int32(),
    "image_size": pa.int32(),
    "learning_rate": pa.float64(),
    "train_loss": pa.float64(),
    "selection_nll": pa.float64(),
    "selection_exact": pa.float64(),
    "selection_mae": pa.float64(),
    "seconds": pa.float64(),
    "wait_share": pa.float64(),
}
TRIALS_SCHEMA = pa.schema(
    [
        ("trial", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
        *SETTINGS.items(),
        ("selection_nll", pa.float64()),
        ("seconds", pa.float64()),
        ("epochs", pa.list_(pa.struct(list(EPOCH_FIELDS.items())))),
        ("bundle_id", pa.string()),
    ]
)
"""selection_nll: of the best epoch at the trial's whole image size. seconds: of training, without evaluation and
starts. epoch counts from 0; selection_exact and selection_mae are of bins of 1 to 5 (below K, where K is smaller).
bundle_id: of the one that became the bundle."""


@dataclass
class TrialRecord:
    """One trial. `status` is None while it runs; `final` says that the same command does not run it again."""

    number: int
    parameters: dict[str, Any]
    """What was drawn for it."""
    settings: dict[str, Any]
    """All of SETTINGS."""
    run: str | None = None
    """The folder of its checkpoints."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    status: str | None = None
    reason: str | None = None
    final: bool = False
    bundle_id: str | None = None

    def add_epoch(self, entry: dict[str, Any]) -> None:
        """Keeps an epoch's metrics; one that is reported again takes its old place."""
        kept = {name: entry.get(name) for name in EPOCH_FIELDS}
        others = [epoch for epoch in self.epochs if epoch["epoch"] != kept["epoch"]]
        self.epochs = sorted([*others, kept], key=lambda epoch: epoch["epoch"])

    def end(self, status: str, reason: str | None = None, *, final: bool = True) -> None:
        self.status, self.reason, self.final = status, reason, final

    @property
    def selection_nll(self) -> float | None:
        """Of the best epoch on photos of the trial's whole size; None where there was none, or the trial failed."""
        return best_nll(self.epochs, self.settings["image_size"]) if self.status != FAILED else None

    @property
    def seconds(self) -> float:
        return sum(epoch["seconds"] for epoch in self.epochs)


def best_nll(epochs: Iterable[dict[str, Any]], image_size: int) -> float | None:
    """The lowest selection NLL of the epochs on photos of a training's whole size, as which its bundle counts; None
    where there was none."""
    return min((epoch["selection_nll"] for epoch in epochs if epoch["image_size"] == image_size), default=None)


class Trials:
    """All records of a search, at `output_uri`."""

    def __init__(self, config: TuneConfig, output_uri: str, fingerprint: str, weights: str) -> None:
        """Reads what an earlier run of the same search has left. Raises InputError where another search is there."""
        self.config, self.output_uri = config, output_uri
        settings = config.model_dump(mode="json", exclude=set(NOT_COMPARED))
        settings |= {"data": fingerprint, "weights": weights}
        kept = storage.freeze_json(join(output_uri, SEARCH_FILE), settings)
        differing = [name for name in settings if kept.get(name) != settings[name]]
        if differing:
            raise InputError(
                f"{output_uri}: expected this search or nothing, found one with other settings ({', '.join(differing)}); "
                "choose another --output-uri, or delete it"
            )
        folder = join(output_uri, "trials")
        found = (_read_whole(entry.uri) for entry in list(storage.list_objects(folder)))
        records = (TrialRecord(**fields) for fields in found if fields is not None)
        self.records = sorted(records, key=lambda record: record.number)

    @property
    def training_uri(self) -> str:
        """Where the trials keep their checkpoints."""
        return join(self.output_uri, "training")

    def of(self, parameters: dict[str, Any]) -> TrialRecord:
        """The record of the trial with these parameters, a new one where there is none."""
        for record in self.records:
            if record.parameters == parameters:
                return record
        config = trial_config(self.config, parameters)
        settings = {name: getattr(config, name) for name in SETTINGS}
        number = max((record.number for record in self.records), default=0) + 1
        self.records.append(TrialRecord(number, parameters, settings))
        return self.records[-1]

    def save(self, record: TrialRecord) -> None:
        uri = join(self.output_uri, "trials", f"{record.number:05d}.json")
        storage.write_json(uri, asdict(record))

    def drop_checkpoints(self, record: TrialRecord) -> None:
        """Deletes those of the trial, where it has any, and says so in its record: a later search must not look for them."""
        if record.run is not None:
            remove_run(join(self.training_uri, record.run))
            record.run = None
            self.save(record)


def _read_whole(uri: str) -> dict[str, Any] | None:
    """A JSON document; None, with a warning, where a power cut has left something else of it: as if it had not been written,
    but that checkpoints which it names stay."""
    document = storage.read_json(uri)
    if document is None:
        logger.warning("%s: damaged, as by a power cut; passed over", uri)
    return document


def ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that did not fail, best first; last those that saw no photo of their whole size before they stopped."""
    left = [record for record in records if record.status in (COMPLETED, STOPPED_EARLY)]
    return sorted(left, key=lambda record: np.inf if record.selection_nll is None else record.selection_nll)


def median_nll(records: Iterable[TrialRecord]) -> float:
    return float(np.median([record.selection_nll for record in records if record.selection_nll is not None]))


def trials_table(records: Sequence[TrialRecord]) -> pa.Table:
    """One row per trial, of TRIALS_SCHEMA."""
    rows = [
        asdict(record)
        | record.settings
        | {"trial": record.number, "selection_nll": record.selection_nll, "seconds": record.seconds}
        for record in records
    ]
    return pa.Table.from_pylist(rows, TRIALS_SCHEMA)  # takes the schema's names of each row


def format_trials(records: Sequence[TrialRecord], searched: Sequence[str]) -> str:
    """The table for a terminal: what was searched, what came of it."""
    head = ["trial", "status", *searched, "epochs", "selection NLL", "seconds"]
    lines = [
        [
            str(record.number),
            record.status or "not ended",
            *(format_setting(record.settings[name]) for name in searched),
            f"{len(record.epochs)}/{record.settings['max_epochs']}",
            "-" if record.selection_nll is None else f"{record.selection_nll:.4f}",
            f"{record.seconds:.0f}",
        ]
        for record in records
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    texts = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *lines]]
    reasons = [f"trial {record.number}: {record.reason}" for record in records if record.reason]
    return "\n".join([*texts, *reasons])


def format_setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
