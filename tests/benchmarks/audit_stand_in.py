"""An audit with stand-ins in its Ray workers; nothing else is replaced.

    python -m tests.benchmarks.audit_stand_in network --manifest-uri M --bundle-uri B --output-uri O

`network`: no network computes, and the cluster says that it has a GPU. `network_and_photos`: no photo is fetched either, and
the network's place is on the processors. The rest is for `jobs.audit`; the bundle's top class is 6.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time

import numpy as np
import pyarrow as pa

from jobs.platform.bundles import ScorerPlan
from jobs.stages import score, staging
from jobs.stages.images import FETCHED_SCHEMA, FetchPlan
from tests.hooked_audit import run_hooked_audit


def network() -> None:
    """Ray calls it in a worker before its first task."""
    score.ShardScorer.__init__ = _hold_nothing  # type: ignore[method-assign]
    score.ShardScorer.__call__ = _scored  # type: ignore[method-assign]


def network_and_photos() -> None:
    """Likewise."""
    network()
    staging.fetch_rows = _fetched


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


def _hold_nothing(self: score.ShardScorer, plan: ScorerPlan) -> None:
    pass


def _scored(self: score.ShardScorer, rows: pa.Table) -> pa.Table:
    num_photos = rows.num_rows - rows["pixels"].null_count
    if not num_photos:
        return rows.select(score.SCORED_SCHEMA.names)
    seed = hashlib.sha256(rows["bin_id"][0].as_py().encode()).digest()[:8]
    chances = np.random.default_rng(int.from_bytes(seed)).dirichlet([0.3] * 7, num_photos)
    return score.with_probabilities(rows, chances.astype(np.float32))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("replaced", choices=("network", "network_and_photos"))
    options, argv = parser.parse_known_args()
    replaced = options.replaced
    began = time.perf_counter()
    num_gpus = 1 if replaced == "network" else 0
    code = run_hooked_audit(f"tests.benchmarks.audit_stand_in.{replaced}", argv, num_gpus=num_gpus)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 1)}))
    return code


if __name__ == "__main__":
    sys.exit(main())
