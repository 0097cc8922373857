"""The driver's memory does not grow with the number of images: what workers report is taken in one by one and let go."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.data

from jobs import audit
from jobs.config.audit import AuditConfig
from jobs.platform.reports import read_reports, report_row
from jobs.stages import conclude
from jobs.stages.conclude import Reduction, decide_night
from jobs.stages.staging import MAX_FINDINGS, StagedShard
from model.drill import NUM_DRILLED, Drill
from model.recount_plan import best_candidates
from tests.dump import NIGHT
from tests.planned_night import bundle_info

FEW, MANY = 10, 1000
"""Shards of a night."""
GROWTH = 8 * 2**20
"""Bytes that many may need more. A list of the reports below takes at least three times that, packed or not."""
ROWS = 1000
BUDGET = 100

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def assert_no_growth(work: Callable[[int], object]) -> None:
    """`work`: the driver's part of a night of so many shards."""
    work(FEW)  # what is made once
    peaks = []
    for num_shards in (FEW, MANY):
        tracemalloc.start()
        try:
            work(num_shards)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < GROWTH, (
        f"expected the peak of {FEW} shards, {peaks[0]} bytes; found {peaks[1]} of {MANY}"
    )


def staged_shard(index: int) -> StagedShard:
    """One that reports as many failures as it may, none of them like another shard's."""
    findings = {
        ("missing_image", f"{index}-{number:>150}", f"s3://photos/{index}"): 1 for number in range(MAX_FINDINGS)
    }
    statuses = {"scored": ROWS - MAX_FINDINGS, "missing_image": MAX_FINDINGS}
    return StagedShard(ROWS, ROWS, statuses, Counter(findings))


def reduction(index: int) -> Reduction:
    """Of a group whose bins are as good candidates as any other's."""
    random = np.random.default_rng(index)
    ids = [f"bin-{index}-{number}" for number in range(ROWS)]
    keys = random.integers(0, 2**63, ROWS, dtype=np.uint64)
    return Reduction(
        num_bins=ROWS,
        num_assessed=ROWS,
        random=best_candidates(ids, keys, np.zeros(ROWS), BUDGET),
        ranked=best_candidates(ids, keys, random.random(ROWS), BUDGET),
        drill=Drill(keys[:NUM_DRILLED], random.random(NUM_DRILLED), np.ones(NUM_DRILLED)),
    )


def test_of_staged_shards_only_counts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tonight = SimpleNamespace(
        config=AuditConfig(manifest_uri="m", bundle_uri="b", output_uri="o", max_missing_share=1),
        bundle=bundle_info(),
        resources=SimpleNamespace(plan_scorer=lambda *_: None),
        run_uri=str(tmp_path),
        allowed_roots=(),
        training_photos=None,
        precision="fp32",
    )
    # the workers' part; their reports come as theirs do
    monkeypatch.setattr(audit, "write_worklist", lambda *_: [])
    monkeypatch.setattr(audit, "stage_shards", lambda *_, **__: read_reports(tonight.reports))

    def score(num_shards: int) -> None:
        tonight.manifest = SimpleNamespace(num_rows=num_shards * ROWS)
        tonight.reports = ray.data.range(num_shards, override_num_blocks=5).map(
            lambda row: report_row(staged_shard(row["id"]))
        )
        progress = audit._score(tonight)
        assert progress.statuses["missing_image"] == num_shards * MAX_FINDINGS

    assert_no_growth(score)


def test_of_reduced_groups_only_the_candidates_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    info = bundle_info()
    config = AuditConfig(manifest_uri="m", bundle_uri="b", output_uri="o", recount_budget=BUDGET)
    rules: Any = SimpleNamespace(
        config=config, bundle=info, belief=SimpleNamespace(drift_baseline=None), audit_date=NIGHT
    )

    def reduced(groups: list[list[str]], *_: object) -> Iterator[Reduction]:
        return map(reduction, range(len(groups)))

    monkeypatch.setattr(conclude, "_over_groups", reduced)  # the workers' part

    def decide(num_shards: int) -> None:
        decisions = decide_night([[]] * num_shards, rules, 0.1)
        assert (decisions.num_bins, len(decisions.plan)) == (num_shards * ROWS, BUDGET)

    assert_no_growth(decide)
