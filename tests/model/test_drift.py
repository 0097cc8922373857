import numpy as np
import pytest

from model.drift import BASELINE_NIGHTS, Baseline, check_drift, measure_baseline


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


def test_earlier_nights_show_what_few_calibration_bins_hide() -> None:
    steady = measure_baseline([0.101, 0.099, 0.100, 0.102, 0.100, 0.099, 0.102], [10_000] * 7)
    assert steady is not None and (steady.num_nights, steady.num_assessed) == (7, 70_000)
    assert not check_drift(1_250, 10_000, 0.10, 1_300).alarm
    assert check_drift(1_250, 10_000, 0.10, 1_300, steady).alarm
    assert not check_drift(1_090, 10_000, 0.10, 1_300, steady).alarm  # under one point
    assert not check_drift(130, 1_000, 0.10, 1_300, steady).alarm  # large, but chance
    assert not check_drift(500, 10_000, 0.10, 1_300, steady).alarm  # fewer than before
    expected = (0.13 - 0.703 / 7) / np.sqrt(0.0904 * (1 / 10_000 + 1 / 70_000))
    assert steady.z(0.13, 10_000) == pytest.approx(expected, rel=1e-2)
    # a night of ten bins says nothing, and takes nothing away from what the others say
    pilot = measure_baseline([0.101, 0.3, 0.100, 0.102, 0.100, 0.099, 0.102], [10_000, 10, *[10_000] * 5])
    assert pilot is not None and check_drift(1_600, 10_000, 0.10, 1_300, pilot).alarm


@pytest.mark.parametrize(("sizes", "rise"), [([20] * 6 + [10_000], 0.04), ([50] * 5 + [10_000] * 2, 0.03)], ids=str)
def test_a_pilot_s_small_nights_hide_no_drift(sizes: list[int], rise: float) -> None:
    random = np.random.default_rng(0)
    alarms = {0.0: 0, rise: 0}
    for _ in range(200):
        baseline = measure_baseline(random.binomial(sizes, 0.1) / sizes, sizes)
        for drift in alarms:
            alarms[drift] += check_drift(random.binomial(10_000, 0.1 + drift), 10_000, 0.10, 1_300, baseline).alarm
    assert alarms[0.0] <= 1 and alarms[rise] >= 160


def test_bins_that_are_alike_tell_less() -> None:
    steady = measure_baseline([0.101, 0.099, 0.100, 0.102, 0.100, 0.099, 0.102], [10_000] * 7)
    assert check_drift(1_170, 10_000, 0.10, 1_300, steady).alarm
    assert not check_drift(1_170, 10_000, 0.10, 1_300, steady, design_effect=2.9).alarm
    assert check_drift(1_400, 10_000, 0.10, 1_300, steady, design_effect=2.9).alarm
    assert not check_drift(1_500, 10_000, 0.10, 100_000, design_effect=20).alarm
    assert check_drift(1_500, 10_000, 0.10, 100_000, design_effect=10).alarm


def test_nights_that_differ_by_more_than_chance_are_no_alarm_by_themselves() -> None:
    restless = measure_baseline([0.08, 0.12, 0.09, 0.11, 0.10, 0.08, 0.12], [1_000_000] * 7)
    assert restless is not None
    assert not check_drift(125_000, 1_000_000, 0.10, 1_300, restless).alarm
    assert check_drift(200_000, 1_000_000, 0.10, 1_300, restless).alarm


def test_a_baseline_is_of_the_first_nights_and_of_several() -> None:
    assert measure_baseline([0.1] * (BASELINE_NIGHTS - 1), [100] * (BASELINE_NIGHTS - 1)) is None
    first = measure_baseline([0.1] * BASELINE_NIGHTS + [0.5] * 20, [100] * (BASELINE_NIGHTS + 20))
    assert first == Baseline(pytest.approx(0.1), pytest.approx(0.0), 100 * BASELINE_NIGHTS, BASELINE_NIGHTS)
    never = measure_baseline([0.0] * BASELINE_NIGHTS, [100] * BASELINE_NIGHTS)
    assert never is not None and np.isfinite(never.z(0.02, 100))


def test_restless_nights_of_unequal_size_raise_few_false_alarms() -> None:
    """One night of the whole warehouse among six of a hundredth; nothing drifts, but nights differ by two points."""
    random = np.random.default_rng(0)
    sizes = np.array([100_000, *[1_000] * 6])
    alarms = 0
    for _ in range(1_000):
        *before, tonight = random.normal(0.1, 0.02, 8).clip(0.001, 0.999)
        baseline = measure_baseline(random.binomial(sizes, before) / sizes, sizes)
        assert baseline is not None
        alarms += baseline.z(tonight, 100_000) > 4
    assert alarms <= 10
    assert measure_baseline([0.1] * 7, [100, 0, 0, 0, 0, 0, 0]) is None
