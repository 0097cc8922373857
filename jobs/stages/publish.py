"""The commit protocol: parts and plan first, then one object that commits the night, then what it replaced goes.

`summary/audit_date=D/summary.parquet` is a fixed key, one PUT, the last write; readers follow its `run_id`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

import jobs
from jobs.counting.counted import explain_counted, has_counts
from jobs.platform import storage
from jobs.platform.layout import (
    COMMITTED_MARKER,
    COUNTED,
    RUN_PLAN,
    RUNS,
    WORKING_FOLDERS,
    committed_run,
    is_part_of,
    list_below,
    night_of,
    part_uri,
    part_uris,
    partition_uri,
    run_uri,
    summary_uri,
)
from jobs.platform.parquet import open_parquet, parquet_bytes, write_table
from jobs.platform.uris import is_s3, join
from jobs.stages.conclude import WrittenParts
from jobs.stages.night_lock import NightLock, hold_night
from schemas.arrow import conform
from schemas.errors import GateError
from schemas.recount import COUNTED_SCHEMA, RECOUNT_PLAN_SCHEMA

logger = logging.getLogger(__name__)


def publish_night(
    written: WrittenParts,
    summary: pa.Table,
    *,
    output_uri: str,
    audit_date: str,
    run_id: str,
    replaces: str | None,
    replace_counted: bool,
    lock: NightLock,
) -> None:
    """Commits a night whose results parts are written. Crash-safe: before the summary's PUT nothing is readable
    through the views, after it everything is; running again finishes what is left.

    Raises GateError where counts against a plan that it would replace have come in since the run began, unless
    `replace_counted`.
    """
    lock.check()  # the plan that is written next has the name of whoever else runs this command
    private = run_uri(output_uri, run_id)
    write_table(join(private, RUN_PLAN), written.planned)
    plan = written.planned.append_column("run_id", pa.repeat(pa.scalar(run_id), written.planned.num_rows))
    plan_uri = part_uri(output_uri, "recount_plan", audit_date, run_id, 0)
    write_table(plan_uri, conform(plan, RECOUNT_PLAN_SCHEMA))
    # so that the view of what was counted exists from the first night on; whoever reads counted/ as a data set skips it
    storage.create_bytes(join(output_uri, COUNTED, "_schema.parquet"), parquet_bytes(COUNTED_SCHEMA.empty_table()))
    views = (Path(jobs.__file__).parent / "views.sql").read_text(encoding="utf-8")
    # in DuckDB's patterns a bracket holds a sign that would mean something
    place = re.sub(r"([\[*?])", r"[\1]", output_uri).replace("'", "''")
    storage.write_bytes(join(output_uri, "views.sql"), views.replace("{output_uri}", place).encode())
    if replaces is not None:
        # its summary, the other sign that its plan was once committed, is about to go
        mark_committed(output_uri, replaces)
    refused = replaces is not None and not replace_counted and has_counts(output_uri, audit_date)
    # an earlier try of this run may have cut its parts otherwise; and those of a refused one would lie there until the
    # night is audited again, as the same command is refused at once from now on
    leftover = set(part_uris(output_uri, "results", audit_date, run_id)) - set(written.part_uris)
    lock.check()  # with --replace-counted this very run may have been committed by another process
    storage.delete([*written.part_uris, plan_uri] if refused else leftover)
    if refused:
        raise GateError(explain_counted(output_uri, audit_date))
    _check_parts({*written.part_uris, plan_uri}, output_uri, audit_date)
    lock.check()
    storage.settle(output_uri)  # a power cut must not take parts of a night that is committed
    _commit(summary, output_uri, audit_date, run_id, replaces)
    storage.settle(output_uri)  # nor the commit of one whose staged shards have gone
    if lock.is_held():  # else whoever took the night meanwhile may have parts there
        clean_up(output_uri, audit_date, run_id)
        # else a night's probabilities would lie there for good
        storage.delete(_abandoned(output_uri, audit_date))


def _commit(summary: pa.Table, output_uri: str, audit_date: str, run_id: str, replaces: str | None) -> None:
    """The one write that commits the night. A first one is conditional: a process that was paused between looking at its
    lock and here finds the night taken, and not the lock alone stands between it and another run's parts."""
    uri = summary_uri(output_uri, audit_date)
    if replaces is not None:
        write_table(uri, summary)
    elif not storage.create_bytes(uri, parquet_bytes(summary)):
        # an answer lost on its way makes the retry find this run's own commit
        check_in_force(output_uri, audit_date, run_id)


def check_in_force(output_uri: str, audit_date: str, expected: str | None) -> None:
    """Raises GateError where another run than `expected` has committed the night since this one began."""
    committed = committed_run(output_uri, audit_date)
    if committed != expected:
        raise GateError(
            f"{output_uri}: the night {audit_date} was committed by run {committed} while this one was at work or waited for "
            "it; nothing was committed; pass --replace to audit it again"
        )


def check_committed(output_uri: str, audit_date: str, run_id: str, num_bins: int) -> None:
    """Raises GateError where a committed run's rows are not all there: this process was paused before its commit, which then
    went over the one of a run that had cleared its parts away. A run that was replaced since has none, rightly."""
    if committed_run(output_uri, audit_date) != run_id:
        logger.info("the night %s has been replaced since run %s committed it", audit_date, run_id)
        return
    parts = part_uris(output_uri, "results", audit_date, run_id)
    found = sum(open_parquet(uri).metadata.num_rows for uri in parts)
    if found != num_bins:
        raise GateError(
            f"{output_uri}: the night {audit_date} is committed by run {run_id} with {found} of its {num_bins} rows, as another "
            "process took the night meanwhile; audit it again with --replace"
        )


def mark_committed(output_uri: str, run_id: str) -> None:
    storage.write_bytes(join(run_uri(output_uri, run_id), COMMITTED_MARKER), b"")


def clean_up(output_uri: str, audit_date: str, run_id: str) -> None:
    """After the commit by `run_id`: parts of other runs of the night and the run's own staging go.

    Only for whoever holds the night: to anybody else the parts of a replacement under way look like leftovers.
    """
    mark_committed(output_uri, run_id)
    storage.delete(_leftovers(output_uri, audit_date, run_id))


def _abandoned(output_uri: str, audit_date: str) -> Iterator[str]:
    """What runs of a night that was committed just now had staged, and could not finish: a run is named by what it
    replaces too, so no command goes on with them any more."""
    for name in list_below(output_uri, RUNS, audit_date):
        run_id, _, rest = name.partition("/")
        if night_of(run_id) == audit_date and rest.partition("/")[0] in WORKING_FOLDERS:
            yield join(output_uri, RUNS, name)
        elif is_s3(output_uri) and run_id > f"{audit_date}.":
            break  # listed in order: only later nights come now


def tidy_up(output_uri: str, audit_date: str, run_id: str) -> None:
    """Does what `clean_up` was kept from doing after the commit by `run_id`, unless another process holds the night."""
    if next(_leftovers(output_uri, audit_date, run_id), None) is None:
        return
    try:
        with hold_night(output_uri, audit_date, run_id):
            if committed_run(output_uri, audit_date) == run_id:
                clean_up(output_uri, audit_date, run_id)
    except GateError as error:
        logger.info("what run %s left is not tidied up: %s", run_id, error)


def _leftovers(output_uri: str, audit_date: str, run_id: str) -> Iterator[str]:
    """What `run_id` has no more use for once it has committed the night."""
    for table in ("results", "recount_plan"):
        for part in storage.list_objects(partition_uri(output_uri, table, audit_date)):
            if not is_part_of(part.uri, run_id):
                yield part.uri
    for folder in WORKING_FOLDERS:
        for entry in storage.list_objects(join(run_uri(output_uri, run_id), folder)):
            yield entry.uri


def _check_parts(expected: set[str], output_uri: str, audit_date: str) -> None:
    """Raises GateError where a part of the run is gone: the summary would commit a night with holes."""
    gone = set(expected)
    for table in ("results", "recount_plan"):
        gone -= {part.uri for part in storage.list_objects(partition_uri(output_uri, table, audit_date))}
    if gone:
        raise GateError(
            f"{len(gone)} of this run's {len(expected)} parts were deleted before the commit (such as {min(gone)}); "
            "nothing was committed, the same command writes them again"
        )
