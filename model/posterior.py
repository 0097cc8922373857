"""What is really in each bin, given its photo and its record.

    p~(r | photo)       calibrated probabilities of a network trained on records, (n, K + 1)
    p(y | photo)        = p~ N^-1, clipped at 1e-5 and renormalised: label noise taken out
    P(y | photo, r)     proportional to p(y | photo) / share(y) * P(y | r)
    p_record_wrong      = 1 - P(y = r | photo, r)

Assumption: photo and record are independent given what is in the bin. It fails for photos the network was
trained on, for records in other units, and for photos older than the record.

Two passes over the night's shards of staged probabilities use this module and its neighbours; nothing holds all rows:

1. per shard `Assessor.assess` -> small mergeable parts: the p-value histogram (`certificates`), the best candidates of
   the random and the priority list (`recount_plan`), counts of records outside the prediction set (`drift`), the altered
   records (`drill`). The parts are merged.
2. per shard `Assessor.assess` once more, and with what the merged parts decide `certificate_p`, `certified_at`, `recount`,
   `rank`, `inclusion_probability`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.prediction_sets import build_prediction_sets
from model.record_errors import Floats, record_rows
from model.record_model import RecordModel, scale_to_effective_size

_PROBABILITY_FLOOR = 1e-5
LEAST_LABEL_SHARE = 0.005
"""Of a class among labels or tonight's records, before they are made to sum to 1 again."""
# the prior on the noise rate is half-normal; its sigma is so many assumed rates, which makes its mean one
_NOISE_SPREAD = math.sqrt(math.pi / 2)
_NOISE_GRID = np.linspace(0, 0.12, 13)

Columns = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Assessor:
    """Everything but the photo and the record that the posterior needs; built by `build_assessor`.

    `noise` (K + 1, K + 1), `class_shares` (K + 1,) of the true quantities in training, `record_table` (K + 3, K + 1), and
    those of the zones that have one of their own.
    """

    noise: Floats
    class_shares: Floats
    record_table: Floats
    zone_tables: dict[str, Floats] = field(default_factory=dict)

    @property
    def top_class(self) -> int:
        return len(self.class_shares) - 1

    def posterior(self, probabilities: ArrayLike, expected_qty: ArrayLike, zones: Sequence[str | None] = ()) -> Floats:
        """P(true class | photo, record), (n, K + 1), from calibrated probabilities, unclipped records and, where they are
        known, zones (n,)."""
        photo = denoise(probabilities, self.noise)
        if not self.zone_tables or not len(zones):
            return truth_posterior(photo, expected_qty, self.class_shares, self.record_table)
        number = {zone: index for index, zone in enumerate(self.zone_tables, start=1)}
        place = np.array([number.get(zone or "", 0) for zone in zones], dtype=np.intp)
        tables = np.stack([self.record_table, *self.zone_tables.values()])
        return truth_posterior(photo, expected_qty, self.class_shares, tables, place)

    def assess(
        self,
        probabilities: ArrayLike,
        expected_qty: ArrayLike,
        unit_value: ArrayLike | None = None,
        zones: Sequence[str | None] = (),
    ) -> Columns:
        """The results columns "camera and record together", each (n,); see `posterior_columns`."""
        return posterior_columns(self.posterior(probabilities, expected_qty, zones), expected_qty, unit_value)


def build_assessor(label_histogram: ArrayLike, noise_rate: float, record_model: RecordModel) -> Assessor:
    """Assessor for a network trained on labels with `label_histogram` (K + 1,), wrong at `noise_rate`. Raises ValueError
    where the record model has other classes."""
    classes = np.asarray(label_histogram).shape
    if classes != (record_model.top_class + 1,):
        raise ValueError(f"record model has {record_model.top_class + 1} classes, the label histogram {classes}")
    noise, shares = label_noise(label_histogram, noise_rate, record_model)
    zone_tables = {zone: record_model.table(zone) for zone in record_model.zone_error_rates}
    return Assessor(noise, shares, record_model.table(), zone_tables)


def label_noise(label_histogram: ArrayLike, noise_rate: float, record_model: RecordModel) -> tuple[Floats, Floats]:
    """N[y, r] = P(label r | true y), shape (K + 1, K + 1), and the true class shares (K + 1,) behind the labels.

    Labels are records, wrong as the record model's are but at `noise_rate` and among the quantities of the labels, which
    tonight's need not resemble: the joint distribution is share(label) * P(true | label). Transition matrix of label
    noise: Natarajan et al. 2013, Patrini et al. 2017.
    """
    label_shares = _label_shares(label_histogram)
    large = record_model.large_error_rate
    if large is not None and noise_rate < record_model.error_rate:
        large *= noise_rate / record_model.error_rate
    there = replace(
        record_model, error_rate=noise_rate, large_error_rate=large, class_shares=tuple(label_shares.tolist())
    )
    joint = label_shares[:, None] * there.class_table()
    shares = joint.sum(axis=0)
    return (joint / shares).T, shares


def _label_shares(label_histogram: ArrayLike) -> Floats:
    """No class is impossible, nor next to it, because hardly any was seen: the photo's probabilities are divided by these
    shares, and a class of one label in thousands would have every record beside it doubted."""
    counts = np.asarray(label_histogram, dtype=np.float64) + 1
    counts = np.maximum(counts, LEAST_LABEL_SHARE * counts.sum())
    return counts / counts.sum()


def denoise(probabilities: ArrayLike, noise: Floats) -> Floats:
    """p(true | photo) = p~ N^-1 (n, K + 1), clipped at 1e-5 and renormalised (backward correction, Patrini 2017)."""
    true = np.asarray(probabilities, dtype=np.float64) @ np.linalg.inv(noise)
    np.maximum(true, _PROBABILITY_FLOOR, out=true)
    true /= true.sum(axis=1, keepdims=True)
    return true


def truth_posterior(
    true_given_photo: Floats,
    expected_qty: ArrayLike,
    class_shares: ArrayLike,
    record_table: Floats,
    place: NDArray[np.intp] | int = 0,
) -> Floats:
    """P(true class | photo, record), (n, K + 1): Bayes with the photo's likelihood ratio p(y | photo) / share(y).

    `class_shares` (K + 1,) must be the shares the network was trained with; `record_table` (K + 3, K + 1), or several of
    them, (zones, K + 3, K + 1), and the `place` (n,) of each bin's among them.
    """
    rows = record_rows(expected_qty, true_given_photo.shape[1] - 1)
    tables = record_table.reshape(-1, *record_table.shape[-2:]) / np.asarray(class_shares)
    chance = true_given_photo * tables[place, rows]
    chance /= chance.sum(axis=1, keepdims=True)
    return chance


def posterior_columns(posterior: Floats, expected_qty: ArrayLike, unit_value: ArrayLike | None = None) -> Columns:
    """The results columns of a posterior (n, K + 1) and unclipped records (n,); pieces, and money for value_at_risk.

    For a record of K or more the one claim is "fewer than K are there": p_record_wrong = p_short = P(y < K),
    p_over = 0, class K counts as no variance. For smaller records "K or more" counts as K, a lower bound.
    value_at_risk = expected_abs_variance_qty * unit_value, NaN where there is no unit value.
    """
    top = posterior.shape[1] - 1
    expected = np.asarray(expected_qty, dtype=np.int64)
    rows = np.arange(len(posterior))
    record = np.minimum(expected, top)
    below = np.concatenate([np.zeros((len(posterior), 1)), np.cumsum(posterior, axis=1)], axis=1)[rows, record]
    above = np.where(record == top, 0.0, 1 - below - posterior[rows, record])
    short, over = np.clip(below, 0, 1), np.clip(above, 0, 1)
    others = posterior.copy()
    others[rows, record] = -1.0
    # quantity above a record of K or more is unknown, so class K stands for the record itself there
    size = np.arange(top + 1) - expected[:, None]  # (n, K + 1), pieces
    size[:, top] = np.maximum(size[:, top], 0)
    mean, absolute = (posterior * size).sum(axis=1), (posterior * np.abs(size)).sum(axis=1)
    value = np.full(len(posterior), np.nan) if unit_value is None else np.asarray(unit_value, dtype=np.float64)
    return {
        "p_record_wrong": np.minimum(short + over, 1.0),
        "p_short": short,
        "p_over": over,
        "p_empty": posterior[:, 0].copy(),
        "likely_qty": others.argmax(axis=1).astype(np.int32),
        "expected_variance_qty": mean,
        "expected_abs_variance_qty": absolute,
        "value_at_risk": absolute * value,
    }


def camera_columns(probabilities: ArrayLike, expected_qty: ArrayLike, set_threshold: float) -> Columns:
    """The results columns of the camera alone, each (n,), and `record_in_set` for drift.

    variance_qty = camera - expected, 0 where both are at K or above; a camera at K is taken as K, a bound.
    """
    probability = np.asarray(probabilities)
    top = probability.shape[1] - 1
    expected = np.asarray(expected_qty, dtype=np.int64)
    camera = probability.argmax(axis=1)
    sets = build_prediction_sets(probability, expected, set_threshold)
    both_top = (camera == top) & (expected >= top)
    return {
        "camera_qty": camera.astype(np.int32),
        "camera_is_top_class": camera == top,
        "qty_low": sets.low,
        "qty_high": sets.high,
        "variance_qty": np.where(both_top, 0, camera - expected).astype(np.int32),
        "p_expected": probability[np.arange(len(probability)), np.minimum(expected, top)],
        "record_in_set": sets.has_record,
    }


def fit_noise_rate(
    probabilities: ArrayLike,
    expected_qty: ArrayLike,
    counted_qty: ArrayLike,
    weights: ArrayLike,
    label_histogram: ArrayLike,
    record_model: RecordModel,
    assumed_rate: float,
) -> float:
    """Label noise rate from recounts: posterior mean on a grid of the likelihood of what was counted.

    `probabilities` (n, K + 1) from the bundle whose labels are meant; quantities and `weights` (n,) as in
    `fit_record_model`. The prior is half-normal with the mean `assumed_rate`, so that few recounts change little (up to
    0.05; the grid ends at 0.12): an overstated rate lets the list claim more than it finds. No recounts, or an assumed
    record model: `assumed_rate`.
    Raises ValueError unless `assumed_rate` is positive.
    """
    if assumed_rate <= 0:
        raise ValueError(f"an assumed noise rate must be positive to be learned from, found {assumed_rate}")
    counted = np.asarray(counted_qty)
    if counted.size == 0 or record_model.assumed:
        return assumed_rate
    weight = scale_to_effective_size(weights)
    rows, true = np.arange(len(counted)), np.minimum(counted, record_model.top_class)
    log_chance = np.empty(len(_NOISE_GRID))
    table = record_model.table()
    for place, rate in enumerate(_NOISE_GRID):
        assessor = Assessor(*label_noise(label_histogram, float(rate), record_model), table)
        log_chance[place] = np.log(assessor.posterior(probabilities, expected_qty)[rows, true]) @ weight
    log_chance -= 0.5 * (_NOISE_GRID / (_NOISE_SPREAD * assumed_rate)) ** 2
    chance = np.exp(log_chance - log_chance.max())
    chance[0] /= 2  # the first point stands for half as wide a piece of the prior as the others
    return float((_NOISE_GRID * chance).sum() / chance.sum())
