"""Measures the statistics in the simulated warehouse and prints the acceptance table.

    python -m tests.benchmarks.statistics [--json FILE]

Prints each test of the statistics note with its measured figure, its bar and whether it passes (rows without a bar
inform), then the seconds and the peak memory of 1,000,000 bins through posterior, certificates and plan. Writes the
same to --json FILE. Exits 1 when a figure falls below what the tests hold it to.
"""

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from model.certificates import (
    ReferenceScores,
    build_reference,
    certificate_thresholds,
    certified_at,
    conformal_p_values,
    p_value_histogram,
)
from model.posterior import Assessor, build_assessor, camera_columns
from model.record_model import assume_record_model
from model.recount_plan import best_candidates, draw_keys, merge_candidates, plan_recounts
from tests.benchmarks.bars import Row, at_most
from tests.benchmarks.guarantees import (
    measure_certificates,
    measure_drift,
    measure_end_to_end,
    measure_estimates,
    measure_feedback,
)
from tests.benchmarks.ranking import measure_directions, measure_identity, measure_ranking

MEASUREMENTS = (
    measure_ranking,
    measure_identity,
    measure_directions,
    measure_certificates,
    measure_estimates,
    measure_feedback,
    measure_drift,
    measure_end_to_end,
)
NUM_BINS = 1_000_000
SHARD = 65_536
Shard = tuple[list[str], np.ndarray, np.ndarray]


def measure_scale() -> Iterator[Row]:
    """1,000,000 bins of seven classes in shards, through both passes."""
    histogram = np.array([2, 8, 14, 17, 15, 12, 33]) * 1000
    assessor = build_assessor(histogram, 0.02, assume_record_model(histogram))
    random = np.random.default_rng(6)
    counted = random.integers(0, 9, 900)
    reference = build_reference(random.random(900), counted, counted, 6)
    shards = []
    for start in range(0, NUM_BINS, SHARD):
        size = min(SHARD, NUM_BINS - start)
        ids = [f"bin-{number:09d}" for number in range(start, start + size)]
        shards.append((ids, random.dirichlet(np.ones(7), size).astype(np.float32), random.integers(0, 12, size)))
    began = time.process_time()
    audit_shards(assessor, reference, shards)
    yield at_most("1,000,000 bins, both passes: CPU seconds", time.process_time() - began, 15)
    tracemalloc.start()
    audit_shards(assessor, reference, shards)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    yield at_most("1,000,000 bins, both passes: peak MiB beyond the input", peak, 250)


def audit_shards(assessor: Assessor, reference: ReferenceScores, shards: list[Shard]) -> None:
    """The two passes of an audit over (bin ids, probabilities, records)."""
    counts, parts, staged = np.zeros(901, dtype=np.int64), [], []
    for ids, probabilities, expected in shards:
        columns = assessor.assess(probabilities, expected)
        camera_columns(probabilities, expected, 0.8)
        score = columns["p_record_wrong"]
        counts += p_value_histogram(score, reference)
        keys = draw_keys(ids, 0, "2026-11-22")
        parts.append((best_candidates(ids, keys, np.zeros(len(ids)), 100), best_candidates(ids, keys, score, 100)))
        staged.append(score.astype(np.float32))
    random_part, ranked = (merge_candidates(list(kind), 100) for kind in zip(*parts, strict=True))
    plan = plan_recounts(random_part, ranked, num_assessed=NUM_BINS, budget=100, random_share=0.3)
    thresholds = certificate_thresholds(counts, (0.1, 0.3), drift_alarm=False)
    located = 0
    for (ids, _, _), score in zip(shards, staged, strict=True):
        certified_at(conformal_p_values(score, reference), thresholds)
        located += int((plan.locate(ids) >= 0).sum())
    if located != len(plan):
        raise AssertionError(f"{located} bins found of a plan of {len(plan)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    wanted = parser.parse_args(argv)
    rows: list[Row] = []
    print(f"{'test':<64} {'measured':>9}  {'bar':<16} pass", flush=True)
    for measure in (*MEASUREMENTS, measure_scale):
        for row in measure():
            verdict = "" if not row.bar else "yes" if row.passed else "NO"
            print(f"{row.test:<64} {row.measured:>9.4f}  {row.bar:<16} {verdict}", flush=True)
            rows.append(row)
    missed = [row.test for row in rows if not row.passed]
    print(f"{len(rows)} rows, {len(missed)} beside their bar")
    if wanted.json:
        lines = [{**asdict(row), "bar": row.bar, "passed": row.passed} for row in rows]
        text = json.dumps(lines, indent=1, default=str).replace("-Infinity", "null").replace("Infinity", "null")
        wanted.json.write_text(text + "\n")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
