"""Committed nights in the layout of jobs.audit, small and by hand: plan, run, marker, summary, results, counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow as pa

from jobs.counting.counted import add_counted
from jobs.counting.estimates import Estimates
from jobs.platform import storage
from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from model.record_model import assume_record_model
from schemas.arrow import conform
from schemas.bundle import BundleInfo, Calibration, Preprocessing, class_names
from schemas.recount import COUNTED_SCHEMA, PLANNED_SCHEMA, RECOUNT_PLAN_SCHEMA
from schemas.results import RESULTS_SCHEMA
from schemas.summary import SUMMARY_SCHEMA

TOP_CLASS = 6
BUNDLE_ID = "bundle-one"


def plan_row(bin_id: str, expected_qty: int = 3, **values: Any) -> dict[str, Any]:
    """A planned recount: random, drawn with probability 0.1, camera and record in agreement."""
    peak = min(expected_qty, TOP_CLASS)
    probabilities = [0.4 if qty == peak else 0.1 for qty in range(TOP_CLASS + 1)]
    return {
        "bin_id": bin_id,
        "recount": "random",
        "rank": None,
        "inclusion_probability": 0.1,
        "zone": None,
        "expected_qty": expected_qty,
        "expected_as_of": None,
        "probabilities": probabilities,
        "p_record_wrong": 0.05,
        "expected_variance_qty": 0.0,
        "expected_abs_variance_qty": 0.1,
        "unit_value": None,
        "bundle_id": BUNDLE_ID,
        "camera_qty": peak,
        "certified_at": None,
        "reason": None,
        "skus": None,
        **values,
    }


def priority_row(bin_id: str, rank: int, expected_qty: int = 3, **values: Any) -> dict[str, Any]:
    listed = {"recount": "priority", "rank": rank, "inclusion_probability": 1.0, "p_record_wrong": 0.6}
    return plan_row(bin_id, expected_qty, **{**listed, **values})


def counted_row(bin_id: str, qty: int, night: str, counted_at: datetime, **values: Any) -> dict[str, Any]:
    """A count against the plan of the run that `commit_night` names by default."""
    facts = {"audit_date": night, "run_id": f"{night}-aaaaaaaaaaaa", "counted_qty": qty, "counted_at": counted_at}
    return plan_row(bin_id) | facts | values


def take_in(output_uri: object, *rows: dict[str, Any]) -> None:
    """Adds rows to `counted`; what they say beyond its columns is left out."""
    add_counted(str(output_uri), pa.Table.from_pylist(list(rows), schema=COUNTED_SCHEMA))


def write_run(output_uri: str, run_id: str, plan: Sequence[dict[str, Any]], **facts: Any) -> None:
    """A run's private folder as it stands right before its commit; `facts` replace or add to `run.json`."""
    private = join(output_uri, "runs", run_id)
    write_table(join(private, "plan.parquet"), pa.Table.from_pylist(list(plan), schema=PLANNED_SCHEMA))
    config = {"objective": "probability"}
    run = {"run_id": run_id, "config": config, "belief": assumed_belief(), "allowed_roots": ["/"], "started_at": None}
    run |= facts
    storage.write_bytes(join(private, "run.json"), json.dumps(run).encode())


def write_tables(
    output_uri: str,
    audit_date: str,
    run_id: str,
    parts: Sequence[pa.Table],
    plan: pa.Table,
    summary: pa.Table,
    row_group_size: int,
) -> None:
    """A night's tables in the order of its commit: the parts of `results` and the plan first, the summary last."""
    partition = f"audit_date={audit_date}"
    for number, part in enumerate(parts):
        uri = join(output_uri, "results", partition, f"part-{run_id}-{number:05d}.parquet")
        write_table(uri, part, row_group_size=row_group_size)
    uri = join(output_uri, "recount_plan", partition, f"part-{run_id}-00000.parquet")
    write_table(uri, conform(plan, RECOUNT_PLAN_SCHEMA))
    write_table(join(output_uri, "summary", partition, "summary.parquet"), summary)


def assumed_belief() -> dict[str, Any]:
    """As `run.json` holds it."""
    return {
        "state": "assumed",
        "record_model": asdict(assume_record_model([1.0] * (TOP_CLASS + 1))),
        "noise_rate": 0.02,
        "bundle_id": BUNDLE_ID,
        "calibration_id": "0" * 12,
        "reference": None,
        "estimates": {
            **dict.fromkeys(Estimates.__dataclass_fields__),
            **dict.fromkeys(("window_nights", "num_random_window", "num_priority_window", "num_pending_window"), 0),
            "estimator": "none",
        },
    }


def mark_run(output_uri: str, run_id: str) -> None:
    storage.write_bytes(join(output_uri, "runs", run_id, "committed"), b"")


def commit_night(
    output_uri: str,
    audit_date: str,
    plan: Sequence[dict[str, Any]],
    *,
    other_bins: Sequence[dict[str, Any]] = (),
    num_assessed: int = 0,
    run: str = "aaaaaaaaaaaa",
    marked: bool = True,
    objective: str = "probability",
    started_at: str | None = None,
    manifest: str | None = None,
    outside: float | None = None,
    bundle_id: str = BUNDLE_ID,
) -> str:
    """Commits the night by a run named `<audit_date>-<run>`; an earlier run of the night is replaced. `other_bins` are
    rows of bins that the plan left alone; `manifest` is its fingerprint. Returns the run_id."""
    run_id = f"{audit_date}-{run}"
    rows = [*plan, *other_bins]
    facts: dict[str, Any] = {"config": {"objective": objective}, "started_at": started_at}
    write_run(output_uri, run_id, plan, **facts, manifest={"fingerprint": manifest})
    results_uri = join(output_uri, "results", f"audit_date={audit_date}")
    storage.delete([entry.uri for entry in storage.list_objects(results_uri)])
    totals: dict[str, Any] = {
        "run_id": run_id,
        "scope": "all",
        "bundle_id": bundle_id,
        "num_assessed": num_assessed or len(rows),
        "num_random": sum(row["recount"] == "random" for row in plan),
        "record_outside_set_share": outside,
        "expected_wrong": sum(row["p_record_wrong"] for row in rows),
        "net_variance_predicted": sum(row["expected_variance_qty"] for row in rows),
        "gross_variance_predicted": sum(row["expected_abs_variance_qty"] for row in rows),
    }
    if any(row["unit_value"] is not None for row in rows):
        totals |= {"shortage_value": _value(rows, sign=-1), "overage_value": _value(rows, sign=1)}
    summary = [totals, {**totals, "scope": "zone", "scope_value": "Z", "num_assessed": 1}]
    listed = pa.Table.from_pylist([{**row, "run_id": run_id} for row in plan], schema=RECOUNT_PLAN_SCHEMA)
    whole = _with_defaults(summary, SUMMARY_SCHEMA)
    write_tables(output_uri, audit_date, run_id, [_results(rows, run_id)], listed, whole, row_group_size=3)
    if marked:
        mark_run(output_uri, run_id)
    return run_id


def _value(rows: Sequence[dict[str, Any]], sign: int) -> float:
    differences = ((row["expected_abs_variance_qty"] + sign * row["expected_variance_qty"]) / 2 for row in rows)
    return sum(pieces * (row["unit_value"] or 0.0) for pieces, row in zip(differences, rows, strict=True))


def bundle_info(bundle_id: str = BUNDLE_ID) -> BundleInfo:
    size = TOP_CLASS + 1
    return BundleInfo(
        bundle_id=bundle_id,
        architecture="resnet18",
        top_class=TOP_CLASS,
        classes=class_names(TOP_CLASS),
        preprocessing=Preprocessing(image_size=64),
        calibration=Calibration(
            method="none",
            weight=[[float(row == column) for column in range(size)] for row in range(size)],
            bias=[0.0] * size,
        ),
        prediction_set_threshold=0.9,
        num_calibration=1000,
        record_outside_set_share=0.1,
        num_independent=1000,
        label_histogram=[100] * size,
        activation_ranges={},
        weights_sha256="0" * 64,
        training_images_sha256="0" * 64,
    )


def _results(rows: Sequence[dict[str, Any]], run_id: str) -> pa.Table:
    facts = [{**row, "run_id": run_id, "skus": row["skus"] or []} for row in rows]
    return _with_defaults(facts, RESULTS_SCHEMA)


def _with_defaults(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Required columns that a test says nothing about are 0 or empty."""
    defaults = {field.name: "" if pa.types.is_string(field.type) else 0 for field in schema if not field.nullable}
    return pa.Table.from_pylist([{**defaults, **row} for row in rows], schema=schema)
