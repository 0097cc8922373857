"""Nights of the simulated warehouse, audited with the real functions: assess, plan, count, learn, certify."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from model.certificates import (
    build_reference,
    certificate_thresholds,
    certified_at,
    conformal_p_values,
    p_value_histogram,
)
from model.drift import has_drifted, measure_baseline
from model.estimators import Estimate, NightSample, estimate_share
from model.posterior import Assessor, build_assessor, fit_noise_rate
from model.prediction_sets import build_prediction_sets, lac_quantile
from model.record_model import PRIOR_ERROR_RATE, RecordModel, assume_record_model, fit_record_model, recount_weights
from model.recount_plan import best_candidates, draw_keys, find_reach, plan_recounts
from schemas.bundle import LabelNoise
from tests.simulator import Bins, Camera, World, draw_bins

NUM_BINS = 10_000
BIN_IDS = [f"bin-{number:05d}" for number in range(NUM_BINS)]
WINDOW = 30
BUDGET = 100


def same_class(bins: Bins, top_class: int) -> np.ndarray:
    """Whether record and truth agree as classes (n,)."""
    return np.minimum(bins.expected_qty, top_class) == np.minimum(bins.true_qty, top_class)


def precision_at(score: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Share of wrong records among the first 100, 200 and 500 of the ranking."""
    order = np.argsort(-score, kind="stable")
    return [float(wrong[order[:size]].mean()) for size in (100, 200, 500)]


def learn(
    camera: Camera,
    counted: Bins,
    weights: np.ndarray | None = None,
    is_random: np.ndarray | None = None,
    assumed: RecordModel | None = None,
) -> tuple[RecordModel, Assessor]:
    """Record model and assessor from counted bins: all of them random ones of weight 1, unless given otherwise."""
    expected, true, histogram = counted.expected_qty, counted.true_qty, camera.label_histogram
    weights = np.ones(len(counted)) if weights is None else weights
    is_random = np.ones(len(counted), dtype=bool) if is_random is None else is_random
    assumed = assume_record_model(histogram) if assumed is None else assumed
    record_model = fit_record_model(expected, true, weights, is_random, assumed, [None] * len(true))
    assert record_model.top_class == camera.trained_in.top_class
    rate = fit_noise_rate(counted.probabilities, expected, true, weights, histogram, record_model, LabelNoise().rate)
    return record_model, build_assessor(histogram, rate, record_model)


def wrong_probability(assessor: Assessor, bins: Bins) -> np.ndarray:
    return assessor.assess(bins.probabilities, bins.expected_qty)["p_record_wrong"]


def certify(scores: np.ndarray, audits: Bins, audit_scores: np.ndarray, alphas: tuple[float, ...]) -> np.ndarray:
    """Smallest alpha at which each bin is certified (m,), NaN where at none."""
    reference = build_reference(audit_scores, audits.expected_qty, audits.true_qty, audits.logits.shape[1] - 1)
    thresholds = certificate_thresholds(p_value_histogram(scores, reference), alphas, drift_alarm=False)
    return certified_at(conformal_p_values(scores, reference), thresholds)


@dataclass
class Night:
    """What one night's plan held and what counting it showed."""

    bins: Bins
    random: np.ndarray
    in_reach: np.ndarray
    inclusion: np.ndarray
    scores: np.ndarray
    sample: NightSample


@dataclass
class History:
    """A warehouse audited night after night, with nothing known at the start."""

    camera: Camera
    world: World
    by_value: bool = False
    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray] = recount_weights
    prior_error_rate: float = PRIOR_ERROR_RATE
    nights: list[Night] = field(default_factory=list)

    def learned(self) -> tuple[RecordModel, Assessor]:
        """Record model and assessor from the recounts of the last 30 nights."""
        assumed = replace(assume_record_model(self.camera.label_histogram), error_rate=self.prior_error_rate)
        if not self.nights:
            return assumed, build_assessor(self.camera.label_histogram, 0.02, assumed)
        window = self.nights[-WINDOW:]
        inclusion, in_reach, random = (
            np.concatenate([getattr(night, name) for night in window]) for name in ("inclusion", "in_reach", "random")
        )
        weights = self.weigh(inclusion, in_reach)
        return learn(self.camera, join([night.bins for night in window]), weights, random, assumed)

    def audit(self, random: np.random.Generator) -> tuple[Bins, np.ndarray, Night, np.ndarray, Estimate]:
        """One more night: its bins, p_record_wrong, recounts, certificates (alpha or NaN) and error-rate estimate."""
        _, assessor = self.learned()
        bins = draw_bins(self.camera, self.world, NUM_BINS, random)
        columns = assessor.assess(bins.probabilities, bins.expected_qty, bins.unit_value)
        score = columns["p_record_wrong"]
        objective = columns["value_at_risk"] if self.by_value else score
        keys = draw_keys(BIN_IDS, 1, f"night {len(self.nights)}")
        plan = plan_recounts(
            best_candidates(BIN_IDS, keys, np.zeros(NUM_BINS), BUDGET),
            best_candidates(BIN_IDS, keys, objective, BUDGET),
            num_assessed=NUM_BINS,
            budget=BUDGET,
            random_share=0.3,
        )
        rows = np.argsort(plan.locate(BIN_IDS))[NUM_BINS - len(plan) :]
        is_random = plan.recount == "random"
        counted = bins.take(rows)
        in_reach = find_reach(objective[rows], ~is_random)
        sample = NightSample(
            NUM_BINS, float(score.sum()), counted.wrong.astype(float), score[rows], is_random, in_reach
        )
        night = Night(counted, is_random, in_reach, plan.inclusion_probability, score[rows], sample)
        self.nights.append(night)
        audits = [past.bins.take(np.flatnonzero(past.random)) for past in self.nights[-WINDOW - 1 : -1]]
        certified = np.full(NUM_BINS, np.nan)
        if audits:
            pooled = join(audits)
            certified = certify(score, pooled, wrong_probability(assessor, pooled), (0.3,))
        estimate = estimate_share([past.sample for past in self.nights[-WINDOW:]])
        return bins, score, night, certified, estimate


def join(parts: list[Bins]) -> Bins:
    """Bins of one camera, one after the other."""
    fields = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("expected_qty", "true_qty", "logits")
    )
    return Bins(*fields, parts[0].temperature, np.concatenate([part.unit_value for part in parts]))


def outside_sets(
    camera: Camera, worlds: list[World], random: np.random.Generator, *, num_calibration: int
) -> list[bool]:
    """Drift alarms over nights in `worlds`, with sets calibrated on records of the camera's own world."""
    calibration = draw_bins(camera, camera.trained_in, num_calibration, random)
    label = np.minimum(calibration.expected_qty, camera.trained_in.top_class)
    threshold = lac_quantile(1 - calibration.probabilities[np.arange(num_calibration), label])
    inside = build_prediction_sets(calibration.probabilities, calibration.expected_qty, threshold).has_record
    alarms, shares = [], []
    for world in worlds:
        bins = draw_bins(camera, world, NUM_BINS, random)
        tonight = build_prediction_sets(bins.probabilities, bins.expected_qty, threshold).has_record
        baseline = measure_baseline(shares, [NUM_BINS] * len(shares))
        alarms.append(has_drifted(int((~tonight).sum()), NUM_BINS, float((~inside).mean()), num_calibration, baseline))
        shares.append(float((~tonight).mean()))
    return alarms
