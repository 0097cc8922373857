"""Each predicted count against its record: the columns of the results that need nothing but the row itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.counting.last_counts import RIGHT, WAITING, WRONG
from jobs.counting.records import lines_of, name_other_pieces, name_other_skus
from jobs.stages.images import MIN_CONTRAST
from model.posterior import Assessor, camera_columns
from schemas.manifest import RECORD_COLUMNS, stock_moved
from schemas.results import CAMERA_COLUMNS, POSTERIOR_COLUMNS, RESULTS_SCHEMA, ImageStatus, Reason

KNOWN = {RIGHT: Reason.COUNTED, WRONG: Reason.COUNTED_WRONG, WAITING: Reason.SECOND_COUNT}
"""Why a bin that was counted not long ago is kept off the priority list."""

RECONCILED_SCHEMA = pa.schema(
    [
        *RECORD_COLUMNS,
        *(RESULTS_SCHEMA.field(name) for name in ("status", "error")),
        *CAMERA_COLUMNS,
        *POSTERIOR_COLUMNS,
        pa.field("assessed", pa.bool_(), nullable=False),
        *(RESULTS_SCHEMA.field(name) for name in ("reason", "last_counted_at", "last_counted_qty", "num_counted")),
        pa.field("record_in_set", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Reconciler:
    """What one night's rows are reconciled with; the same for every shard."""

    assessor: Assessor
    prediction_set_threshold: float
    audit_date: date
    max_photo_age_hours: float | None
    count_valid_nights: int
    last_counts: pd.DataFrame
    """Index bin_id; last_counted_at, last_counted_qty, num_counted, finding, found_qty, expected_qty and lines (recorded then),
    night."""

    def reconcile(self, staged: pa.Table) -> pa.Table:
        """Staged rows in, RECONCILED_SCHEMA out, in the same order. Camera columns are null where the image was not
        scored, posterior columns where the bin is not assessed."""
        scored = pc.equal(staged["status"], ImageStatus.SCORED).to_numpy()
        reason = self._reasons(staged, scored)
        assessed = scored & pd.isna(reason)
        expected = staged["expected_qty"].to_numpy().astype(np.int64)
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            name: staged[name]
            for name in (*(field.name for field in RECORD_COLUMNS), "status", "error", "probabilities")
        }
        probabilities = probability_matrix(staged["probabilities"], self.assessor.top_class)
        camera = camera_columns(probabilities, expected[scored], self.prediction_set_threshold)
        for name in (*(field.name for field in CAMERA_COLUMNS), "record_in_set"):
            if name != "probabilities":
                columns[name] = _scatter(camera[name], scored, RECONCILED_SCHEMA.field(name).type)
        value = staged["unit_value"].to_numpy(zero_copy_only=False).astype(np.float64)
        zones = staged["zone"].filter(pa.array(assessed)).to_pylist()
        posterior = self.assessor.assess(probabilities[assessed[scored]], expected[assessed], value[assessed], zones)
        for field in POSTERIOR_COLUMNS:
            columns[field.name] = _scatter(posterior[field.name], assessed, field.type)
        counts = self.last_counts.reindex(staged["bin_id"].to_pylist())
        unchanged = _is_unchanged(counts, expected, staged["skus"])
        corrected = _is_corrected(counts, expected, staged["skus"]) & ~unchanged
        recent = assessed & self._is_recent(counts)
        for finding, name in KNOWN.items():
            reason[recent & unchanged & counts["finding"].eq(finding).to_numpy()] = str(name)
        reason[recent & corrected] = Reason.COUNTED
        columns["assessed"] = pa.array(assessed)
        columns["reason"] = pa.array(reason, pa.string(), from_pandas=True)
        # of one with a time zone pandas warns when Arrow takes it
        columns["last_counted_at"] = pa.array(counts["last_counted_at"].dt.tz_convert(None)).cast(
            RECONCILED_SCHEMA.field("last_counted_at").type
        )
        columns["last_counted_qty"] = pa.array(counts["last_counted_qty"], pa.int32(), from_pandas=True)
        columns["num_counted"] = pa.array(counts["num_counted"].fillna(0).astype(np.int32))
        return pa.Table.from_arrays([columns[name] for name in RECONCILED_SCHEMA.names], schema=RECONCILED_SCHEMA)

    def _reasons(self, staged: pa.Table, scored: np.ndarray) -> np.ndarray:
        """Why each bin is not assessed, None where it is: the first of these that holds."""
        contrast = staged["contrast"].fill_null(0).to_numpy()
        rules = [
            (~scored, np.array(staged["status"].to_pylist(), dtype=object)),
            (staged["training_photo"].to_numpy(), Reason.TRAINING_PHOTO),
            (stock_moved(staged).to_numpy(), Reason.MOVED),
            (self._stale(staged), Reason.STALE_PHOTO),
            (contrast < MIN_CONTRAST, Reason.POOR_PHOTO),
        ]
        reason = np.full(staged.num_rows, None, dtype=object)
        for holds, name in reversed(rules):
            reason[holds] = name[holds] if isinstance(name, np.ndarray) else str(name)
        return reason

    def _stale(self, staged: pa.Table) -> np.ndarray:
        if self.max_photo_age_hours is None:
            return np.zeros(staged.num_rows, dtype=bool)
        # either way: what moved between the two looks like a wrong record; one that nobody can tell may be too old
        apart = pc.abs(pc.cast(pc.subtract(staged["expected_as_of"], staged["photo_at"]), pa.int64()))
        limit = timedelta(hours=self.max_photo_age_hours) // timedelta(microseconds=1)
        return pc.fill_null(pc.greater(apart, limit), True).to_numpy()

    def _is_recent(self, counts: pd.DataFrame) -> np.ndarray:
        """A person counted the bin not long ago: where the record says the same tonight as it did then, or what was found,
        sending another would tell what is known already. Found wrong, it waits for its correction; one mismatch waits for
        its second count.

        Assumed: it said so all the time between. A record that went from 5 to 4 and back to 5 counts as unchanged;
        telling would take every night's results since, and the bin is still in the random draw.
        """
        # a list may be counted days after its night; on the next day it is counted for it
        counted = counts["last_counted_at"].dt.tz_convert(None).dt.normalize() - pd.Timedelta(days=1)
        asked = pd.to_datetime(counts["night"])
        nights = (pd.Timestamp(self.audit_date) - asked.where(asked >= counted, counted)).dt.days
        return (nights <= self.count_valid_nights).to_numpy()


def _is_unchanged(counts: pd.DataFrame, expected: NDArray[np.int64], skus: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether the record says tonight what it said when the bin was last counted: as many pieces, and of the same SKUs
    (where both name them)."""
    unchanged = counts["expected_qty"].to_numpy() == expected
    lines = counts["lines"].to_numpy()
    for row in np.flatnonzero(unchanged & pd.notna(lines)):
        unchanged[row] = not name_other_pieces(lines[row], lines_of(skus[row].as_py()))
    return unchanged


def _is_corrected(counts: pd.DataFrame, expected: NDArray[np.int64], skus: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether the record says tonight what was found when it was wrong: as many pieces, and (where both name them) of no SKU
    that it didn't name then, which nobody has counted. A SKU that it names no more may be the one that was missing."""
    corrected = (counts["found_qty"].to_numpy() == expected) & counts["finding"].ne(RIGHT).to_numpy()
    lines = counts["lines"].to_numpy()
    for row in np.flatnonzero(corrected & pd.notna(lines)):
        corrected[row] = not name_other_skus(lines[row], lines_of(skus[row].as_py()))
    return corrected


def probability_matrix(column: pa.ChunkedArray, top_class: int) -> np.ndarray:
    """(n, K + 1) float32 of the rows that have probabilities."""
    answers = column.drop_null().combine_chunks()
    flat = answers.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(answers), top_class + 1)


def _scatter(values: np.ndarray, mask: np.ndarray, kind: pa.DataType) -> pa.Array:
    """`values` at the places where `mask` holds, null elsewhere and where a value is NaN."""
    full = np.zeros(len(mask), dtype=values.dtype)
    full[mask] = values
    absent = ~mask
    if np.issubdtype(values.dtype, np.floating):
        absent = absent | np.isnan(full)
    return pa.array(full, mask=absent).cast(kind)
