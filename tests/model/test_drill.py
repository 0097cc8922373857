import numpy as np
import pytest

from model.drill import NUM_DRILLED, Drill, alter_records, choose_drilled, merge_drills, share_leaving
from model.posterior import build_assessor
from model.record_model import assume_record_model
from tests.audited_nights import learn, same_class
from tests.simulator import World, draw_bins, train_camera

HISTOGRAM = [20, 80, 140, 170, 150, 120, 320]


def keys(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def test_an_altered_record_is_never_the_right_one_and_errs_as_records_do() -> None:
    noise = build_assessor(HISTOGRAM, 0.02, assume_record_model(np.array(HISTOGRAM) + 1.0)).noise
    for quantity in range(9):
        right = min(quantity, 6)
        altered = alter_records(np.full(20_000, quantity), keys(20_000, quantity), noise)
        shares = np.bincount(altered, minlength=7) / 20_000
        expected = np.where(np.arange(7) == right, 0, noise[right])
        assert shares[right] == 0
        assert shares == pytest.approx(expected / expected.sum(), abs=0.012)
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert alter_records(np.array([6, 6]), extremes, noise).tolist() == [0, 5]
    assert alter_records(np.array([0, 0]), extremes, noise).tolist() == [1, 6]


def test_where_no_mistake_is_known_of_any_other_record_is_drawn() -> None:
    altered = alter_records(np.full(6_000, 2), keys(6_000), np.eye(7))
    assert np.bincount(altered, minlength=7) / 6_000 == pytest.approx([1 / 6, 1 / 6, 0, *[1 / 6] * 4], abs=0.03)


def test_the_same_bins_are_drilled_however_they_are_divided() -> None:
    key, score = keys(5_000), np.random.default_rng(1).random(5_000)
    ones = np.ones(NUM_DRILLED)
    whole = Drill(key[choose_drilled(key)], score[choose_drilled(key)], ones)
    parts = []
    for rows in np.array_split(np.random.default_rng(2).permutation(5_000), 7):
        chosen = rows[choose_drilled(key[rows])]
        parts.append(Drill(key[chosen], score[chosen], np.ones(len(chosen))))
    merged = merge_drills([merge_drills(parts[:3]), *parts[3:]])
    assert len(merged.key) == NUM_DRILLED
    assert np.array_equal(merged.key, whole.key) and np.array_equal(merged.score, whole.score)


def test_bins_whose_records_are_oftener_wrong_count_for_more() -> None:
    key = keys(4)
    drill = Drill(key, np.array([0.1, 0.2, 0.3, 0.9]), np.array([0.01, 0.01, 0.09, 0.09]))
    assert drill.recall(0.2) == pytest.approx(0.9)
    parts = [Drill(key[rows], drill.score[rows], drill.weight[rows]) for rows in ([0, 3], [1, 2])]
    assert merge_drills(parts).recall(0.2) == pytest.approx(0.9)


def test_recall_is_the_share_above_the_list() -> None:
    assert Drill(keys(4), np.array([0.1, 0.2, 0.3, 0.9]), np.ones(4)).recall(0.2) == 0.5
    assert np.isnan(Drill(keys(4), np.array([0.1, 0.2, 0.3, 0.9]), np.zeros(4)).recall(0.2))
    assert np.isnan(merge_drills([]).recall(0.2))


def test_records_that_rarely_leave_their_class_count_as_rarely() -> None:
    noise = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.0, 0.01, 0.99]])
    assert share_leaving([0, 1, 2, 40], noise) == pytest.approx([0.1, 0.2, 0.01, 0.01])
    assert share_leaving([0, 2], np.eye(3)).tolist() == [1, 1]


def test_the_drill_tells_how_many_wrong_records_a_list_holds() -> None:
    """The note: recall .25 by the drill, .27 in truth. Here over eight nights of 10,000 bins and lists of 200."""
    random, world = np.random.default_rng(3), World(recorded_to_true=False)
    camera = train_camera(world, random)
    _, assessor = learn(camera, draw_bins(camera, world, 4000, random))
    drilled, true = [], []
    for night in range(8):
        bins = draw_bins(camera, world, 10_000, random)
        score = assessor.assess(bins.probabilities, bins.expected_qty)["p_record_wrong"]
        lowest = np.sort(score)[-200]
        key = keys(10_000, night)
        rows = choose_drilled(key)
        altered = alter_records(bins.expected_qty[rows], key[rows], assessor.noise)
        of_altered = assessor.assess(bins.probabilities[rows], altered)["p_record_wrong"]
        found = Drill(key[rows], of_altered, np.ones(len(rows)))
        drilled.append(found.recall(lowest))
        true.append((score[~same_class(bins, world.top_class)] > lowest).mean())
    assert np.mean(drilled) == pytest.approx(np.mean(true), abs=0.04)
