"""The second pass: what needs the whole night (ranks, certificates, the recount plan), in constant-size reductions.

Pass 2a reduces every group of staged shards to candidates and histograms, which the driver merges; pass 2b writes the
final rows, part by part. Neither holds more than one group of shards in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from jobs.config.audit import AuditConfig
from jobs.counting.belief import Belief
from jobs.platform import storage
from jobs.platform.layout import part_uri
from jobs.platform.parquet import read_table, write_table
from jobs.platform.reports import read_reports, report_row
from jobs.stages.reconcile import Reconciler, probability_matrix
from jobs.stages.sums import add_up, sum_scopes
from model.certificates import (
    certificate_thresholds,
    certified_at,
    conformal_p_values,
    p_value_histogram,
)
from model.drift import has_drifted
from model.drill import Drill, alter_records, choose_drilled, merge_drills, share_leaving
from model.recount_plan import (
    Candidates,
    RecountPlan,
    best_candidates,
    draw_keys,
    merge_candidates,
    plan_recounts,
)
from schemas.bundle import BundleInfo
from schemas.recount import PLANNED_SCHEMA
from schemas.results import FOUND_WRONG, RESULTS_SCHEMA, Recount, Verdict

GROUP_BYTES = 96 * 1024 * 1024
"""Staged bytes that make one part of the results: parts of 64 to 512 MB where there is that much."""

MERGED_AT_ONCE = 64
"""Shards whose candidates are merged together: each merging sorts as many bins as the budget has besides."""


@dataclass(frozen=True)
class Rules:
    """What the second pass goes by: how rows are judged and certified, in which run."""

    reconciler: Reconciler
    run_id: str
    config: AuditConfig
    bundle: BundleInfo
    belief: Belief

    @property
    def audit_date(self) -> str:
        return self.reconciler.audit_date.isoformat()


@dataclass
class Reduction:
    """What pass 2a knows of some rows; reductions of disjoint rows merge."""

    num_bins: int = 0
    num_assessed: int = 0
    num_outside: int = 0
    random: Candidates = field(default_factory=lambda: merge_candidates([], 0))
    ranked: Candidates = field(default_factory=lambda: merge_candidates([], 0))
    p_values: np.ndarray | None = None
    drill: Drill = field(default_factory=lambda: merge_drills([]))

    def merge(self, others: Sequence[Reduction], budget: int) -> None:
        self.random = merge_candidates([self.random, *(other.random for other in others)], budget)
        self.ranked = merge_candidates([self.ranked, *(other.ranked for other in others)], budget)
        self.drill = merge_drills([self.drill, *(other.drill for other in others)])
        for other in others:
            self.num_bins += other.num_bins
            self.num_assessed += other.num_assessed
            self.num_outside += other.num_outside
            if other.p_values is not None:
                self.p_values = other.p_values if self.p_values is None else self.p_values + other.p_values


@dataclass(frozen=True)
class Decisions:
    """What the whole night decided; the same for every part."""

    num_bins: int
    plan: RecountPlan
    thresholds: dict[float, float]
    drift_alarm: bool
    drill_recall: float | None
    """None without a priority list."""


@dataclass
class WrittenParts:
    """What pass 2b adds up: sums as of `sum_scopes`, and the planned bins with what learning from them will need."""

    sums: pd.DataFrame
    planned: pa.Table
    part_uris: list[str]

    @property
    def num_bins(self) -> int:
        return round(float(self.sums["num_bins"].loc["all"].sum()))


def decide_night(groups: list[list[str]], rules: Rules, task_cpus: float) -> Decisions:
    """Pass 2a over groups of staged files."""
    merged, config, bundle = Reduction(), rules.config, rules.bundle
    for reduction in _over_groups(groups, _reduce_group, {"shared": ray.put(rules)}, task_cpus):
        merged.merge([reduction], config.recount_budget)
    drift_alarm = has_drifted(
        merged.num_outside,
        merged.num_assessed,
        bundle.record_outside_set_share,
        bundle.num_independent,
        rules.belief.drift_baseline,
        design_effect=bundle.design_effect,
    )
    plan = plan_recounts(
        merged.random,
        merged.ranked,
        num_assessed=merged.num_assessed,
        budget=config.recount_budget,
        random_share=config.random_share,
    )
    thresholds: dict[float, float] = {}
    if merged.p_values is not None:
        thresholds = certificate_thresholds(merged.p_values, config.alpha, drift_alarm)
    recall = _drill_recall(plan, merged, config.recount_budget)
    return Decisions(merged.num_bins, plan, thresholds, drift_alarm, recall)


def _drill_recall(plan: RecountPlan, merged: Reduction, budget: int) -> float | None:
    listed = set(plan.bin_id[plan.rank > 0].tolist())
    if not listed:
        return None
    ranked = merged.ranked
    drawn = set(plan.bin_id[plan.rank == 0].tolist())
    if len(ranked) < budget and not set(ranked.bin_id.tolist()) - listed - drawn:
        return 1.0  # all that may stand on the list do
    return merged.drill.recall(
        min(score for name, score in zip(ranked.bin_id, ranked.score, strict=True) if name in listed)
    )


def write_parts(
    groups: list[list[str]], rules: Rules, decisions: Decisions, output_uri: str, task_cpus: float
) -> WrittenParts:
    """Pass 2b: one part of the results per group."""
    options = {"shared": ray.put((rules, decisions)), "output_uri": output_uri}
    parts: list[WrittenParts] = list(_over_groups(groups, _write_group, options, task_cpus))
    parts.sort(key=lambda part: part.part_uris)  # they end in any order, and sums of floats depend on theirs
    planned = pa.concat_tables([PLANNED_SCHEMA.empty_table(), *(part.planned for part in parts)]).sort_by("bin_id")
    return WrittenParts(
        add_up([part.sums for part in parts]), planned, [uri for part in parts for uri in part.part_uris]
    )


def group_shards(staged: list[storage.StoredObject]) -> list[list[str]]:
    """Consecutive staged files, about GROUP_BYTES together."""
    groups: list[list[str]] = [[]]
    filled = 0
    for entry in staged:
        if filled > GROUP_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(entry.uri)
        filled += entry.num_bytes
    return groups


def _over_groups(
    groups: list[list[str]], function: Callable[..., dict], options: dict[str, Any], task_cpus: float
) -> Iterator[Any]:
    """What `function` reports of each group, in the order of completion."""
    work = ray.data.from_items(
        [{"group": index, "uris": uris} for index, uris in enumerate(groups)], override_num_blocks=len(groups)
    )
    # a group's results are held unpacked: no more of them at a time than cores, however small a share of one each asks for
    cores = max(1, int(ray.cluster_resources().get("CPU", 1.0)))
    at_once = ray.data.TaskPoolStrategy(size=min(cores, len(groups)))
    return read_reports(work.map(function, fn_kwargs=options, num_cpus=task_cpus, compute=at_once))


def _reduce_group(row: dict, shared: ray.ObjectRef) -> dict:
    rules: Rules = ray.get(shared)
    total = Reduction()
    reduced = (_reduce(rules.reconciler.reconcile(staged), rules) for staged in map(read_table, row["uris"]))
    while some := list(islice(reduced, MERGED_AT_ONCE)):
        total.merge(some, rules.config.recount_budget)
    return report_row(total)


def _reduce(rows: pa.Table, rules: Rules) -> Reduction:
    assessed = rows.filter(rows["assessed"])
    bin_ids = assessed["bin_id"].to_pylist()
    keys = draw_keys(bin_ids, rules.config.seed, rules.audit_date)
    rankable = pc.is_null(assessed["reason"]).to_numpy()
    objective = "p_record_wrong" if rules.config.objective == "probability" else "value_at_risk"
    score = assessed[objective].to_numpy()
    ids = np.array(bin_ids, dtype=object)
    histogram, reference, budget = None, rules.belief.reference, rules.config.recount_budget
    if reference is not None:  # without one nothing is certified
        histogram = p_value_histogram(assessed["p_record_wrong"].to_numpy()[rankable], reference)
    return Reduction(
        num_bins=rows.num_rows,
        num_assessed=assessed.num_rows,
        num_outside=pc.sum(pc.invert(assessed["record_in_set"])).as_py() or 0,
        random=best_candidates(bin_ids, keys, np.zeros(len(bin_ids)), budget),
        ranked=best_candidates(ids[rankable].tolist(), keys[rankable], score[rankable], budget),
        p_values=histogram,
        drill=_drill(assessed.filter(pa.array(rankable)), objective, rules),
    )


def _drill(rows: pa.Table, objective: str, rules: Rules) -> Drill:
    assessor = rules.reconciler.assessor
    key = draw_keys(rows["bin_id"].to_pylist(), rules.config.seed, f"drill of {rules.audit_date}")
    chosen = choose_drilled(key)
    rows, key = rows.take(chosen), key[chosen]
    altered = alter_records(rows["expected_qty"].to_numpy(), key, assessor.noise)
    probabilities = probability_matrix(rows["probabilities"], assessor.top_class)
    value, zones = rows["unit_value"].to_numpy(zero_copy_only=False).astype(np.float64), rows["zone"].to_pylist()
    # in single precision, as the columns hold the scores that it is compared with
    score = assessor.assess(probabilities, altered, value, zones)[objective].astype(np.float32).astype(np.float64)
    weight = np.array([rules.belief.record_model.error_rate_in(zone) for zone in zones], np.float64)
    return Drill(key, score, weight * share_leaving(rows["expected_qty"].to_numpy(), assessor.noise))


def _write_group(row: dict, shared: ray.ObjectRef, output_uri: str) -> dict:
    rules, decisions = ray.get(shared)
    reconciler: Reconciler = rules.reconciler
    tables, planned, sums = [], [], []
    for staged in map(read_table, row["uris"]):
        rows = reconciler.reconcile(staged)
        results = _conclude(rows, rules, decisions)
        planned.append(_planned(rows, results))
        outside = pc.and_(rows["assessed"], pc.invert(pc.fill_null(rows["record_in_set"], True)))
        sums.append(sum_scopes(results, outside.to_numpy(), reconciler.assessor.top_class))
        tables.append(results)
    uri = part_uri(output_uri, "results", rules.audit_date, rules.run_id, row["group"])
    write_table(uri, pa.concat_tables(tables), row_group_size=65536)
    return report_row(WrittenParts(add_up(sums), pa.concat_tables(planned), [uri]))


def _conclude(rows: pa.Table, rules: Rules, decisions: Decisions) -> pa.Table:
    """RESULTS_SCHEMA from reconciled rows."""
    n = rows.num_rows
    assessed = rows["assessed"].to_numpy()
    found_wrong = pc.fill_null(pc.is_in(rows["reason"], FOUND_WRONG), False).to_numpy()
    known = assessed & pc.is_valid(rows["reason"]).to_numpy()
    p_wrong = rows["p_record_wrong"].to_numpy(zero_copy_only=False).astype(np.float64)
    bin_ids = rows["bin_id"].to_pylist()
    plan = decisions.plan
    place = plan.locate(bin_ids)
    planned = place >= 0
    recount, rank, inclusion = np.full(n, None, dtype=object), np.zeros(n, np.int32), np.full(n, np.nan)
    recount[planned] = plan.recount[place[planned]]
    rank[planned] = plan.rank[place[planned]]
    inclusion[planned] = plan.inclusion_probability[place[planned]]
    p_value, level = np.full(n, np.nan), np.full(n, np.nan)
    if rules.belief.reference is not None:
        p_value = conformal_p_values(np.where(known, np.nan, p_wrong), rules.belief.reference)
        level = certified_at(p_value, decisions.thresholds)
    suspect = (recount == Recount.PRIORITY) | ((p_wrong >= 0.5) & ~known) | found_wrong
    verdict = np.select(
        [~assessed, ~np.isnan(level), suspect],
        [Verdict.NOT_ASSESSED, Verdict.CERTIFIED, Verdict.SUSPECT],
        Verdict.OK,
    )
    added = {
        "run_id": pa.repeat(pa.scalar(rules.run_id), n),
        "verdict": pa.array(verdict, pa.string()),
        "rank": pa.array(rank, mask=rank == 0),
        "recount": pa.array(recount, pa.string(), from_pandas=True),
        "inclusion_probability": pa.array(inclusion, pa.float32(), from_pandas=True),
        "certificate_p": pa.array(p_value, pa.float32(), from_pandas=True),
        "certified_at": pa.array(level, pa.float32(), from_pandas=True),
        "bundle_id": pa.repeat(pa.scalar(rules.bundle.bundle_id), n),
        "calibration_id": pa.repeat(pa.scalar(rules.belief.calibration_id), n),
    }
    columns = [added[name] if name in added else rows[name] for name in RESULTS_SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=RESULTS_SCHEMA)


def _planned(rows: pa.Table, results: pa.Table) -> pa.Table:
    mask = pc.is_valid(results["recount"])
    chosen, from_rows = results.filter(mask), rows.filter(mask)
    columns = [chosen[name] if name in chosen.column_names else from_rows[name] for name in PLANNED_SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=PLANNED_SCHEMA)
