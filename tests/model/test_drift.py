import numpy as np
import pytest

from model.drift import BASELINE_NIGHTS, Baseline, has_drifted, measure_baseline


@pytest.mark.parametrize(("size", "num_calibration"), [(1_000, 2_000), (4_000, 800), (20_000, 20_000)])
def test_the_alarm_knows_both_samples(size: int, num_calibration: int) -> None:
    error = np.sqrt(0.09 * (1 / size + 1 / num_calibration))  # of four such, and more than a point, it is one
    rises = [0.1 + max(4 * error, 0.01) * factor for factor in (0.95, 1.05)]
    assert [has_drifted(round(size * share), size, 0.1, num_calibration) for share in rises] == [False, True]


def test_an_alarm_needs_a_clear_and_a_large_rise() -> None:
    assert has_drifted(15_000, 100_000, 0.10, 5000)
    assert not has_drifted(109_000, 1_000_000, 0.10, 1_000_000)  # sure, but under one point
    assert not has_drifted(15, 100, 0.10, 5000)  # large, but chance
    assert not has_drifted(5_000, 100_000, 0.10, 5000)  # fewer than before


def test_a_small_calibration_sample_is_not_taken_for_the_truth() -> None:
    assert has_drifted(1_200, 10_000, 0.10, 100_000)
    assert not has_drifted(1_200, 10_000, 0.10, 500)


def test_nothing_assessed_raises_no_alarm() -> None:
    assert has_drifted(0, 0, 0.1, 500) is False
    assert not has_drifted(3, 1000, 0.0, 500)  # a share of 0 is one not seen
    assert has_drifted(30, 1000, 0.0, 500)
    with pytest.raises(ValueError, match="calibration share"):
        has_drifted(1, 10, 0.1, 0)


def test_earlier_nights_show_what_few_calibration_bins_hide() -> None:
    steady = measure_baseline([0.101, 0.099, 0.100, 0.102, 0.100, 0.099, 0.102], [10_000] * 7)
    assert steady is not None and (steady.num_nights, steady.num_assessed) == (7, 70_000)
    assert not has_drifted(1_250, 10_000, 0.10, 1_300)
    assert has_drifted(1_250, 10_000, 0.10, 1_300, steady)
    sure = Baseline(0.1, 0.0, 7_000_000, 7.0)
    assert sure.z(0.109, 1_000_000) > 4 and not has_drifted(109_000, 1_000_000, 0.10, 1_300, sure)  # under one point
    assert not has_drifted(130, 1_000, 0.10, 1_300, steady)  # large, but chance
    assert not has_drifted(500, 10_000, 0.10, 1_300, steady)  # fewer than before
    expected = (0.13 - 0.703 / 7) / np.sqrt(0.0904 * (1 / 10_000 + 1 / 70_000))
    assert steady.z(0.13, 10_000) == pytest.approx(expected, rel=1e-2)
    # a night of ten bins says nothing, and takes nothing away from what the others say
    pilot = measure_baseline([0.101, 0.3, 0.100, 0.102, 0.100, 0.099, 0.102], [10_000, 10, *[10_000] * 5])
    assert pilot is not None and has_drifted(1_600, 10_000, 0.10, 1_300, pilot)


@pytest.mark.parametrize(
    ("sizes", "restless"),
    [
        ([20] * 6 + [10_000] * 7, 0.0),
        ([50] * 5 + [10_000] * 7, 0.01),
        ([20] * 6 + [10_000] * 2, 0.01),
        ([100_000] + [10_000] * 12, 0.0),
        ([100_000] + [10_000] * 12, 0.01),
        (([10_000] + [1_000] * 6) * 3, 0.01),  # small nights' own chance hides much of what nights differ by
    ],
    ids=str,
)
def test_nights_of_other_sizes_hide_no_drift_and_raise_no_alarm(sizes: list[int], restless: float) -> None:
    random = np.random.default_rng(0)
    alarms = {0.0: 0, 0.03: 0}
    for _ in range(500):
        shares = random.normal(0.1, restless, len(sizes) + 1).clip(0.001, 0.999)
        baseline = measure_baseline(random.binomial(sizes, shares[:-1]) / sizes, sizes)
        assert baseline is not None
        for drift in alarms:
            outside = random.binomial(10_000, shares[-1] + drift)
            alarms[drift] += has_drifted(outside, 10_000, 0.10, 1_300, baseline)
    assert alarms[0.0] <= (15 if sizes[1] == 1_000 else 5)
    assert restless or alarms[0.03] >= 490


def test_what_nights_differ_by_beyond_chance_is_less_where_bins_are_alike() -> None:
    shares, sizes = [0.09, 0.11, 0.10, 0.105, 0.095, 0.10, 0.10], [10_000] * 7
    by_chance, alike = (measure_baseline(shares, sizes, effect) for effect in (1.0, 2.0))
    assert by_chance is not None and alike is not None
    spread, chance = float(np.var(shares, ddof=1)), 0.09 / 10_000
    assert by_chance.variance == pytest.approx(spread - chance)
    assert alike.variance == pytest.approx(spread - 2 * chance)


def test_bins_that_are_alike_tell_less() -> None:
    steady = measure_baseline([0.101, 0.099, 0.100, 0.102, 0.100, 0.099, 0.102], [10_000] * 7)
    assert has_drifted(1_170, 10_000, 0.10, 1_300, steady)
    assert not has_drifted(1_170, 10_000, 0.10, 1_300, steady, design_effect=2.9)
    assert has_drifted(1_400, 10_000, 0.10, 1_300, steady, design_effect=2.9)
    assert not has_drifted(1_500, 10_000, 0.10, 100_000, design_effect=20)
    assert has_drifted(1_500, 10_000, 0.10, 100_000, design_effect=10)


def test_nights_that_differ_by_more_than_chance_are_no_alarm_by_themselves() -> None:
    restless = measure_baseline([0.08, 0.12, 0.09, 0.11, 0.10, 0.08, 0.12], [1_000_000] * 7)
    assert restless is not None
    variance = 0.09 / 10_000 + 0.0004 + 0.09 / 70_000 + 0.0004 / 7  # of tonight's share and of the baseline's
    assert Baseline(0.1, 0.0004, 70_000, 7.0).z(0.2, 10_000) == pytest.approx(0.1 / np.sqrt(variance))
    assert not has_drifted(125_000, 1_000_000, 0.10, 1_300, restless)
    assert has_drifted(200_000, 1_000_000, 0.10, 1_300, restless)


def test_a_baseline_is_of_the_first_nights_and_of_several() -> None:
    assert measure_baseline([0.1] * (BASELINE_NIGHTS - 1), [100] * (BASELINE_NIGHTS - 1)) is None
    first = measure_baseline([0.1] * BASELINE_NIGHTS + [0.5] * 20, [100] * (BASELINE_NIGHTS + 20))
    assert first == Baseline(pytest.approx(0.1), pytest.approx(0.0), 100 * BASELINE_NIGHTS, BASELINE_NIGHTS)
    never = measure_baseline([0.0] * BASELINE_NIGHTS, [100] * BASELINE_NIGHTS)
    assert never is not None and np.isfinite(never.z(0.02, 100))


def test_restless_nights_of_unequal_size_raise_few_false_alarms() -> None:
    """Nights of the whole warehouse among as many of a hundredth; nothing drifts, but nights differ by two points."""
    random = np.random.default_rng(0)
    sizes = np.array([100_000, 1_000] * 6)
    alarms = 0
    for _ in range(1_000):
        *before, tonight = random.normal(0.1, 0.02, 13).clip(0.001, 0.999)
        baseline = measure_baseline(random.binomial(sizes, before) / sizes, sizes)
        assert baseline is not None
        alarms += baseline.z(tonight, 100_000) > 4
    assert alarms <= 10
    assert measure_baseline([0.1] * 7, [100, 0, 0, 0, 0, 0, 0]) is None
