"""Committed nights as tables: a night is read only through its summary, which names the run that committed it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from jobs.counting.estimates import UNRESOLVED
from jobs.platform.layout import list_nights, part_uris, partition_uri, read_summary_table, unless_replaced, whole_night
from jobs.platform.parquet import damage_named, open_parquet
from schemas.arrow import conform
from schemas.errors import InputError
from schemas.results import RESULTS_SCHEMA
from schemas.summary import SUMMARY_SCHEMA

BATCH_ROWS = 16_384
"""Results are read so many rows at a time, whatever the size of the night."""


@dataclass(frozen=True)
class Night:
    """A committed night: `summary` is its table (SUMMARY_SCHEMA), one row per scope."""

    output_uri: str
    audit_date: str
    run_id: str
    summary: pa.Table

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The summary's row of the whole night."""
        return whole_night(self.summary)

    def scopes(self, scope: str) -> list[dict[str, Any]]:
        return [row for row in self.summary.to_pylist() if row["scope"] == scope]


def explain_no_accuracy(whole: dict[str, Any]) -> str:
    """Why the summary's row of a whole night has no accuracy."""
    if whole["num_random_window"] or not whole["num_random"]:
        return "no random bins tonight"
    return UNRESOLVED


def read_night(output_uri: str, audit_date: str) -> Night:
    """Raises InputError, naming the nights there are, where `audit_date` is not committed."""
    try:
        summary = conform(read_summary_table(output_uri, audit_date), SUMMARY_SCHEMA)
    except FileNotFoundError as error:
        raise InputError(f"{output_uri}: night {audit_date} is not committed; {_found(output_uri)}") from error
    return Night(output_uri, audit_date, summary["run_id"][0].as_py(), summary)


def read_nights(output_uri: str, until: str, limit: int) -> list[Night]:
    """The last `limit` committed nights up to and with `until`, earliest first."""
    dates = [found for found in list_nights(output_uri) if found <= until][-limit:]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(lambda found: read_night(output_uri, found), dates))


def read_results(night: Night) -> Iterator[pa.Table]:
    """The night's rows, RESULTS_SCHEMA, in its parts' order, BATCH_ROWS at a time.

    Raises InputError where the committed run's parts are gone.
    """
    with unless_replaced(night.output_uri, night.audit_date, night.run_id):
        parts = part_uris(night.output_uri, "results", night.audit_date, night.run_id)
        if not parts:
            place = partition_uri(night.output_uri, "results", night.audit_date)
            raise InputError(f"{place}: expected the parts of run {night.run_id}, found none; audit the night again")
        for part in parts:
            with open_parquet(part) as file, damage_named(part):
                present = [name for name in RESULTS_SCHEMA.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=present):
                    yield conform(pa.Table.from_batches([batch]), RESULTS_SCHEMA)


def _found(output_uri: str) -> str:
    dates = list_nights(output_uri)
    if not dates:
        return "no night is, so audit one first (jobs.audit)"
    shown = dates[-10:]
    more = f"{len(dates) - len(shown)} earlier ones and " if len(dates) > len(shown) else ""
    return f"committed are {more}{', '.join(shown)}"
