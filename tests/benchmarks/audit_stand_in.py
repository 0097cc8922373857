"""Stand-ins for fetch and network, put into every Ray worker of the growth benchmark; nothing else is replaced."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pyarrow as pa

from jobs.stages import score, staging
from jobs.stages.images import FETCHED_SCHEMA, FetchPlan


def stand_in() -> None:
    """Ray calls it in a worker before its first task: no photo is fetched and no network computes."""
    staging.fetch_rows = _fetched
    score.ShardScorer.__init__ = _hold_nothing  # type: ignore[method-assign]
    score.ShardScorer.__call__ = _scored  # type: ignore[method-assign]


def _fetched(rows: pa.Table, plan: FetchPlan) -> pa.Table:
    added = {
        "status": pa.repeat("scored", rows.num_rows),
        "error": pa.nulls(rows.num_rows, pa.string()),
        "training_photo": pa.repeat(False, rows.num_rows),
        "contrast": pa.repeat(pa.scalar(50.0, pa.float32()), rows.num_rows),
        "pixels": pa.repeat(pa.scalar(b"\0" * 64), rows.num_rows),
    }
    return pa.Table.from_arrays(
        [added[name] if name in added else rows[name] for name in FETCHED_SCHEMA.names], schema=FETCHED_SCHEMA
    )


def _hold_nothing(self: score.ShardScorer, **_: object) -> None:
    pass


def _scored(self: score.ShardScorer, rows: pa.Table) -> pa.Table:
    began_at = time.time()
    seed = hashlib.sha256(rows["bin_id"][0].as_py().encode()).digest()[:8]
    chances = np.random.default_rng(int.from_bytes(seed)).dirichlet([0.3] * 7, rows.num_rows)
    return score.with_probabilities(rows, chances.astype(np.float32), began_at, time.time())
