"""What is promised with numbers: false shares, intervals, feedback, drift, and all of it night after night."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from model.calibration_error import expected_calibration_error
from model.estimators import NightSample, estimate_share, wilson_interval
from model.posterior import Assessor
from model.recount_plan import find_reach
from tests.audited_nights import NUM_BINS, History, certify, learn, outside_sets, same_class, wrong_probability
from tests.benchmarks.bars import Row, at_least, at_most, inform, within
from tests.simulator import Bins, World, draw_bins, train_camera

WORLD = World()
ALPHAS = (0.2, 0.3, 0.5)
SEEDS = 200
# with this camera 42 % of the counts are exactly right
POOR_CAMERA = World(blur_factor=2.5, blind_share=0.35)
FEW_ERRORS = World(error_rate=0.02)


def measure_certificates() -> Iterator[Row]:
    """Tests 9 to 12: false shares over 200 nights, each with 1,000 fresh random recounts."""
    random = np.random.default_rng(3)
    camera = train_camera(WORLD, random)
    _, assessor = learn(camera, draw_bins(camera, WORLD, 4000, random))
    raw = replace(camera, temperature=1.0)
    shares = {name: np.zeros((SEEDS, len(ALPHAS))) for name in ("calibrated", "raw")}
    power, number, taken_as_truth = [], [], []
    for seed in range(SEEDS):
        audits, bins = draw_bins(camera, WORLD, 1000, random), draw_bins(camera, WORLD, NUM_BINS, random)
        level = certify_night(assessor, audits, bins)
        shares["calibrated"][seed] = false_shares(level, bins)
        loud = [replace(part, temperature=raw.temperature) for part in (audits, bins)]
        shares["raw"][seed] = false_shares(certify_night(assessor, *loud), bins)
        power.append((bins.wrong & (level <= 0.3)).sum() / bins.wrong.sum())
        number.append((level <= 0.3).sum())
        if seed < 20:
            trusted = draw_bins(camera, WORLD, 4000, random)
            trusted = replace(trusted, true_qty=trusted.expected_qty)
            taken_as_truth.append((certify_night(assessor, trusted, bins) <= 0.3).sum())
    for name, test in (("calibrated", "9 certified false share"), ("raw", "10 the same, camera not calibrated")):
        for alpha, figure in zip(ALPHAS, shares[name].mean(axis=0), strict=True):
            yield at_most(f"{test}, alpha {alpha}", figure, alpha + 0.03)
    yield at_least("11 power at alpha 0.3", np.mean(power), 0.17)
    yield inform("11 bins certified at alpha 0.3", np.mean(number))
    yield at_most("12 bins certified with records taken as truth", np.mean(taken_as_truth), 5)
    for test, world in (("9", WORLD), ("20 accuracy .42,", POOR_CAMERA), ("20 2 % wrong,", FEW_ERRORS)):
        figure = certify_what_it_learned_from(world, random)
        yield at_most(f"{test} learned from the 900 recounts that certify, alpha 0.3", figure, 0.33)


def certify_what_it_learned_from(world: World, random: np.random.Generator, nights: int = 100) -> float:
    """Mean false share at 0.3 where one set of 900 random recounts teaches the record model and certifies."""
    camera = train_camera(world, random)
    shares = []
    for _ in range(nights):
        audits, bins = draw_bins(camera, world, 900, random), draw_bins(camera, world, NUM_BINS, random)
        shares.append(false_shares(certify_night(learn(camera, audits)[1], audits, bins), bins)[1])
    return float(np.mean(shares))


def certify_night(assessor: Assessor, audits: Bins, bins: Bins) -> np.ndarray:
    return certify(wrong_probability(assessor, bins), audits, wrong_probability(assessor, audits), ALPHAS)


def false_shares(level: np.ndarray, bins: Bins) -> list[float]:
    """Share of certified bins whose record is right, at each alpha; 0 where none is certified."""
    right = same_class(bins, WORLD.top_class)
    return [float(right[level <= alpha].mean()) if (level <= alpha).any() else 0.0 for alpha in ALPHAS]


def measure_estimates() -> Iterator[Row]:
    """Tests 13 and 14: 1,000 samples of 20 finite nights, with and without the priority list."""
    random = np.random.default_rng(4)
    camera = train_camera(WORLD, random)
    _, assessor = learn(camera, draw_bins(camera, WORLD, 1000, random))
    for test, num_priority, width_bar in (("13 400 random", 0, 0.93), ("14 400 priority + 400 random", 400, 0.85)):
        figures = []
        for seed in range(1000):
            if seed % 50 == 0:
                bins = draw_bins(camera, WORLD, NUM_BINS, random)
                score, wrong = wrong_probability(assessor, bins), bins.wrong.astype(float)
                ranked, truth = np.argsort(-score), wrong.mean()
            sampled = random.choice(NUM_BINS, 400, replace=False)
            estimate = estimate_share([sample_night(score, wrong, ranked, sampled, num_priority)])
            low, high = wilson_interval(float(wrong[sampled].mean()), 400)
            figures.append(
                (
                    estimate.value - truth,
                    estimate.low <= truth <= estimate.high,
                    estimate.high - estimate.low,
                    high - low,
                )
            )
        bias, coverage, width, plain = np.mean(figures, axis=0)
        yield within(f"{test}: bias of the error rate", bias, -0.002, 0.002)
        yield within(f"{test}: coverage of the 95 % interval", coverage, 0.93, 0.97)
        yield at_most(f"{test}: width over Wilson's", width / plain, width_bar)


def sample_night(
    score: np.ndarray, wrong: np.ndarray, ranked: np.ndarray, sampled: np.ndarray, num_priority: int
) -> NightSample:
    """Random bins first, then the best of the rest, as the plan does."""
    priority = ranked[~np.isin(ranked, sampled)][:num_priority]
    rows = np.concatenate([sampled, priority])
    is_random = np.arange(len(rows)) < len(sampled)
    reach = find_reach(score[rows], ~is_random)
    return NightSample(NUM_BINS, float(score.sum()), wrong[rows], score[rows], is_random, reach)


def measure_feedback() -> Iterator[Row]:
    """Tests 15 and 16: 30 nights of 70 priority and 30 random recounts, started at 15 % wrong; five warehouses."""
    weighted, errors, unweighted = [], [], []
    for seed in range(5):
        random = np.random.default_rng(100 + seed)
        camera = train_camera(WORLD, random)
        history = History(camera, WORLD, prior_error_rate=0.15)
        careless = History(camera, WORLD, prior_error_rate=0.15, weigh=lambda chance, _: np.ones_like(chance))
        for _ in range(30):
            history.audit(random)
            careless.audit(random)
        record_model, assessor = history.learned()
        weighted.append(record_model.error_rate)
        unweighted.append(careless.learned()[0].error_rate)
        bins = draw_bins(camera, WORLD, NUM_BINS, random)
        errors.append(expected_calibration_error(wrong_probability(assessor, bins), ~same_class(bins, WORLD.top_class)))
    yield within("15 feedback: error rate learned in 30 nights", np.mean(weighted), 0.04, 0.06)
    yield at_most("15 feedback: ECE of p_record_wrong", np.mean(errors), 0.012)
    yield at_least("16 mutant without weights runs away", np.mean(unweighted), 0.3)


def measure_drift() -> Iterator[Row]:
    """Test 18: alarms in steady nights, and from the first one on in which the camera sees 1.3 times more blurred, with as
    many calibration bins as the README's bundle has."""
    random, blurred_world = np.random.default_rng(5), replace(WORLD, blur_factor=1.3)
    steady, blurred = [], []
    for _ in range(16):
        worlds = [WORLD] * 20 + [blurred_world] * 5
        alarms = outside_sets(train_camera(WORLD, random), worlds, random, num_calibration=1300)
        steady += alarms[:20]
        blurred += alarms[20:]
    yield at_most("18 drift alarms, steady nights", np.mean(steady), 0.01)
    yield at_least("18 drift alarms, camera blurred by 1.3", np.mean(blurred), 0.95)


def measure_end_to_end() -> Iterator[Row]:
    """Tests 19 and 20: 60 nights, 70 priority recounts by value and 30 random, nothing known at the start."""
    nights = [run_nights(WORLD, seed) for seed in range(4)]
    usual, settled = np.concatenate(nights), [figures[30:].mean(axis=0) for figures in nights]
    yield at_least("19 list precision", usual[:, 0].mean(), 0.53)
    yield at_least("19 value found by 0.7 % of counts", usual[:, 1].mean(), 0.27)
    # neighbouring nights share their recounts, so only the warehouses are independent
    share, error = np.mean(settled, axis=0)[2], np.std(settled, axis=0, ddof=1)[2] / np.sqrt(len(settled))
    yield at_most("19 certified false share at 0.3, 900 audits", share, 0.30 + 3 * error)
    yield within("19 error-rate interval of 30 nights: coverage", np.mean(settled, axis=0)[3], 0.88, 1.0)
    yield at_most("19 error-rate interval of 30 nights: width", np.mean(settled, axis=0)[4], 0.028)
    for name, world, floor in (("accuracy .42", POOR_CAMERA, 0.40), ("2 % wrong", FEW_ERRORS, 0.33)):
        yield at_least(f"20 {name}: list precision", run_nights(world, 0)[:, 0].mean(), floor)


def run_nights(world: World, seed: int) -> np.ndarray:
    """Per night (60, 5): list precision, share of the wrong value found, certified false share at 0.3, whether the
    interval holds the planted error rate, and its width."""
    random = np.random.default_rng(200 + seed)
    history = History(train_camera(world, random), world, by_value=True)
    figures = []
    for _ in range(60):
        bins, _, night, level, estimate = history.audit(random)
        listed = night.bins.take(np.flatnonzero(~night.random))
        found, lost = (np.abs(part.true_qty - part.expected_qty) @ part.unit_value for part in (listed, bins))
        figures.append(
            (
                listed.wrong.mean(),
                found / lost,
                false_shares(level, bins)[1],
                estimate.low <= world.error_rate <= estimate.high,
                estimate.high - estimate.low,
            )
        )
    return np.array(figures, dtype=float)
