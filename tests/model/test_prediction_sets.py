import numpy as np

from model.calibration import set_threshold
from model.drift import has_drifted
from model.prediction_sets import SET_COVERAGE, build_prediction_sets, lac_quantile
from tests.simulator import World, draw_bins, train_camera


def test_sets_cover_ninety_percent_of_fresh_records() -> None:
    random, world = np.random.default_rng(0), World()
    camera = train_camera(world, random)
    calibration, fresh = draw_bins(camera, world, 5000, random), draw_bins(camera, world, 20_000, random)
    scores = 1 - calibration.probabilities[np.arange(5000), calibration.expected_qty]
    threshold = lac_quantile(scores)
    sets = build_prediction_sets(fresh.probabilities, fresh.expected_qty, threshold)
    assert 0.885 < sets.has_record.mean() < 0.915
    assert sets.size.mean() < 4


def test_the_threshold_is_the_conformal_order_statistic() -> None:
    assert SET_COVERAGE == 0.9
    scores = np.arange(19) / 20
    assert lac_quantile(scores[::-1]) == scores[17]  # the 18th of 19
    assert lac_quantile(scores[:9]) == scores[8]  # the last of 9
    assert lac_quantile(scores[:8]) == 1.0


def test_low_high_and_size_describe_sets_with_gaps() -> None:
    sets = build_prediction_sets([[0.4, 0.05, 0.4, 0.15], [0.05, 0.05, 0.05, 0.85]], [1, 99], 0.7)
    assert sets.low.tolist() == [0, 3]
    assert sets.high.tolist() == [2, 3]
    assert sets.size.tolist() == [2, 1]
    assert sets.has_record.tolist() == [False, True]


def test_a_set_never_is_empty() -> None:
    sets = build_prediction_sets([[0.3, 0.4, 0.3]], [0], 0.1)
    assert (sets.low[0], sets.high[0], sets.size[0]) == (1, 1, 1)


def test_the_share_outside_means_the_same_at_night_as_in_calibration_for_an_accurate_camera() -> None:
    """Right for 95 % of its bins: half of those below the threshold still have the record as the most probable class."""
    random = np.random.default_rng(1)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        sure = np.maximum(random.beta(20, 1, size), 1 / 7)
        probabilities = np.repeat((1 - sure)[:, None] / 6, 7, axis=1)
        probabilities[np.arange(size), random.integers(0, 7, size)] = sure
        return probabilities, (probabilities.cumsum(axis=1) > random.random((size, 1))).argmax(axis=1)

    probabilities, record = draw(5000)
    threshold, calibrated = set_threshold(probabilities, record, np.arange(5000) % 5)
    tonight, record = draw(10_000)
    assert (tonight.argmax(axis=1) == record).mean() > 0.94
    outside = ~build_prediction_sets(tonight, record, threshold).has_record
    assert abs(outside.mean() - calibrated.mean()) < 0.015
    worse = np.where(random.random(10_000) < 0.05, (record + random.integers(1, 7, 10_000)) % 7, record)
    outside = ~build_prediction_sets(tonight, worse, threshold).has_record
    assert has_drifted(int(outside.sum()), 10_000, float(calibrated.mean()), 5000)


def test_the_class_that_keeps_a_set_from_being_empty_does_not_count_as_the_record() -> None:
    sets = build_prediction_sets([[0.3, 0.4, 0.3]], [1], 0.1)
    assert (sets.low[0], sets.high[0], sets.size[0], sets.has_record[0]) == (1, 1, 1, False)


def test_a_fold_that_is_nearly_all_bins_is_no_drift_every_night() -> None:
    """Of the 8 others none bounds a 90 % set."""
    random, world = np.random.default_rng(0), World()
    bins = draw_bins(train_camera(world, random), world, 108, random)
    threshold, outside = set_threshold(bins.probabilities, bins.expected_qty, np.repeat([0, 1], [100, 8]))
    assert threshold < 1
    assert 0.05 < outside.mean() < 0.15
