"""What a night believes, from all recounts before it: record model, label noise, certificates' reference, estimates.

Frozen into `run.json` when a run starts. Rules of honesty: without random recounts there is no estimate and no
reference, only a ranking by an assumed record model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import TypeAdapter

from jobs.counting.estimates import Estimates, estimate_window
from jobs.counting.history import History
from jobs.counting.samples import absent_as_right, pooled, samples_to_learn_from
from jobs.platform.layout import run_in_force, run_uri
from jobs.platform.run_record import read_run
from model.certificates import ReferenceScores, build_reference
from model.drift import Baseline, measure_baseline
from model.posterior import Assessor, build_assessor, fit_noise_rate, label_noise
from model.record_errors import Floats
from model.record_model import PRIOR_ERROR_RATE, RecordModel, assume_record_model, fit_record_model
from schemas.bundle import BundleInfo


@dataclass(frozen=True)
class Belief:
    """Everything that recounts decide about a run. `calibration_id` names record model, noise rate and bundle."""

    state: Literal["assumed", "learned"]
    record_model: RecordModel
    noise_rate: float
    bundle_id: str
    calibration_id: str
    reference: ReferenceScores | None
    """p_record_wrong of bins drawn at random, rounded to float32 as the results hold it: compare like with like."""
    estimates: Estimates
    drift_baseline: Baseline | None = None
    """None too in a belief that was frozen before there was one."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; `from_dict` gives an equal belief."""
        return TypeAdapter(Belief).dump_python(self, mode="json")

    def without_claims(self) -> Belief:
        """For a night that draws no random bins: it ranks by what was learned, and neither certifies nor estimates."""
        return replace(self, reference=None, estimates=self.estimates.without_claims())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Belief:
        """Of what `to_dict` gave. Raises pydantic's ValidationError for anything else."""
        return TypeAdapter(Belief).validate_python(values)


def true_shares(records: ArrayLike, error_rate: float = PRIOR_ERROR_RATE) -> Floats:
    """How common each class is, (K + 1,), where so many records (K + 1,) say so and `error_rate` of them are wrong."""
    # no quantity is impossible because no record says it
    return label_noise(records, error_rate, assume_record_model(np.asarray(records) + 1))[1]


def read_class_shares(output_uri: str, night: str) -> Sequence[float]:
    """As a committed night's audit took them. Raises FileNotFoundError for a night that isn't committed."""
    run = read_run(run_uri(output_uri, run_in_force(output_uri, night)))
    return Belief.from_dict(run["belief"]).record_model.class_shares


def learn_belief(history: History, bundle: BundleInfo, class_shares: ArrayLike) -> Belief:
    """The belief for a run with this bundle over bins of these `class_shares` (K + 1,), see `true_shares`; deterministic
    in its inputs."""
    record_model = learn_record_model(history, class_shares)
    noise_rate = _learn_noise_rate(history, bundle, record_model)
    assessor = build_assessor(bundle.label_histogram, noise_rate, record_model)
    return Belief(
        state="assumed" if record_model.assumed else "learned",
        record_model=record_model,
        noise_rate=noise_rate,
        bundle_id=bundle.bundle_id,
        calibration_id=_name_calibration(record_model, noise_rate, bundle.bundle_id),
        reference=_build_reference(history, bundle.bundle_id, assessor),
        estimates=estimate_window(history),
        drift_baseline=_measure_baseline(history, bundle),
    )


def _measure_baseline(history: History, bundle: BundleInfo) -> Baseline | None:
    measured = [
        (summary.record_outside_set_share, summary.num_assessed)
        for summary in history.summaries
        if summary.bundle_id == bundle.bundle_id and summary.record_outside_set_share is not None
    ]
    shares, sizes = [share for share, _ in measured], [number for _, number in measured]
    return measure_baseline(shares, sizes, bundle.design_effect)


def learn_record_model(history: History, class_shares: ArrayLike) -> RecordModel:
    """The record model of the window's recounts; assumed where there is no random sample among them. `class_shares`
    (K + 1,), as `true_shares` gives them."""
    assumed, samples = assume_record_model(class_shares), samples_to_learn_from(history)
    if not samples:
        return assumed
    return fit_record_model(
        pooled(sample.expected_qty for sample in samples),
        pooled(sample.counted_qty for sample in samples),
        pooled(sample.weight for sample in samples),
        pooled(sample.is_random for sample in samples),
        assumed,
        zones=[zone for sample in samples for zone in sample.zones],
    )


def _learn_noise_rate(history: History, bundle: BundleInfo, record_model: RecordModel) -> float:
    """Of this bundle's training labels, from recounts of bins that this bundle scored."""
    assumed = bundle.label_noise.rate
    samples = [sample.of_bundle(bundle.bundle_id) for sample in samples_to_learn_from(history)]
    samples = [sample for sample in samples if len(sample.rows)]
    if not samples or assumed == 0:
        return assumed  # a rate of exactly 0 is a statement, not a guess
    return fit_noise_rate(
        pooled(sample.probabilities for sample in samples),
        pooled(sample.expected_qty for sample in samples),
        pooled(sample.counted_qty for sample in samples),
        pooled(sample.weight for sample in samples),
        bundle.label_histogram,
        record_model,
        assumed,
    )


def _build_reference(history: History, bundle_id: str, assessor: Assessor) -> ReferenceScores | None:
    """Random recounts of bins that this bundle scored whose class is right, or settled as wrong; scored anew by tonight's
    assessor.

    Mismatches of class that nobody confirmed are left out, however their records went on: most are wrong records, and
    without them only the number counted is lower, which errs against certificates. A miscount among them is a right record
    that is missed; taken as right, the wrong ones would leave nothing to certify. Where the class agrees (7 counted for a
    record of 8, and "6 or more" is the top), the record is right as certificates have it, confirmed or not, and often more
    doubted than others: without these 39 % of what is certified at 0.3 is right (simulated, 40 % bulk stock).

    Random bins that nobody counted are taken as right: those that are skipped night after night, as at the far end of the
    walk, may have another camera or other goods, and left out they let half of what is certified at 0.3 be right (simulated,
    a zone of 3 to 8 %). Where all are counted this costs nothing.

    Bins that were off the list on their night, as counted not long before, and found right again are among them: most
    are false alarms that people have seen through, and when their counts are old enough all of them may stand on the list
    again. Those found wrong are not: such bins are no candidates while they wait, and would only make every p smaller.
    """
    learned = samples_to_learn_from(history)
    samples = [sample.of_bundle(bundle_id) for sample in (*learned, *map(absent_as_right, learned))]
    # of those in the wrong class, the confirmed ones that could have been listed
    samples = [
        sample.where(sample.is_random & (~sample.in_wrong_class | (sample.settled & sample.was_listable())))
        for sample in samples
    ]
    samples = [sample for sample in samples if len(sample.rows)]
    if not samples:
        return None
    expected_qty = pooled(sample.expected_qty for sample in samples)
    counted_qty = pooled(sample.counted_qty for sample in samples)
    probabilities = pooled(sample.probabilities for sample in samples)
    zones = [zone for sample in samples for zone in sample.zones]
    scores = assessor.assess(probabilities, expected_qty, zones=zones)["p_record_wrong"]
    return build_reference(scores.astype(np.float32), expected_qty, counted_qty, assessor.top_class)


def _name_calibration(record_model: RecordModel, noise_rate: float, bundle_id: str) -> str:
    facts = {"record_model": asdict(record_model), "noise_rate": noise_rate, "bundle_id": bundle_id}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
