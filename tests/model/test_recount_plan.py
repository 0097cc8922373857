import numpy as np
import pytest

from model.recount_plan import (
    RecountPlan,
    best_candidates,
    count_random,
    draw_keys,
    find_reach,
    merge_candidates,
    plan_recounts,
)

IDS = [f"bin-{number}" for number in range(2000)]


def plan_over(shards: list[np.ndarray], scores: np.ndarray, budget: int = 100, share: float = 0.3) -> RecountPlan:
    random, ranked = [], []
    for rows in shards:
        ids = [IDS[row] for row in rows]
        keys = draw_keys(ids, 7, "2026-11-22")
        random.append(best_candidates(ids, keys, np.zeros(len(rows)), budget))
        ranked.append(best_candidates(ids, keys, scores[rows], budget))
    return plan_recounts(
        merge_candidates(random, budget),
        merge_candidates(ranked, budget),
        num_assessed=sum(map(len, shards)),
        budget=budget,
        random_share=share,
    )


def scores_with_ties() -> np.ndarray:
    return np.round(np.random.default_rng(0).beta(1, 9, 2000), 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_the_same_for_any_order_and_any_shards(seed: int) -> None:
    scores, random = scores_with_ties(), np.random.default_rng(seed)
    whole = plan_over([np.arange(2000)], scores)
    shuffled = random.permutation(2000)
    cut = plan_over(np.array_split(shuffled, 13), scores)
    for name in ("bin_id", "recount", "rank", "inclusion_probability"):
        assert getattr(cut, name).tolist() == getattr(whole, name).tolist(), name


def test_bins_of_one_score_and_one_key_are_in_the_order_of_their_ids() -> None:
    keys = np.array([7, 5], dtype=np.uint64)
    parts = [best_candidates(ids, keys, [0.5, 0.1], 2) for ids in (["c", "d"], ["b", "e"], ["a", "f"])]
    assert merge_candidates(parts, 5).bin_id.tolist() == ["a", "b", "c", "d", "e"]


def test_random_bins_come_first_and_priority_is_the_best_of_the_rest() -> None:
    scores = np.random.default_rng(0).random(2000)
    plan = plan_over([np.arange(2000)], scores)
    assert plan.recount.tolist() == ["random"] * 30 + ["priority"] * 70
    assert len(set(plan.bin_id)) == 100
    drawn = set(plan.bin_id[:30])
    best = [IDS[row] for row in np.argsort(-scores) if IDS[row] not in drawn][:70]
    assert plan.bin_id[30:].tolist() == best
    assert plan.rank.tolist() == [0] * 30 + list(range(1, 71))
    assert np.allclose(plan.inclusion_probability, [30 / 2000] * 30 + [1] * 70)


def test_every_bin_is_drawn_as_often_as_its_inclusion_probability_says() -> None:
    drawn = np.zeros(200)
    for night in range(1000):
        keys = draw_keys(IDS[:200], 1, f"night {night}")
        sample = best_candidates(IDS[:200], keys, np.zeros(200), 20)
        drawn[[int(name.removeprefix("bin-")) for name in sample.bin_id]] += 1
    spread = np.square(drawn - 100).mean() / (1000 * 0.1 * 0.9)
    assert 0.75 < spread < 1.25


def test_keys_are_stable_across_machines_and_differ_by_seed_and_night() -> None:
    assert draw_keys(["A-01", "Größe"], 1, "2026-11-22").tolist() == [KEY_ASCII, KEY_UNICODE]
    keys = {draw_keys(["A-01"], seed, night)[0] for seed in (1, 2) for night in ("2026-11-22", "2026-11-23")}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("budget", "share", "assessed", "expected"),
    [
        (100, 0.3, 5000, 30),
        (100, 0.29, 5000, 29),
        (20, 0.3, 5000, 10),
        (5, 0.3, 5000, 5),
        (100, 0.0, 5000, 0),
        (0, 0.3, 5000, 0),
        (100, 0.3, 8, 8),
    ],
)
def test_at_least_ten_are_random_unless_none_is_wanted(budget: int, share: float, assessed: int, expected: int) -> None:
    assert count_random(budget, share, assessed) == expected


def test_a_budget_larger_than_the_warehouse_counts_every_bin_once() -> None:
    plan = plan_over([np.arange(40)], np.random.default_rng(0).random(2000), budget=500)
    assert sorted(plan.bin_id) == sorted(IDS[:40])
    assert len(plan_over([np.arange(40)], scores_with_ties(), budget=0)) == 0


def test_bins_find_their_row_in_the_plan() -> None:
    plan = plan_over([np.arange(2000)], scores_with_ties())
    place = plan.locate(IDS)
    assert (place >= 0).sum() == 100
    for row in np.flatnonzero(place >= 0):
        assert plan.bin_id[place[row]] == IDS[row]
    assert plan_over([np.arange(40)], scores_with_ties(), budget=0).locate(IDS[:2]).tolist() == [-1, -1]


def test_reach_is_the_list_and_the_random_bins_that_score_higher() -> None:
    assert find_reach([0.9, 0.5, 0.6, 0.1], [True, False, False, False]).tolist() == [True, False, False, False]
    assert find_reach([0.5, 0.5, 0.6, 0.1], [True, False, False, False]).tolist() == [True, False, True, False]
    assert not find_reach([0.5, 0.6], [False, False]).any()


def test_a_bin_without_a_score_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match="cannot be ranked"):
        best_candidates(IDS[:2], draw_keys(IDS[:2], 0, "n"), [0.1, np.nan], 1)


KEY_ASCII = 8981059830130302717
KEY_UNICODE = 1157003923971119573
