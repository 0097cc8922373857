"""Nights on real photos: records altered anew each night, the plan's recounts answered from the truth.

    python -m tests.benchmarks.nights --manifest-uri M --bundle-uri B --output-uri EMPTY --nights 10 [--json FILE]

The manifest's records are taken as the truth. Every night a fresh 5 % of them (of bins with at most 5 pieces) is altered,
yesterday's undone; the real jobs.audit plans 100 recounts, jobs.recount takes in the true quantities (a mismatch with
its confirming second count), and the next night uses what was learned. Prints, night by night, the planted error rate
beside the estimate and its interval, the list's precision, what it claimed, and the certificates; and, as all nights lie
in one output and are audited by one process, the seconds of the audit, the process's memory and handles, and the files.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date, timedelta

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from jobs import audit, recount
from jobs.platform import storage
from jobs.platform.cluster import connect
from jobs.platform.parquet import parquet_files, read_table, write_table
from jobs.platform.uris import absolute, join
from model.record_errors import DEFAULT_SIZES
from schemas.arrow import conform
from schemas.manifest import MANIFEST_SCHEMA

SHARE_WRONG, MOST_PIECES = 0.05, 5
SIZES = (-1, 1, -2, 2)  # d = true - recorded; the fifth share is "further"


def alter_records(true_qty: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Recorded quantities where SHARE_WRONG of all are wrong, drawn among bins of at most MOST_PIECES pieces."""
    recorded = true_qty.copy()
    eligible = np.flatnonzero(true_qty <= MOST_PIECES)
    for row in generator.choice(eligible, round(SHARE_WRONG * len(true_qty)), replace=False):
        while recorded[row] == true_qty[row]:
            kind = generator.choice(5, p=DEFAULT_SIZES)
            step = SIZES[kind] if kind < 4 else generator.choice([-5, -4, -3, 3, 4, 5])
            recorded[row] = max(0, true_qty[row] - step)
    return recorded


def with_records(manifest: pa.Table, recorded: np.ndarray, night: str) -> pa.Table:
    """The manifest of a night: total and lines altered alike."""
    rows = manifest.to_pylist()
    for row, quantity in zip(rows, recorded.tolist(), strict=True):
        difference, row["expected_qty"] = quantity - row["expected_qty"], quantity
        lines = row["skus"] or [{"sku": "UNKNOWN", "name": "not on record", "quantity": 0}]
        for line in lines:
            step = max(-line["quantity"], difference)
            line["quantity"] += step
            difference -= step
        row["skus"] = [line for line in lines if line["quantity"]]
        row["num_skus"] = len(row["skus"])
        row["sku"] = row["skus"][0]["sku"] if len(row["skus"]) == 1 else None
    metadata = {**(manifest.schema.metadata or {}), b"audit_date": night.encode()}
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA).replace_schema_metadata(metadata)


def answer_plan(output_uri: str, night: str, truth: dict[str, int], counts_uri: str) -> None:
    """The CSV that comes back: every planned bin counted; a mismatch was counted a second time."""
    parts = parquet_files(join(output_uri, "recount_plan", f"audit_date={night}"))
    plan = pd.concat([read_table(part.uri).to_pandas() for part in parts])
    counted = plan["bin_id"].map(truth)
    frame = pd.DataFrame(
        {
            "bin_id": plan["bin_id"],
            "audit_date": night,
            "counted_qty": counted,
            "counted_at": f"{night}T09:00:00+00:00",
            "counter_id": "floor-1",
            "confirmed": counted != plan["expected_qty"],
        }
    )
    storage.write_bytes(counts_uri, frame.to_csv(index=False).encode())


def run_nights(manifest_uri: str, bundle_uri: str, output_uri: str, num_nights: int, seed: int) -> list[dict]:
    """One row of figures per night."""
    tables = [read_table(entry.uri) for entry in parquet_files(manifest_uri)]
    manifest = pa.concat_tables([conform(table, MANIFEST_SCHEMA) for table in tables]).combine_chunks()
    manifest = manifest.replace_schema_metadata(tables[0].schema.metadata)
    true_qty = manifest["expected_qty"].to_numpy().astype(np.int64)
    truth = dict(zip(manifest["bin_id"].to_pylist(), true_qty.tolist(), strict=True))
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(num_nights):
        night = (date(2026, 9, 1) + timedelta(days=index)).isoformat()
        recorded = alter_records(true_qty, generator)
        place = join(output_uri, "manifests", night)
        write_table(join(place, "part-0.parquet"), with_records(manifest, recorded, night))
        audits = join(output_uri, "audits")
        started = time.monotonic()
        code = audit.main(["--manifest-uri", place, "--bundle-uri", bundle_uri, "--output-uri", audits])
        seconds = time.monotonic() - started
        assert code == 0, f"the audit of {night} exited {code}"
        counts_uri = join(output_uri, "counts", f"{night}.csv")
        answer_plan(audits, night, truth, counts_uri)
        code = recount.main(["--output-uri", audits, "--counts-uri", counts_uri])
        assert code == 0, f"taking in the counts of {night} exited {code}"
        me = psutil.Process()
        costs = {
            "seconds": round(seconds, 1),
            "driver_mb": round((me.memory_info().rss - me.memory_info().shared) / 1e6),
            "handles": me.num_fds(),
            "files": sum(1 for _ in storage.list_objects(audits)),
        }
        rows.append(measure_night(audits, night, truth, float((recorded != true_qty).mean())) | costs)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_night(audits: str, night: str, truth: dict[str, int], planted: float) -> dict:
    """What the night's results claim, beside the truth. The estimate is of the nights before this one."""
    part = parquet_files(join(audits, "results", f"audit_date={night}"))
    results = pa.concat_tables([read_table(entry.uri) for entry in part])
    summary = read_table(join(audits, "summary", f"audit_date={night}", "summary.parquet")).to_pylist()[0]
    wrong = np.array([truth[b] for b in results["bin_id"].to_pylist()]) != results["expected_qty"].to_numpy()
    priority = pc.fill_null(pc.equal(results["recount"], "priority"), False).to_numpy()
    certified = pc.equal(results["verdict"], "certified").to_numpy()
    low, high = summary["error_rate_low"], summary["error_rate_high"]
    return {
        "night": night,
        "planted": round(planted, 4),
        "estimate": summary["error_rate"],
        "low": low,
        "high": high,
        "inside": None if low is None else bool(low <= planted <= high),
        "random_window": summary["num_random_window"],
        "list_precision": float(wrong[priority].mean()) if priority.any() else None,
        "claimed": summary["exp_wrong_in_list"],
        "found": int(wrong[priority].sum()),
        "certified": int(certified.sum()),
        "certified_wrong": int(wrong[certified].sum()),
        "record_model": summary["record_model"],
        "error_rate_used": summary["record_error_rate_used"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("manifest-uri", "bundle-uri", "output-uri"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--nights", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with connect():
        rows = run_nights(
            absolute(arguments.manifest_uri),
            arguments.bundle_uri,
            absolute(arguments.output_uri),
            arguments.nights,
            arguments.seed,
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if arguments.json:
        storage.write_bytes(arguments.json, json.dumps(rows, indent=1).encode())


if __name__ == "__main__":
    main()
