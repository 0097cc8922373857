"""Where an audit's output keeps what: the tables' partitions, the runs' folders, and which runs are in force.

A night is read only through its summary, one object of a fixed key that names the run which committed it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa

from jobs.platform import storage
from jobs.platform.parquet import DamagedParquet, read_table
from jobs.platform.uris import join
from schemas.errors import GateError, InputError
from schemas.manifest import is_night

logger = logging.getLogger(__name__)

STAGED, WORKLIST, FROZEN = "staged", "worklist", "frozen"
WORKING_FOLDERS = (STAGED, WORKLIST, FROZEN)
"""Of a run, below `runs/<run_id>/`: what it needs until its night is committed, and no longer."""

RUN_PLAN = "plan.parquet"
"""Of a run, kept (as is its `run_record`): every recount that it planned."""

RUNS = "runs"
"""A folder for each run."""

COUNTED = "counted"
"""The table of counts, of all nights together."""

COMMITTED_MARKER = "committed"
"""Lies in the folder of a run that has committed its night, in force or not."""

REPORT_FACTS = "report.json"
"""What a report says of itself, its run first of all; written last, so that it stands for all of it."""


def partition_uri(output_uri: str, table: str, audit_date: str) -> str:
    return join(output_uri, table, f"audit_date={audit_date}")


def summary_uri(output_uri: str, audit_date: str) -> str:
    return join(partition_uri(output_uri, "summary", audit_date), "summary.parquet")


def run_uri(output_uri: str, run_id: str) -> str:
    return join(output_uri, RUNS, run_id)


def night_of(run_id: str) -> str:
    """A run's name begins with its night."""
    return run_id.rsplit("-", 1)[0]


def part_uri(output_uri: str, table: str, audit_date: str, run_id: str, number: int) -> str:
    return join(partition_uri(output_uri, table, audit_date), f"part-{run_id}-{number:05d}.parquet")


def is_part_of(uri: str, run_id: str) -> bool:
    """Whether the object is a part that this run wrote."""
    return uri.rsplit("/", 1)[1].startswith(f"part-{run_id}-")


def part_uris(output_uri: str, table: str, audit_date: str, run_id: str) -> list[str]:
    """The parts of a table that a run wrote for its night, in order."""
    parts = (entry.uri for entry in storage.list_objects(partition_uri(output_uri, table, audit_date)))
    return sorted(uri for uri in parts if is_part_of(uri, run_id))


def run_in_force(output_uri: str, audit_date: str) -> str:
    """The run that has committed a night. Raises as `read_summary_table` does, so also for a night that isn't committed."""
    return read_summary_table(output_uri, audit_date, ["run_id"])["run_id"][0].as_py()


def read_summary_table(output_uri: str, audit_date: str, columns: list[str] | None = None) -> pa.Table:
    """The night's summary, as the version that committed it wrote it; `columns`, where they are given, with `run_id`. Raises
    FileNotFoundError for a night that isn't committed, InputError where the file is damaged or another table."""
    uri = summary_uri(output_uri, audit_date)
    try:
        summary = read_table(uri, columns)
    except DamagedParquet as error:
        raise InputError(
            f"{error}; where a power cut left it so, the night {audit_date} is not committed: delete the file and run that "
            "night's audit again"
        ) from error
    if "run_id" not in summary.column_names or not summary.num_rows:
        raise InputError(f"{uri}: expected the summary of a committed night, found another table; restore it")
    return summary


def whole_night(summary: pa.Table) -> dict[str, Any]:
    """The row of the whole night."""
    return next(row for row in summary.to_pylist() if row["scope"] == "all")


def committed_run(output_uri: str, audit_date: str) -> str | None:
    """The run that the night is committed by, None for a night that isn't."""
    try:
        return run_in_force(output_uri, audit_date)
    except FileNotFoundError:
        return None


@contextmanager
def unless_replaced(output_uri: str, audit_date: str, run_id: str) -> Iterator[None]:
    """Around the reading of what a run published: what goes wrong there is a GateError that says so where another run has
    committed the night meanwhile, as that deletes the former's parts."""
    try:
        yield
    except (FileNotFoundError, GateError, InputError) as error:
        if committed_run(output_uri, audit_date) == run_id:
            raise
        raise GateError(f"night {audit_date} was replaced while it was read; run the same command again") from error


def list_nights(output_uri: str) -> list[str]:
    """The committed nights, oldest first. Warns of a summary in a folder of another name, as of a night that was set aside by
    hand: it commits none."""
    folder, found = join(output_uri, "summary", ""), []
    for name in list_below(output_uri, "summary", None):
        night = name.removeprefix("audit_date=").removesuffix("/summary.parquet")
        if folder + name == summary_uri(output_uri, night) and is_night(night):
            found.append(night)
        elif name.endswith("/summary.parquet"):
            _warn_of_foreign(folder + name)
    return sorted(found)


@lru_cache(maxsize=1024)  # a job lists the nights several times
def _warn_of_foreign(uri: str) -> None:
    logger.warning("%s: passed over: expected it in a folder audit_date=YYYY-MM-DD; delete it if it is no night's", uri)


def list_below(output_uri: str, table: str, first: str | None) -> Iterator[str]:
    """Names of the objects below a folder; those before `first` may be left out."""
    folder = join(output_uri, table)
    start_after = storage.locate(join(folder, first))[1] if first else None
    for entry in storage.list_objects(folder, start_after=start_after):
        yield entry.uri.removeprefix(folder + "/")
