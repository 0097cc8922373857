"""Which records are wrong? Our ranking beside the simple rules, on real photos whose records were altered.

    python -m tests.benchmarks.doubt --manifest-uri M --bundle-uri B [--seeds 10] [--json FILE]

Uses the bins of the bundle's own test split; their records are taken as the truth. In each draw 5 % of the records are
altered, among bins of at most 5 pieces, in one of two worlds: "truth to record" (somebody mistook the count: the record
is true - d) and "record to truth" (stock moved after it was recorded: the truth is recorded + d). Prints the precision in
the first 25, 50 and 100 with 95 % bootstrap intervals over draws and bins, the share of the altered records that
counting 2, 5 and 10 % of the bins finds, and the same for assumed label noise of 0, 2 and 5 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from jobs.counting.belief import true_shares
from jobs.platform import storage
from jobs.platform.bundles import local_bundle
from jobs.platform.parquet import parquet_files, read_table
from jobs.platform.uris import absolute
from model.bundle import load_bundle
from model.bundle_files import read_training_images
from model.images import decode_image
from model.posterior import build_assessor
from model.record_errors import DEFAULT_SIZES
from model.record_model import assume_record_model
from model.scoring import Scorer
from schemas.bundle import BundleInfo

SHARE_WRONG, MOST_PIECES, DEPTHS, EFFORTS = 0.05, 5, (25, 50, 100), (0.02, 0.05, 0.10)
NOISES = (0.0, 0.02, 0.05)
WORLDS = ("truth to record", "record to truth")
NUM_BOOTSTRAP = 500


def score_test_photos(manifest_uri: str, bundle_uri: str) -> tuple[np.ndarray, np.ndarray, BundleInfo]:
    """Calibrated probabilities (n, K + 1), quantities (n,) of the bundle's test split, and what the bundle says."""
    tables = [read_table(entry.uri) for entry in parquet_files(manifest_uri)]
    bins = pa.concat_tables([table.select(["bin_id", "image_uri", "expected_qty"]) for table in tables])
    with local_bundle(bundle_uri) as folder:
        bundle = load_bundle(folder)
        seen = read_training_images(folder, bundle.info)
    test = seen.filter(pc.equal(seen["split"], "test"))
    bins = bins.filter(pc.is_in(bins["bin_id"], test["bin_id"].combine_chunks())).sort_by("bin_id")
    known = set(test["image_sha256"].to_pylist())
    scorer = Scorer(bundle, device="cpu", precision="fp32", batch_size=32)
    pixels = []
    for uri in bins["image_uri"].to_pylist():
        data = storage.read_bytes(uri)
        assert hashlib.sha256(data).hexdigest() in known, f"{uri} is not the photo that training set apart"
        pixels.append(decode_image(data, bundle.info.preprocessing))
    return scorer.score(np.stack(pixels)), bins["expected_qty"].to_numpy().astype(np.int64), bundle.info


def alter(quantity: np.ndarray, world: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(recorded, is_wrong) of one draw."""
    recorded, wrong = quantity.copy(), np.zeros(len(quantity), dtype=bool)
    of_quantity = {qty: np.flatnonzero(quantity == qty) for qty in range(MOST_PIECES + 1)}
    eligible = np.flatnonzero(quantity <= MOST_PIECES)
    while wrong.sum() < round(SHARE_WRONG * len(quantity)):
        start = int(quantity[generator.choice(eligible)])
        kind = int(generator.choice(5, p=DEFAULT_SIZES))
        step = (-1, 1, -2, 2)[kind] if kind < 4 else int(generator.choice([-5, -4, -3, 3, 4, 5]))
        if world == "truth to record":
            true, record = start, start - step
        else:
            true, record = start + step, start
        if record < 0 or not 0 <= true <= MOST_PIECES:
            continue
        free = of_quantity[true][~wrong[of_quantity[true]]]
        if free.size:
            row = generator.choice(free)
            recorded[row], wrong[row] = record, True
    return recorded, wrong


def rank(probabilities: np.ndarray, recorded: np.ndarray, info: BundleInfo, noise: float) -> dict[str, np.ndarray]:
    """Doubt (n,) in each record by each rule, largest first."""
    top = info.top_class
    label = np.minimum(recorded, top)
    camera = probabilities.argmax(axis=1)
    assessor = build_assessor(
        info.label_histogram, noise, assume_record_model(true_shares(np.bincount(label, minlength=top + 1)))
    )
    return {
        "ours": assessor.assess(probabilities, recorded)["p_record_wrong"].astype(float),
        "1 - p_expected": 1.0 - probabilities[np.arange(len(label)), label],
        "|camera - expected|": np.abs(camera - label).astype(float),
        "naive": (camera != label).astype(float),
    }


def measure(
    probabilities: np.ndarray, quantity: np.ndarray, info: BundleInfo, world: str, noise: float, num_seeds: int
) -> list[dict]:
    """A row of figures per rule, draws pooled."""
    draws = []
    for seed in range(num_seeds):
        generator = np.random.default_rng([seed, WORLDS.index(world)])
        recorded, wrong = alter(quantity, world, generator)
        ties = generator.random(len(quantity))
        doubts = rank(probabilities, recorded, info, noise)
        # wrongness in the order of doubt; ties (many in the simple rules) in random order
        order = {name: np.lexsort((ties, -doubt)) for name, doubt in doubts.items()}
        draws.append((wrong, order))
    rows = []
    for name in draws[0][1]:
        row: dict = {"world": world, "noise": noise, "rule": name}
        for depth in DEPTHS:
            row[f"P@{depth}"] = float(np.mean([wrong[order[name][:depth]].mean() for wrong, order in draws]))
            row[f"P@{depth} 95 %"] = _interval([(wrong, order[name]) for wrong, order in draws], depth)
        for effort in EFFORTS:
            count = round(effort * len(quantity))
            found = [wrong[order[name][:count]].sum() / wrong.sum() for wrong, order in draws]
            row[f"found by {effort:.0%}"] = float(np.mean(found))
        rows.append(row)
    return rows


def _interval(draws: list[tuple[np.ndarray, np.ndarray]], depth: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean precision: draws are resampled, and the bins in each."""
    generator = np.random.default_rng(0)
    means = []
    for _ in range(NUM_BOOTSTRAP):
        precisions = []
        for index in generator.integers(len(draws), size=len(draws)):
            wrong, order = draws[index]
            # a bin that is drawn k times stands k times in the ranking
            times = np.bincount(generator.integers(len(order), size=len(order)), minlength=len(order))[order]
            first = np.repeat(wrong[order], times)[:depth]
            precisions.append(first.mean())
        means.append(np.mean(precisions))
    low, high = np.percentile(means, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--manifest-uri", required=True)
    parser.add_argument("--bundle-uri", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    probabilities, quantity, info = score_test_photos(absolute(arguments.manifest_uri), arguments.bundle_uri)
    label = np.minimum(quantity, info.top_class)
    print(f"{len(quantity)} bins of the test split, exact {np.mean(probabilities.argmax(axis=1) == label):.3f}")
    rows = [
        row
        for noise in NOISES
        for world in WORLDS
        for row in measure(probabilities, quantity, info, world, noise, arguments.seeds)
        if noise == info.label_noise.rate or row["rule"] == "ours"
    ]
    with pd.option_context("display.width", 250, "display.max_columns", None):
        print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if arguments.json:
        storage.write_bytes(arguments.json, json.dumps(rows, indent=1).encode())


if __name__ == "__main__":
    main()
