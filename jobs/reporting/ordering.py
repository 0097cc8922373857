"""A night's rows by doubt, the most doubtful first, in memory that does not grow with the night.

Order: the priority list by rank, the random bins of the plan, the other assessed bins by falling p_record_wrong,
last the bins that were not assessed. `top_rows` is a top-K reduction; `rows_by_doubt` sorts a whole night through
files on local disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.results import RESULTS_SCHEMA, Verdict

BUCKET_ROWS = 200_000
"""Rows that are sorted in memory at once."""

_LISTED, _DRAWN, _ASSESSED, _LEFT_OUT = range(4)
_STEPS = 1024
"""Steps of a histogram of keys within each of the four groups."""


def doubt_keys(rows: pa.Table) -> np.ndarray:
    """(n,) float64, smallest first in the order above; ties are for `bin_id` to settle."""
    rank = rows["rank"].to_numpy(zero_copy_only=False).astype(np.float64)
    p_wrong = np.nan_to_num(rows["p_record_wrong"].to_numpy(zero_copy_only=False).astype(np.float64))
    drawn = pc.is_valid(rows["recount"]).to_numpy()
    left_out = pc.equal(rows["verdict"], Verdict.NOT_ASSESSED).to_numpy()
    listed = ~np.isnan(rank)
    group = np.select([listed, drawn, ~left_out], [_LISTED, _DRAWN, _ASSESSED], _LEFT_OUT)
    # 1 - 1/rank grows with the rank, -log10(p) falls with p; most bins have a p near 0, which the log tells apart
    doubt = np.clip(-np.log10(np.maximum(p_wrong, 1e-9)) / 9, 0, 1)
    within = np.where(listed, 1 - 1 / np.where(listed, rank, 1), doubt)
    return group + within * 0.999


def key_histogram(rows: pa.Table) -> np.ndarray:
    """(4 * _STEPS,) counts of the rows' keys; histograms of disjoint rows add up."""
    return np.bincount((doubt_keys(rows) * _STEPS).astype(np.int64), minlength=4 * _STEPS)


def sort_rows(rows: pa.Table) -> pa.Table:
    """All of `rows` by doubt, ties by bin_id."""
    order = pa.table({"key": doubt_keys(rows), "bin_id": rows["bin_id"]})
    return rows.take(pc.sort_indices(order, [("key", "ascending"), ("bin_id", "ascending")]))


def top_rows(batches: Iterable[pa.Table], limit: int) -> pa.Table:
    """The first `limit` rows by doubt (RESULTS_SCHEMA)."""
    top = RESULTS_SCHEMA.empty_table()
    for batch in batches:
        if top.num_rows == limit:
            batch = batch.filter(pa.array(doubt_keys(batch) <= doubt_keys(top.slice(limit - 1))[0]))
            if batch.num_rows == 0:
                continue
        top = sort_rows(pa.concat_tables([top, batch])).slice(0, limit).combine_chunks()
    return top


def rows_by_doubt(batches: Iterable[pa.Table], histogram: np.ndarray) -> Iterator[pa.Table]:
    """All rows by doubt (RESULTS_SCHEMA), about BUCKET_ROWS a table; those not assessed in the order they come.

    Rows go into files by ranges of the key, chosen by the keys' `histogram`, and each file is sorted by itself.
    """
    edges = _edges(histogram)
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        paths = [Path(folder) / f"{number:05d}.arrows" for number in range(len(edges) + 1)]
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        # streams: a Parquet writer keeps in memory what its footer is to say of each of so many small writes
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with ExitStack() as opened:
            for batch in batches:
                bucket = np.searchsorted(edges, doubt_keys(batch), side="right")
                for number in np.unique(bucket).tolist():
                    if number not in writers:
                        sink = opened.enter_context(pa.OSFile(str(paths[number]), "wb"))
                        writers[number] = opened.enter_context(pa.ipc.new_stream(sink, RESULTS_SCHEMA, options=options))
                    writers[number].write_table(batch.filter(pa.array(bucket == number)))
        for number in sorted(writers):
            with pa.OSFile(str(paths[number])) as source, pa.ipc.open_stream(source) as reader:
                if number == len(edges):
                    yield from (pa.Table.from_batches([rows]) for rows in reader)
                else:
                    yield sort_rows(reader.read_all().combine_chunks())
            paths[number].unlink()


def _edges(histogram: np.ndarray) -> np.ndarray:
    """Borders (b,) between the buckets, the last one between assessed and not assessed bins."""
    bucket = np.cumsum(histogram[: _LEFT_OUT * _STEPS]) // BUCKET_ROWS
    cuts = np.flatnonzero(np.diff(bucket, prepend=0)) / _STEPS
    return np.append(cuts[(cuts > 0) & (cuts < _LEFT_OUT)], float(_LEFT_OUT))
