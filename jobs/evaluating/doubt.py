"""The audit's view of the same photos: how many of the most doubted records are wrong ones.

A counter that is right more often need not doubt better: the audit lives on the tails of the probabilities. So a
share of the records is altered at random, and each way to rank is judged by its precision in the first 25, 50, 100.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.counting.belief import true_shares
from model.metrics import with_intervals
from model.posterior import Assessor, build_assessor
from model.record_errors import DEFAULT_SIZES, SIZE_STEPS
from model.record_model import assume_record_model
from schemas.bundle import BundleInfo

ALTERED_SHARE = 0.05
NUM_DRAWS = 30
DEPTHS = (25, 50, 100)

NOISE_RATES = (0.0, 0.05)
"""Instead of the bundle's: no recounts tell how many training labels are wrong before there are some. How much hangs on it?"""

RANKINGS = {
    "differs": "camera and record differ (in any order)",
    "distance": "|camera − expected|",
    "p_expected": "1 − p(expected)",
    "p_record_wrong": "p_record_wrong (record model assumed)",
    **{f"noise_{rate:.2f}": f"the same, were {100 * rate:.0f} % of the training labels wrong" for rate in NOISE_RATES},
}


def measure_doubt(
    probabilities: np.ndarray, expected_qty: np.ndarray, groups: np.ndarray, info: BundleInfo, *, seed: int
) -> dict[str, Any]:
    """Mean precision over NUM_DRAWS draws: `rankings` {name: {depth: share of altered records so far up}}, each a figure of
    `with_intervals`: the groups whose bins came so far up in any draw are drawn again.

    `probabilities` (n, K + 1), `expected_qty` (n,) unclipped, taken to be true, `groups` (n,). Altered to another class,
    as records are when somebody mistook the count (truth to record, default sizes). A depth beyond the number of altered
    records is left out.
    """
    labels = np.minimum(expected_qty, info.top_class)
    num_altered = round(ALTERED_SHARE * len(labels))
    depths = [depth for depth in DEPTHS if depth <= num_altered]
    mistakes = _mistake_shares(info.num_classes).cumsum(axis=1)[:, :-1]  # the last class is what remains
    rates = {"p_record_wrong": info.label_noise.rate, **{f"noise_{rate:.2f}": rate for rate in NOISE_RATES}}
    # as an audit of these bins would have it, whose mix of quantities need not be training's
    record_model = assume_record_model(true_shares(np.bincount(labels, minlength=info.num_classes)))
    assessors = {name: build_assessor(info.label_histogram, rate, record_model) for name, rate in rates.items()}
    generator = np.random.default_rng(seed)
    tops: dict[str, list[np.ndarray]] = {name: [] for name in RANKINGS}
    for _ in range(NUM_DRAWS if depths else 0):
        altered = generator.permutation(len(labels))[:num_altered]
        record = expected_qty.copy()
        record[altered] = (mistakes[labels[altered]] < generator.random((num_altered, 1))).sum(axis=1)
        is_altered = np.isin(np.arange(len(labels)), altered)
        ties = generator.random(len(labels))
        for name, doubt in _doubts(probabilities, record, assessors).items():
            first = np.lexsort((ties, -doubt))[: max(depths)]
            tops[name].append(np.stack([first, is_altered[first]]))
    return {
        "altered_share": ALTERED_SHARE,
        "num_draws": NUM_DRAWS,
        "num_altered": num_altered,
        "rankings": {
            name: {str(depth): _precision(found, depth, groups, seed) for depth in depths}
            for name, found in tops.items()
        },
    }


def _precision(tops: list[np.ndarray], depth: int, groups: np.ndarray, seed: int) -> dict[str, float | None]:
    """`tops`: of each draw the first bins' rows and whether they were altered, (2, at least `depth`). Of 1,000 bins in groups
    of very unlike difficulty the intervals held the truth in 94 to 100 % of simulations, of the first 25 by p_record_wrong in
    83 %."""
    rows, altered = np.concatenate([top[:, :depth] for top in tops], axis=1)
    return with_intervals(("precision",), altered[:, None], groups[rows], seed=seed)["precision"]


def _mistake_shares(num_classes: int) -> np.ndarray:
    """P(recorded class | true class, the record is wrong), (K + 1, K + 1): default sizes, zero diagonal."""
    shares = np.zeros((num_classes, num_classes))
    for true in range(num_classes):
        far = [recorded for recorded in range(num_classes) if abs(true - recorded) >= 3]
        shares[true, far] = DEFAULT_SIZES[-1] / max(1, len(far))
        for step, share in zip(SIZE_STEPS, DEFAULT_SIZES, strict=False):
            if 0 <= true - step < num_classes:
                shares[true, true - step] += share
    return shares / shares.sum(axis=1, keepdims=True)


def _doubts(probabilities: np.ndarray, record: np.ndarray, assessors: dict[str, Assessor]) -> dict[str, np.ndarray]:
    camera = probabilities.argmax(axis=1)
    label = np.minimum(record, probabilities.shape[1] - 1)
    return {
        "differs": (camera != label).astype(float),
        "distance": np.abs(camera - label).astype(float),
        "p_expected": 1 - probabilities[np.arange(len(label)), label].astype(float),
        **{name: assessor.assess(probabilities, record)["p_record_wrong"] for name, assessor in assessors.items()},
    }
