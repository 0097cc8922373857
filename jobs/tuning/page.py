"""What a search hands over beside the bundle: the table and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from jobs.config.tune import TuneConfig
from jobs.pages.document import render_page
from jobs.pages.plots import curves_plot, line_plot
from jobs.platform import storage
from jobs.platform.parquet import write_table
from jobs.platform.provenance import provenance
from jobs.platform.uris import join
from jobs.tuning.space import search_space
from jobs.tuning.trials import TABLE_FILE, TrialRecord, Trials, format_setting, median_nll, ranked, trials_table
from schemas.bundle import BundleInfo

PAGE_FILE = "search.html"


def publish_search(trials: Trials, info: BundleInfo | None) -> None:
    """Writes trials.parquet and search.html; `info` is of the best trial's bundle, once there is one."""
    write_table(join(trials.output_uri, TABLE_FILE), trials_table(trials.records))
    page = render_search(trials.config, trials.records, info)
    storage.write_bytes(join(trials.output_uri, PAGE_FILE), page.encode())


def render_search(config: TuneConfig, records: Sequence[TrialRecord], info: BundleInfo | None) -> str:
    """HTML."""
    order = ranked(records)
    best = order[0] if order and order[0].selection_nll is not None else None
    compared = [record for record in records if record.selection_nll is not None]
    numbers = [record.number for record in compared]
    nlls = [record.selection_nll for record in compared if record.selection_nll is not None]
    return render_page(
        "search.html",
        config=config,
        records=records,
        best=best,
        median=median_nll(compared) if compared else None,
        bundle=info,
        # not always of the best: a trial that was trained anew for its bundle may end behind another
        bundled=None if info is None else next(record for record in records if record.bundle_id == info.bundle_id),
        seconds=sum(record.seconds for record in records),
        num_by_status={
            status: sum(record.status == status for record in records)
            for status in sorted({record.status for record in records if record.status})
        },
        searched=list(search_space(config)),
        format_setting=format_setting,
        curves=curves_plot(
            {
                str(record.number): (
                    [epoch["epoch"] + 1 for epoch in record.epochs],
                    [epoch["selection_nll"] for epoch in record.epochs],
                )
                for record in records
            },
            marked=None if best is None else str(best.number),
            title="Selection NLL by epoch",
            x="epoch",
            y="nats per bin",
        ),
        progress=line_plot(
            {"trial": (numbers, nlls), "best so far": (numbers, np.minimum.accumulate(nlls).tolist() if nlls else [])},
            title="Best so far",
            x="trial",
            y="selection NLL of its best epoch",
        ),
        made=json.dumps({"config": config.model_dump(mode="json"), **provenance("optuna")}, indent=1),
    )
