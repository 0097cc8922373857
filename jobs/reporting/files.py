"""All files of a night's report, made from its committed results; written by `jobs.report` and at the end of an audit."""

from __future__ import annotations

import errno
import hashlib
import logging
import tempfile
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from xlsxwriter.exceptions import FileCreateError

import jobs
from jobs.config.report import ReportConfig
from jobs.counting.history import BinToCount, History, day_after, read_history
from jobs.platform import storage
from jobs.platform.layout import REPORT_FACTS, list_nights, run_uri
from jobs.platform.provenance import provenance
from jobs.platform.run_record import read_run, settings_of
from jobs.platform.uris import absolute, join
from jobs.reporting.discrepancies import DISCREPANCIES, write_discrepancies
from jobs.reporting.nights import Night, read_night, read_nights, read_results
from jobs.reporting.ordering import rows_by_doubt
from jobs.reporting.overview import Overview, survey_night
from jobs.reporting.page import render_report
from jobs.reporting.photos import fetch_thumbnails
from jobs.reporting.recount_lists import (
    is_blank,
    planner_csv,
    recount_csv,
    recount_xlsx,
    second_counts_csv,
    walk_order,
)
from model.estimators import WINDOW_NIGHTS
from schemas.errors import GateError

logger = logging.getLogger("jobs.report")

RECOUNT_LIST, SECOND_COUNTS = FLOOR_LISTS = ("recount_list.csv", "second_counts.csv")
"""What people fill in."""

PAGE = "report.html"


def write_report(config: ReportConfig) -> None:
    """Writes all files of a committed night, page and lists first. Raises InputError where it is not committed, naming those
    that are, GateError where the folder for temporary files has no room for them."""
    try:
        _write_files(config)
    except (OSError, FileCreateError) as error:  # xlsxwriter's, which is no OSError, holds one
        cause = error.args[0] if isinstance(error, FileCreateError) else error
        if getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise GateError(
            f"{tempfile.gettempdir()}: the report can't be made there ({error}); make room, or set TMPDIR"
        ) from error


def _write_files(config: ReportConfig) -> None:
    started = time.monotonic()
    night = read_night(absolute(config.output_uri), config.audit_date.isoformat())
    run = read_run(run_uri(night.output_uri, night.run_id))
    overview = survey_night(night)
    # the night's own list belongs to it: what was counted of it by now
    history = read_history(night.output_uri, day_after(night.audit_date))
    with tempfile.TemporaryDirectory(prefix="report-") as name:
        folder = Path(name)
        waiting = _list_second_counts(night, history)
        page = _build_page(night, run, overview, history, second_counts=waiting)
        (folder / PAGE).write_text(page, encoding="utf-8")
        places = walk_order(overview.planned)
        (folder / SECOND_COUNTS).write_bytes(second_counts_csv(waiting))
        (folder / RECOUNT_LIST).write_bytes(recount_csv(places, night.audit_date))
        (folder / "recount_list.xlsx").write_bytes(recount_xlsx(places, night.audit_date))
        planner = planner_csv(places, overview.planned, night.audit_date, night.whole["record_model"])
        (folder / "recount_list_planner.csv").write_bytes(planner)
        (folder / "queries.sql").write_text((Path(jobs.__file__).parent / "queries.sql").read_text(encoding="utf-8"))
        report_uri = absolute(config.report_uri)
        _tell_what_is_replaced(report_uri, night.audit_date)
        for list_name in FLOOR_LISTS:
            _set_aside(report_uri, list_name)
        # an older report there stops being one before its files are overwritten, and its rows go, lest they be taken for these
        storage.delete([join(report_uri, name) for name in (REPORT_FACTS, *DISCREPANCIES)])
        facts = _facts(config, night, run, overview)
        (folder / REPORT_FACTS).write_bytes(storage.json_bytes({**facts, "complete": False}))
        storage.upload_folder(folder, report_uri, last=REPORT_FACTS)
        logger.info("page and lists: in %s (%.1f s)", config.report_uri, time.monotonic() - started)
    with tempfile.TemporaryDirectory(prefix="report-") as name:  # minutes for millions of bins
        folder = Path(name)
        rows = rows_by_doubt(read_results(night), overview.histogram)
        write_discrepancies(rows, folder, night, overview.num_rows)
        (folder / REPORT_FACTS).write_bytes(storage.json_bytes({**facts, "complete": True}))
        storage.upload_folder(folder, report_uri, last=REPORT_FACTS)
    logger.info(
        "night %s: report of %s bins in %s (%.1f s)",
        night.audit_date,
        f"{overview.num_rows:,}",
        config.report_uri,
        time.monotonic() - started,
    )


def _tell_what_is_replaced(report_uri: str, audit_date: str) -> None:
    """A folder holds one night's report; many keep the latest there."""
    try:
        before = storage.read_json(join(report_uri, REPORT_FACTS))
    except FileNotFoundError:
        return
    if isinstance(before, dict) and before.get("audit_date") != audit_date:
        logger.info("%s: the report of %s there is replaced", report_uri, before.get("audit_date"))


def _set_aside(report_uri: str, name: str) -> None:
    """Copies a list that somebody has filled in where it lies: counts not handed in yet stand nowhere else."""
    try:
        data = storage.read_bytes(join(report_uri, name))
    except FileNotFoundError:
        return
    if is_blank(data):
        return
    stem, _, suffix = name.partition(".")
    kept = f"{stem}-filled-in-{hashlib.sha256(data).hexdigest()[:8]}.{suffix}"
    storage.write_bytes(join(report_uri, kept), data)
    logger.warning(
        "%s: somebody has filled in %s, which this report replaces; it is kept as %s: hand it in with jobs.recount",
        report_uri,
        name,
        kept,
    )


def _facts(config: ReportConfig, night: Night, run: dict[str, Any], overview: Overview) -> dict[str, Any]:
    """What made the report. Settings, versions and commit are its own; those of the audit stand in the run's record."""
    return {
        "config": config.model_dump(mode="json"),
        "audit_date": night.audit_date,
        "run_id": night.run_id,
        "bundle_id": night.whole["bundle_id"],
        "weights_sha256": run.get("bundle", {}).get("weights_sha256"),
        "bins": overview.num_rows,
        **provenance("jinja2", "matplotlib", "xlsxwriter"),
    }


def _list_second_counts(night: Night, history: History) -> list[BinToCount]:
    """The mismatches of the night's window that still wait for a second count: where a later night has seen another
    record, it would be refused."""
    last = list_nights(night.output_uri)[-1]
    if last != night.audit_date:
        first = date.fromisoformat(night.audit_date) - timedelta(days=WINDOW_NIGHTS - 1)
        history = read_history(night.output_uri, day_after(last), first=first.isoformat())
    return [bin for bin in history.second_counts if bin.night <= night.audit_date]


def _build_page(
    night: Night,
    run: dict[str, Any],
    overview: Overview,
    history: History,
    *,
    second_counts: list[BinToCount],
) -> str:
    listed = overview.top.select(["image_uri", "status"]).to_pylist()
    anonymous = bool(settings_of(run).get("anonymous", False))
    ended = run.get("outcome", {}).get("finished_at")
    return render_report(
        night=night,
        run=run,
        overview=overview,
        thumbnails=fetch_thumbnails(
            listed,
            run.get("allowed_roots"),
            anonymous=anonymous,
            audited_at=ended and datetime.fromisoformat(ended),
        ),
        nights=read_nights(night.output_uri, night.audit_date, WINDOW_NIGHTS),
        history=history,
        second_counts=second_counts,
    )
