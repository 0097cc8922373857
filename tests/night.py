"""Synthetic committed nights on disk, in the layout that the audit publishes: for tests of what reads nights.

    write_nights(tmp_path, ["2026-03-01", "2026-03-02"], num_bins=500)

Everything is vectorised (a night of 100,000 bins takes seconds). The camera's evidence is a normal deviate around the
true quantity and the posterior is Bayes with the record model that drew the records, so claims are calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from jobs.counting.estimates import estimate_window
from jobs.counting.history import read_history
from jobs.platform.parquet import write_table
from jobs.stages.summary import summarize
from jobs.stages.sums import sum_scopes
from model.posterior import camera_columns, posterior_columns
from schemas.arrow import TIMESTAMP, conform
from schemas.manifest import SKU_LINE
from schemas.recount import COUNTED_SCHEMA
from schemas.results import RESULTS_SCHEMA, ImageStatus
from tests.planned_night import assumed_belief, write_run, write_tables

TOP_CLASS = 6
SET_THRESHOLD = 0.9
ERROR_RATE = 0.05
OUTSIDE_SET_SHARE = 0.1

NASTY_TEXTS = (
    "<script>alert(1)</script>",
    '=HYPERLINK("http://evil.example","x")',
    '"; DROP TABLE bins; --',
    "+1+1",
    "-2+3",
    "@SUM(A1:A9)",
    "\t=1+1",
    "</script><img src=x onerror=alert(1)>",
    "📦 box of 🧸🧸",
    "صندوق أحمر كبير",
    "‮right to left override",
    "line\u2028separator\u2029paragraph",
    "control\x00\x07\x1b[31mcharacters",
    "two\r\nlines, \"quoted\", 'single' & ampersand; {{ 7 * 7 }} {% raw %}",
    "x" * 500,
)
"""Names that have broken a page, a CSV file or a spreadsheet somewhere."""

Rows = dict[str, np.ndarray | pa.Array]


@dataclass(frozen=True)
class Warehouse:
    """What stays the same from night to night. All arrays (n,)."""

    bin_id: np.ndarray
    image_uri: np.ndarray
    expected_qty: np.ndarray
    unit_value: np.ndarray
    zone: np.ndarray
    abc_class: np.ndarray
    num_skus: np.ndarray
    sku: np.ndarray
    names: np.ndarray
    leaky: np.ndarray
    """Bins whose record goes wrong again and again."""


def write_nights(
    output: Path,
    audit_dates: Sequence[str],
    *,
    num_bins: int = 300,
    recount_budget: int = 100,
    seed: int = 0,
    count_recounts: bool = True,
    photos: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> None:
    """Commits one night per date below `output`; every night but the last is counted unless `count_recounts` is off.

    `photos` are URIs given to the bins in turn, `texts` become names, SKUs, zones and bin ids of the first bins.
    """
    warehouse = make_warehouse(num_bins, seed, photos, texts)
    for number, audit_date in enumerate(audit_dates):
        rng = np.random.default_rng([seed, number])
        rows, true_qty = audit_bins(warehouse, audit_date, rng, recount_budget, learned=count_recounts and number > 0)
        _write_night(output, audit_date, rows)
        if count_recounts and number < len(audit_dates) - 1:
            counts = _count(rows, audit_date, true_qty, rng)
            write_table(str(output / "counted" / f"counts-{audit_date}.parquet"), counts)


def make_warehouse(num_bins: int, seed: int, photos: Sequence[str] = (), texts: Sequence[str] = ()) -> Warehouse:
    rng = np.random.default_rng(seed)
    number = np.arange(num_bins)
    zone = np.char.add("Z", (1 + number * 8 // num_bins).astype(str)).astype(object)
    bin_id = np.char.add("B-", np.char.zfill((number + 1).astype(str), 6)).astype(object)
    num_skus = np.minimum(1 + rng.geometric(0.65, num_bins), 5) - 1
    num_skus[num_skus == 0] = 1
    sku = np.char.add("SKU", rng.integers(0, max(20, num_bins // 10), num_bins).astype(str)).astype(object)
    names = np.char.add("Product ", rng.integers(100, 999, num_bins).astype(str)).astype(object)
    for place, text in enumerate(texts[: num_bins // 3]):
        row = 3 * place
        names[row], sku[row] = text, text
        zone[row + 1] = text
        bin_id[row + 2] = f"{text} {place}"
    image_uri = np.array([f"missing/{name}.jpg" for name in number], dtype=object)
    if photos:
        image_uri = np.array(photos, dtype=object)[number % len(photos)]
    return Warehouse(
        bin_id=bin_id,
        image_uri=image_uri,
        expected_qty=rng.choice(13, num_bins, p=_QUANTITIES).astype(np.int32),
        unit_value=np.round(rng.lognormal(2.7, 1, num_bins), 2),
        zone=zone,
        abc_class=rng.choice(np.array(["A", "B", "C"], dtype=object), num_bins, p=(0.2, 0.3, 0.5)),
        num_skus=num_skus.astype(np.int32),
        sku=sku,
        names=names,
        leaky=rng.random(num_bins) < max(0.004, 30 / num_bins),
    )


_QUANTITIES = np.array([2, 8, 14, 17, 15, 12, 9, 7, 5, 4, 3, 2, 2]) / 100


def audit_bins(
    warehouse: Warehouse, audit_date: str, rng: np.random.Generator, recount_budget: int, *, learned: bool
) -> tuple[Rows, np.ndarray]:
    """The night's results as columns (n,) and what is really in the bins (n,)."""
    size, expected = len(warehouse.bin_id), warehouse.expected_qty
    wrong = (rng.random(size) < ERROR_RATE) | (warehouse.leaky & (rng.random(size) < 0.9))
    difference = rng.choice([-1, 1, -2, 2, -3, 3], size, p=(0.4, 0.25, 0.12, 0.08, 0.08, 0.07))
    true_qty = np.where(wrong, np.maximum(expected + difference, 0), expected)
    probabilities = _camera(np.minimum(true_qty, TOP_CLASS), rng)
    posterior = _posterior(probabilities, np.minimum(expected, TOP_CLASS))
    status = rng.choice(
        np.array(["scored", "missing_image", "fetch_failed", "unreadable_image", "image_rejected"], dtype=object),
        size,
        p=(0.98, 0.01, 0.003, 0.005, 0.002),
    )
    scored = status == "scored"
    moved = scored & (rng.random(size) < 0.01)
    assessed = scored & ~moved

    camera = camera_columns(probabilities, expected, SET_THRESHOLD)
    both = posterior_columns(posterior, expected, warehouse.unit_value)
    p_wrong = both["p_record_wrong"]

    num_random = min(max(10, round(0.3 * recount_budget)), recount_budget)
    draw = np.where(assessed, rng.random(size), 2.0)
    is_random = draw <= np.sort(draw)[num_random - 1] if num_random else np.zeros(size, bool)
    doubt = np.where(assessed & ~is_random, p_wrong, -1)
    order = np.argsort(-doubt, kind="stable")[: min(recount_budget - num_random, int((doubt >= 0).sum()))]
    rank = np.zeros(size, np.int32)
    rank[order] = np.arange(1, len(order) + 1)
    recount = np.where(is_random, "random", np.where(rank > 0, "priority", None))
    certified = (rank > 0) & (rank <= len(order) // 4) & learned
    suspect = assessed & ((rank > 0) | (p_wrong >= 0.5))
    verdict = np.where(
        ~assessed, "not_assessed", np.where(certified, "certified", np.where(suspect, "suspect", "ok"))
    ).astype(object)

    def given(values: np.ndarray, mask: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=~mask)

    midnight = np.datetime64(audit_date, "us")
    errors = np.array(["not found", "access denied", "truncated or damaged JPEG: Premature end of file", "too large"])
    error = errors[np.searchsorted(sorted(ImageStatus), status.astype(str)) % 4].astype(object)
    rows: Rows = {
        "bin_id": warehouse.bin_id,
        "image_uri": warehouse.image_uri,
        "expected_qty": expected,
        "num_skus": warehouse.num_skus,
        "skus": _sku_lines(warehouse),
        "sku": given(warehouse.sku, warehouse.num_skus == 1, pa.string()),
        "zone": warehouse.zone,
        "abc_class": warehouse.abc_class,
        "unit_value": warehouse.unit_value,
        "currency": np.full(size, "EUR", dtype=object),
        "photo_at": pa.array(midnight + rng.integers(0, 3_600_000_000, size).astype("m8[us]"), TIMESTAMP),
        "expected_as_of": pa.array(np.full(size, midnight), TIMESTAMP),
        "run_id": np.full(size, run_name(audit_date), dtype=object),
        "status": status,
        "error": given(error, ~scored, pa.string()),
        "probabilities": _lists(probabilities, scored),
        **{
            name: given(values, scored, RESULTS_SCHEMA.field(name).type)
            for name, values in camera.items()
            if name != "record_in_set"
        },
        **{name: given(values, assessed, RESULTS_SCHEMA.field(name).type) for name, values in both.items()},
        "verdict": verdict,
        "reason": given(np.where(moved, "moved", status), ~assessed, pa.string()),
        "rank": given(rank, rank > 0, pa.int32()),
        "recount": pa.array(recount, pa.string()),
        "inclusion_probability": given(
            np.where(is_random, num_random / max(1, assessed.sum()), 1),
            is_random | (rank > 0),
            pa.float32(),
        ),
        "certificate_p": given(np.full(size, 0.01), certified, pa.float32()),
        "certified_at": given(np.full(size, 0.3), certified, pa.float32()),
        "num_counted": np.zeros(size, np.int32),
        "bundle_id": np.full(size, "0123456789ab", dtype=object),
        "calibration_id": np.full(size, "cal-1", dtype=object),
    }
    return rows, true_qty


def run_name(audit_date: str) -> str:
    return f"{audit_date}-abcdef012345"


def _write_night(output: Path, audit_date: str, rows: Rows) -> None:
    """Publishes a night in the audit's order: two parts and the plan first, the summary last."""
    results, run_id = conform(pa.table(rows), RESULTS_SCHEMA), run_name(audit_date)
    planned = results.filter(pa.compute.is_valid(results["recount"]))
    write_run(
        str(output),
        run_id,
        planned.sort_by("bin_id").to_pylist(),
        audit_date=audit_date,
        config={
            "manifest_uri": "s3://stock/manifest",
            "bundle_uri": "s3://stock/bundle",
            "objective": "probability",
        },
        bundle={"bundle_id": "0123456789ab", "architecture": "resnet18", "top_class": TOP_CLASS},
        versions={"python": "3.11.2"},
        outcome={"seconds": {"score": 12.5}, "status": {"scored": results.num_rows}},
    )
    step = -(-results.num_rows // 2)
    parts = [results.slice(0, step), results.slice(step)]
    summary = _summarise(output, results, audit_date)
    write_tables(str(output), audit_date, run_id, parts, planned, summary, row_group_size=20_000)


def _summarise(output: Path, results: pa.Table, audit_date: str) -> pa.Table:
    """SUMMARY_SCHEMA, with estimates of the counts that have come in; what the audit measures while it runs is made up."""
    run_id, estimates = run_name(audit_date), estimate_window(read_history(str(output), audit_date))
    rng = np.random.default_rng(list(run_id.encode()))
    assessed = pa.compute.not_equal(results["verdict"], "not_assessed").to_numpy()
    outside = assessed & (rng.random(results.num_rows) < OUTSIDE_SET_SHARE)
    learned = estimates.num_random_window > 0
    facts = {
        "run_id": run_id,
        "alpha": 0.3 if learned else None,
        "record_model": "learned" if learned else "assumed",
        "record_error_rate_used": ERROR_RATE,
        "label_noise_used": 0.02,
        "bundle_id": "0123456789ab",
        "calibration_id": "cal-1",
        **assumed_belief()["estimates"],
    }
    of_whole = {**asdict(estimates), "images_per_second": 50.0, "drill_recall": 0.25, "drift_alarm": False}
    return summarize(sum_scopes(results, outside, TOP_CLASS), facts, {("all", None): of_whole}, ["EUR"])


def _camera(true_class: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Calibrated probabilities (n, K+1)."""
    classes = np.arange(TOP_CLASS + 1)
    spread = 0.25 + 0.12 * classes
    evidence = true_class + rng.normal(size=len(true_class)) * spread[true_class]
    log = -(((evidence[:, None] - classes) / spread) ** 2) / 2 - np.log(spread)
    share = np.exp(log - log.max(1, keepdims=True))
    return (share / share.sum(1, keepdims=True)).astype(np.float32)


def _posterior(probabilities: np.ndarray, record: np.ndarray) -> np.ndarray:
    """P(true class | photo, record) (n, K+1) with the size pattern that audit_bins draws."""
    shift = np.arange(TOP_CLASS + 1) - record[:, None]
    weights = np.array([0.08, 0.12, 0.40, 0, 0.25, 0.08, 0.07]) * ERROR_RATE
    weights[3] = 1 - ERROR_RATE
    prior = np.where(abs(shift) <= 3, weights[np.clip(shift, -3, 3) + 3], 1e-6)
    prior = np.where((record[:, None] == TOP_CLASS) & (shift == 0), 1.0, prior)
    posterior = probabilities * prior
    return posterior / posterior.sum(1, keepdims=True)


def _sku_lines(warehouse: Warehouse) -> pa.ListArray:
    counts = warehouse.num_skus
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.r_[True, owner[1:] != owner[:-1]] if len(owner) else np.zeros(0, bool)
    skus = np.where(first, warehouse.sku[owner], np.char.add("MIX", (owner % 97).astype(str)).astype(object))
    share = warehouse.expected_qty[owner] // counts[owner]
    quantity = np.where(first, warehouse.expected_qty[owner] - share * (counts[owner] - 1), share).astype(np.int32)
    lines = pa.StructArray.from_arrays(
        [pa.array(skus, pa.string()), pa.array(warehouse.names[owner], pa.string()), pa.array(quantity)],
        fields=list(SKU_LINE),
    )
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(counts)], pa.int32()), lines)


def _lists(values: np.ndarray, mask: np.ndarray) -> pa.ListArray:
    lengths = np.where(mask, values.shape[1], 0)
    offsets = pa.array(np.r_[0, np.cumsum(lengths)], pa.int32())
    flat = pa.array(values[mask].ravel(), pa.float32())
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(~mask))


def _count(rows: Rows, audit_date: str, true_qty: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """COUNTED_SCHEMA: what people found in the night's planned bins; a few mismatches are not yet confirmed."""
    results = pa.table({name: rows[name] for name in COUNTED_SCHEMA.names if name in rows and name != "skus"})
    planned = pa.compute.is_valid(results["recount"])
    counted = true_qty[planned.to_numpy()].astype(np.int32)
    taken = results.filter(planned)
    wrong = counted != taken["expected_qty"].to_numpy()
    size = len(counted)
    table = taken.append_column("counted_qty", pa.array(counted))
    table = table.append_column("audit_date", pa.array([audit_date] * size))
    at = np.datetime64(audit_date, "us") + np.timedelta64(34, "h") + np.arange(size).astype("m8[m]")
    table = table.append_column("counted_at", pa.array(at, TIMESTAMP))
    table = table.append_column("counter_id", pa.array(rng.choice(["ann", "bob"], size)))
    table = table.append_column("confirmed", pa.array(~wrong | (rng.random(size) < 0.97)))
    table = table.append_column("reason_code", pa.array(np.where(wrong, "MISPICK", None), pa.string()))
    return conform(table, COUNTED_SCHEMA)
