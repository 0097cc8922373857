"""What workers tell the driver of the work they did: values of any kind, one a row, through Ray Data."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray.data


def report_row(report: Any) -> dict[str, bytes]:
    """The row that stands for a report."""
    return {"report": pickle.dumps(report)}


def report_table(*reports: Any) -> pa.Table:
    """A row for each report."""
    return pa.Table.from_pylist([report_row(report) for report in reports], schema=pa.schema([("report", pa.binary())]))


def read_reports(dataset: ray.data.Dataset) -> Iterator[Any]:
    """The reports of all rows, in the order of completion. Our own workers wrote them, so that they may be unpickled."""
    for row in dataset.iter_rows():
        yield unpack(row["report"])


def unpack(report: bytes) -> Any:
    return pickle.loads(report)  # noqa: S301
