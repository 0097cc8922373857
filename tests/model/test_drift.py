import numpy as np
import pytest

from model.drift import check_drift


def test_z_knows_both_samples() -> None:
    check = check_drift(130, 1000, 0.1, 2000)
    assert check.record_outside_set_share == 0.13
    assert check.z == pytest.approx(0.03 / np.sqrt(0.09 * (1 / 1000 + 1 / 2000)))
    assert not check.alarm


def test_an_alarm_needs_a_clear_and_a_large_rise() -> None:
    assert check_drift(15_000, 100_000, 0.10, 5000).alarm
    assert not check_drift(109_000, 1_000_000, 0.10, 1_000_000).alarm  # sure, but under one point
    assert not check_drift(15, 100, 0.10, 5000).alarm  # large, but chance
    assert not check_drift(5_000, 100_000, 0.10, 5000).alarm  # fewer than before


def test_a_small_calibration_sample_is_not_taken_for_the_truth() -> None:
    assert check_drift(1_200, 10_000, 0.10, 100_000).alarm
    assert not check_drift(1_200, 10_000, 0.10, 500).alarm


def test_nothing_assessed_raises_no_alarm() -> None:
    check = check_drift(0, 0, 0.1, 500)
    assert np.isnan(check.z)
    assert not check.alarm
    assert np.isfinite(check_drift(3, 10, 0.0, 500).z)
    with pytest.raises(ValueError, match="calibration share"):
        check_drift(1, 10, 0.1, 0)
