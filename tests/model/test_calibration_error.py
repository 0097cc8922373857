import numpy as np
import pytest

from model.calibration_error import calibration_errors_by_chance, expected_calibration_error, measure_calibration


def test_the_error_is_the_mean_gap_between_claim_and_outcome() -> None:
    assert expected_calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]) == pytest.approx(0.25)
    assert expected_calibration_error([1.0, 0.0], [1, 0]) == 0
    assert np.isnan(expected_calibration_error([], []))


def test_the_floor_is_what_a_perfect_network_shows() -> None:
    random = np.random.default_rng(0)
    claimed = random.beta(3, 2, 1500)
    perfect = [expected_calibration_error(claimed, random.random(1500) < claimed) for _ in range(100)]
    by_chance = calibration_errors_by_chance(claimed)
    floor = by_chance.mean()
    assert floor == pytest.approx(np.mean(perfect), rel=0.05)
    assert 0.02 < floor < 0.04
    assert np.array_equal(by_chance, calibration_errors_by_chance(claimed))
    assert expected_calibration_error(claimed, random.random(1500) < claimed**2) > 2 * floor


def test_the_floor_is_taken_off_but_never_below_nothing_and_chance_exceeds_its_bound_once_in_forty_times() -> None:
    claimed = np.random.default_rng(0).beta(3, 2, 1500)
    found = measure_calibration(claimed, np.zeros(1500))
    assert np.mean(calibration_errors_by_chance(claimed) > found["noise_high"]) == 1 / 40
    assert found["excess"] == found["raw"] - found["noise_floor"] > 0.5
    assert measure_calibration([0.5, 0.5], [1, 0])["excess"] == 0
