"""The second pass over a night with counts to learn from: certificates, the drift alarm, ranks, photos that tell nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control

from jobs.config.audit import AuditConfig
from jobs.counting.belief import Belief
from jobs.counting.estimates import estimate_window
from jobs.counting.history import History
from jobs.counting.last_counts import RIGHT, WAITING, WRONG
from jobs.counting.records import lines_of
from jobs.platform import storage
from jobs.platform.parquet import read_table, write_table
from jobs.platform.reports import unpack
from jobs.stages import conclude
from jobs.stages.conclude import (
    Decisions,
    Reduction,
    Rules,
    WrittenParts,
    _conclude,
    _drill,
    decide_night,
    write_parts,
)
from jobs.stages.images import MIN_CONTRAST
from jobs.stages.reconcile import Reconciler
from jobs.stages.staging import STAGED_SCHEMA
from model.certificates import ReferenceScores
from model.drift import Baseline
from model.drill import Drill, share_leaving
from model.posterior import build_assessor
from model.record_model import assume_record_model
from model.recount_plan import Candidates, RecountPlan, draw_keys, merge_candidates
from schemas.bundle import BundleInfo
from schemas.recount import PLANNED_SCHEMA
from tests.dump import NIGHT, manifest_table
from tests.planned_night import TOP_CLASS, bundle_info

NUM_BINS, NUM_WRONG, BUDGET, NUM_RANDOM = 400, 60, 40, 12
COUNTED, BLANK = [f"{number:05d}" for number in range(20)], "00020"
"""Among those whose record is wrong: found so last night, and one whose photo tells nothing."""
RECORDED = 3
"""By the records of the counted bins."""
RIGHT_SCORES = np.sort(np.random.default_rng(5).beta(1, 6, 290).astype(np.float32))
REFERENCE = ReferenceScores(RIGHT_SCORES, num_counted=299)
USUAL, SHARPER = bundle_info(), bundle_info().model_copy(update={"record_outside_set_share": 0.01})
QUIET_NIGHTS = Baseline(share=0.01, variance=0.0, num_assessed=7 * NUM_BINS, num_nights=7.0)


def stage_night(folder: Path) -> list[list[str]]:
    """Two groups of one staged file each."""
    random = np.random.default_rng(3)
    shown = random.integers(1, TOP_CLASS, NUM_BINS)
    shown[: len(COUNTED)] = RECORDED + 1
    answers = random.dirichlet(np.full(TOP_CLASS + 1, 0.3), NUM_BINS) * random.uniform(0.02, 0.4, (NUM_BINS, 1))
    answers[: len(COUNTED)] = 0  # the most doubtful of all, were nothing known of them
    answers[np.arange(NUM_BINS), shown] += 1 - answers.sum(axis=1)
    expected = np.where(np.arange(NUM_BINS) < NUM_WRONG, shown - 1, shown)
    value = random.uniform(1, 9, NUM_BINS).tolist()
    columns = manifest_table("/photos", expected.tolist(), unit_value=value).to_pydict() | {
        "status": ["scored"] * NUM_BINS,
        "error": [None] * NUM_BINS,
        "training_photo": [False] * NUM_BINS,
        "contrast": [*[MIN_CONTRAST] * 20, MIN_CONTRAST - 0.1, *[50.0] * (NUM_BINS - 21)],
        "probabilities": answers.tolist(),
    }
    rows = pa.Table.from_pydict(columns, schema=STAGED_SCHEMA)
    groups = [[f"{folder}/staged/{name}.parquet"] for name in "ab"]
    for (uri,), part in zip(groups, (rows.slice(0, 150), rows.slice(150)), strict=True):
        write_table(uri, part)
    return groups


def reconciler(then_found: list[tuple[int, int, str | None]]) -> Reconciler:
    """`then_found`: of the first bins what their records said last night, what was found and what that means."""
    last = {"last_counted_at": pd.Timestamp("2026-11-21", tz="UTC"), "last_counted_qty": 6, "num_counted": 1}
    last |= {"night": "2026-11-21", "lines": None}
    counts = [last | dict(zip(("expected_qty", "found_qty", "finding"), case, strict=True)) for case in then_found]
    return Reconciler(
        assessor=build_assessor([100] * (TOP_CLASS + 1), 0.02, assume_record_model([1.0] * (TOP_CLASS + 1))),
        prediction_set_threshold=USUAL.prediction_set_threshold,
        audit_date=date.fromisoformat(NIGHT),
        max_photo_age_hours=None,
        count_valid_nights=14,
        last_counts=pd.DataFrame(counts, index=COUNTED[: len(counts)]),
    )


def rules_of(
    made: Reconciler,
    reference: ReferenceScores | None,
    bundle: BundleInfo = USUAL,
    baseline: Baseline | None = None,
    **settings: Any,
) -> Rules:
    config = AuditConfig(
        **{"manifest_uri": "m", "bundle_uri": "b", "output_uri": "o", "recount_budget": BUDGET, "alpha": (0.3,)}
        | settings
    )
    model = assume_record_model([1.0] * (TOP_CLASS + 1))
    belief = Belief(
        "assumed",
        model,
        0.02,
        bundle.bundle_id,
        "c",
        reference,
        estimate_window(History((), (), pd.DataFrame())),
        baseline,
    )
    return Rules(made, "r", config, bundle, belief)


def test_a_bin_is_known_while_its_record_is_unchanged_or_once_it_says_what_was_found(tmp_path: Path) -> None:
    cases: dict[tuple[int, int, str | None], str | None] = {
        (RECORDED, RECORDED, RIGHT): "counted",
        (RECORDED, 6, WRONG): "counted_wrong",
        (RECORDED, 6, WAITING): "second_count",
        (RECORDED, 6, None): None,
        (5, RECORDED, WRONG): "counted",
        (5, RECORDED, None): "counted",
        (5, 6, WRONG): None,
        (5, 5, RIGHT): None,
    }
    ((uri,), _) = stage_night(tmp_path)
    rows = reconciler(list(cases)).reconcile(read_table(uri))
    assert rows["reason"].to_pylist()[: len(cases)] == list(cases.values())
    assert rows["reason"].null_count == rows.num_rows - 5 - 1, "the other one is a photo that tells nothing"


def test_a_bin_that_holds_as_many_of_another_sku_is_not_known(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    staged = read_table(uri)
    skus, skus_type = staged["skus"].to_pylist(), staged["skus"].type
    made = reconciler([(RECORDED, 6, WRONG)] * 3)
    other = [[{**line, "sku": "another"} for line in skus[1]], [{**line, "name": "renamed"} for line in skus[2]]]
    lines = [lines_of(each) for each in (skus[0], *other)]
    known = replace(made, last_counts=made.last_counts.assign(lines=lines))
    assert known.reconcile(staged)["reason"].to_pylist()[:3] == ["counted_wrong", None, "counted_wrong"]
    # a record that names no lines tonight tells by its total alone
    place = staged.schema.get_field_index("skus")
    totals = staged.set_column(place, STAGED_SCHEMA.field("skus"), pa.array([[]] * staged.num_rows, skus_type))
    assert known.reconcile(totals)["reason"].to_pylist()[:3] == ["counted_wrong"] * 3


def test_a_bin_that_was_found_wrong_and_holds_another_sku_since_was_not_corrected(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    staged = read_table(uri)
    made = reconciler([(5, RECORDED, WRONG)] * 4)
    own = [line["sku"] for row in staged["skus"].to_pylist()[:4] for line in row]
    then = [{"another": 5}, {own[1]: 5}, {own[2]: 3, "missing": 2}, {}]
    lines = [lines_of([{"sku": sku, "quantity": number} for sku, number in record.items()]) for record in then]
    known = replace(made, last_counts=made.last_counts.assign(lines=lines))
    assert known.reconcile(staged)["reason"].to_pylist()[:4] == [None, "counted", "counted", "counted"]


@pytest.mark.parametrize("case", [(RECORDED, RECORDED, RIGHT), (5, RECORDED, WRONG)], ids=["right", "corrected"])
def test_a_bin_is_known_for_so_many_nights_from_its_count_and_not_from_the_night_that_asked(
    tmp_path: Path, case: tuple[int, int, str]
) -> None:
    ((uri,), _) = stage_night(tmp_path)
    made = reconciler([case])
    reasons = {}
    for counted, valid in (("2026-11-09", 14), ("2026-11-08", 14), ("2026-11-22", 1), ("2026-11-22", 0)):
        late = made.last_counts.assign(night="2026-10-30", last_counted_at=pd.Timestamp(f"{counted} 23:30", tz="UTC"))
        rows = replace(made, last_counts=late, count_valid_nights=valid).reconcile(read_table(uri))
        reasons[counted, valid] = rows["reason"][rows["bin_id"].to_pylist().index(COUNTED[0])].as_py()
    assert list(reasons.values()) == ["counted", None, "counted", None]


@pytest.mark.parametrize(("valid", "reason"), [(1, "counted"), (0, None)])
def test_a_bin_that_is_counted_on_the_date_of_its_night_is_known_from_that_one(
    tmp_path: Path, valid: int, reason: str | None
) -> None:
    ((uri,), _) = stage_night(tmp_path)
    made = replace(reconciler([(RECORDED, RECORDED, RIGHT)]), count_valid_nights=valid)
    assert made.reconcile(read_table(uri))["reason"][0].as_py() == reason


def test_a_counted_bin_whose_photo_tells_nothing_is_not_assessed_for_that(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    rows, made = read_table(uri), reconciler([(RECORDED, RECORDED, RIGHT)])
    row = rows["bin_id"].to_pylist().index(BLANK)
    qty = rows["expected_qty"][row].as_py()
    last = made.last_counts.assign(expected_qty=qty, found_qty=qty).set_axis([BLANK])
    assert replace(made, last_counts=last).reconcile(rows)["reason"][row].as_py() == "poor_photo"


def test_a_bin_without_a_value_is_doubted_and_nothing_is_said_of_its_value_at_risk(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    staged = read_table(uri)
    values = pa.array([None, *[1.0] * (staged.num_rows - 1)])
    staged = staged.set_column(staged.schema.get_field_index("unit_value"), "unit_value", values)
    first = reconciler([(RECORDED, RECORDED, RIGHT)]).reconcile(staged).to_pylist()[0]
    assert first["p_record_wrong"] is not None and first["value_at_risk"] is None


def stage_zones(folder: Path) -> tuple[pa.Table, Reconciler, Reconciler]:
    """Staged rows of which every other one lies in a bad zone; a reconciler that knows of no zones, and one that does."""
    ((uri,), _) = stage_night(folder)
    staged, plain = read_table(uri), reconciler([(RECORDED, RECORDED, RIGHT)])
    zones = pa.array(["bad", None] * (staged.num_rows // 2), pa.string())
    staged = staged.set_column(staged.schema.get_field_index("zone"), STAGED_SCHEMA.field("zone"), zones)
    model = replace(assume_record_model([1.0] * (TOP_CLASS + 1)), zone_error_rates={"bad": 0.4})
    return staged, plain, replace(plain, assessor=build_assessor([100] * (TOP_CLASS + 1), 0.02, model))


def test_a_bin_is_doubted_by_its_zone_s_rate(tmp_path: Path) -> None:
    staged, plain, zoned = stage_zones(tmp_path)
    more, common = (each.reconcile(staged)["p_record_wrong"].to_numpy(zero_copy_only=False) for each in (zoned, plain))
    assert np.mean(more[::2] > common[::2]) > 0.5
    assert np.array_equal(more[1::2], common[1::2], equal_nan=True)


def test_the_verdict_follows_list_doubt_and_counts_and_the_drill_alters_records(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    made = reconciler([(RECORDED, RECORDED, RIGHT)] * len(COUNTED))
    rows = made.reconcile(read_table(uri))
    listed = rows["bin_id"].to_pylist()[140:143]
    recount = np.array(["priority"] * 3, dtype=object)
    plan = RecountPlan(np.array(listed, dtype=object), recount, np.arange(1, 4, dtype=np.int32), np.ones(3))
    rules = rules_of(made, None)
    decisions = Decisions(NUM_BINS, plan, {}, False, None)
    found = _conclude(rows, rules, decisions).to_pandas().set_index("bin_id")
    doubted = found["p_record_wrong"] >= 0.5
    assert doubted[COUNTED].all() and not doubted[listed].any()
    expected = pd.Series(np.where(doubted | found.index.isin(listed), "suspect", "ok"), found.index)
    expected[COUNTED], expected[BLANK] = "ok", "not_assessed"
    assert found["verdict"].to_dict() == expected.to_dict()

    right = rows.filter(pa.array(np.arange(rows.num_rows) >= NUM_WRONG))
    own = right["p_record_wrong"].to_numpy()
    drill = _drill(right, "p_record_wrong", rules)
    assert np.median(drill.score) > 3 * np.median(own)
    assert np.array_equal(drill.score, drill.score.astype(np.float32)), "as the list's lowest is stored"
    leaving = share_leaving(np.arange(7), rules.reconciler.assessor.noise)
    assert np.isin(drill.weight, 0.05 * leaving).all()


@pytest.mark.parametrize(("budget", "recall"), [(3, 0.25), (4, 1.0)])
def test_the_drill_finds_all_only_where_all_that_may_stand_on_the_list_do(budget: int, recall: float) -> None:
    """Three bins are listed; with a budget for four there was no other."""
    names, key = np.array(["a", "b", "c"], dtype=object), np.arange(3, dtype=np.uint64)
    plan = RecountPlan(names, np.array(["priority"] * 3, dtype=object), np.arange(1, 4, dtype=np.int32), np.ones(3))
    drill = Drill(np.arange(4, dtype=np.uint64), np.array([0.1, 0.2, 0.3, 0.8]), np.ones(4))
    merged = Reduction(ranked=Candidates(names, np.array([0.9, 0.7, 0.5]), key), drill=drill)
    assert conclude._drill_recall(plan, merged, budget) == recall


def test_a_random_bin_that_scores_less_than_the_list_does_not_widen_the_drill_s_reach() -> None:
    names, key = np.array(["a", "b", "r"], dtype=object), np.arange(3, dtype=np.uint64)
    recount = np.array(["priority", "priority", "random"], dtype=object)
    plan = RecountPlan(names, recount, np.array([1, 2, 0], dtype=np.int32), np.ones(3))
    drill = Drill(np.arange(4, dtype=np.uint64), np.array([0.1, 0.2, 0.3, 0.8]), np.ones(4))
    merged = Reduction(ranked=Candidates(names, np.array([0.9, 0.7, 0.15]), key), drill=drill)
    assert conclude._drill_recall(plan, merged, 3) == 0.25


def test_the_drill_weighs_bins_by_their_zone_s_rate(tmp_path: Path) -> None:
    staged, _, zoned = stage_zones(tmp_path)
    rows = zoned.reconcile(staged)
    rows = rows.filter(rows["assessed"])
    rules = rules_of(zoned, None)
    model = replace(rules.belief.record_model, zone_error_rates={"bad": 0.4})
    rules = replace(rules, belief=replace(rules.belief, record_model=model))
    of_bad = set(rows.filter(pa.compute.equal(rows["zone"], "bad"))["bin_id"].to_pylist())
    drill = _drill(rows, "p_record_wrong", rules)
    leaving = share_leaving(np.arange(7), rules.reconciler.assessor.noise)
    assert np.isin(drill.weight, 0.4 * leaving).sum() == len(of_bad)
    assert np.isin(drill.weight, [*(0.05 * leaving), *(0.4 * leaving)]).all()


@pytest.mark.ray
@pytest.mark.parametrize("objective", ["probability", "value"])
@pytest.mark.parametrize(
    ("bundle", "baseline", "alarm"),
    [
        (USUAL, None, False),
        (SHARPER, None, True),
        (SHARPER.model_copy(update={"num_independent": 30}), None, False),
        (USUAL, QUIET_NIGHTS, True),
    ],
    ids=["usual", "other than calibrated", "calibrated on bins that are alike", "other than before"],
)
def test_certificates_and_ranks_are_of_the_whole_night(
    ray_cluster: None, tmp_path: Path, objective: str, bundle: BundleInfo, baseline: Baseline | None, alarm: bool
) -> None:
    groups, alphas = stage_night(tmp_path), (0.3, 0.1)
    drawable = np.array([f"{number:05d}" for number in range(NUM_BINS) if f"{number:05d}" != BLANK])

    def draw(seed: int) -> set[str]:
        return set(drawable[np.argsort(draw_keys(drawable, seed, NIGHT))[:NUM_RANDOM]])

    seed = next(seed for seed in range(99) if draw(seed) & set(COUNTED))
    known_wrong = reconciler([(RECORDED, 6, WRONG)] * len(COUNTED))
    share = NUM_RANDOM / BUDGET
    settings = {"seed": seed, "random_share": share, "objective": objective, "alpha": alphas}
    rules = rules_of(known_wrong, REFERENCE, bundle, baseline, **settings)
    decisions = decide_night(groups, rules, 1.0)
    night = write_parts(groups, rules, decisions, str(tmp_path), 1.0)
    assert (decisions.drift_alarm, night.num_bins) == (alarm, NUM_BINS)
    rows = pa.concat_tables([read_table(uri) for uri in night.part_uris]).to_pandas().set_index("bin_id")

    assert list(rows.index[rows["verdict"] == "not_assessed"]) == [BLANK]
    assert rows.loc[BLANK, "reason"] == "poor_photo"
    assert rows.loc[BLANK, ["p_record_wrong", "certificate_p", "certified_at", "recount"]].isna().all()
    known = rows.loc[COUNTED]
    assert set(known["reason"]) == {"counted_wrong"}
    assert set(known["verdict"]) == {"suspect"}
    assert known[["certificate_p", "certified_at", "rank"]].isna().all(axis=None)

    open_bins = rows.drop([BLANK, *COUNTED])
    score = open_bins["p_record_wrong"].to_numpy()
    p_value = (1 + (score[:, None] <= RIGHT_SCORES).sum(axis=1)) / (REFERENCE.num_counted + 1)
    assert open_bins["certificate_p"].to_numpy() == pytest.approx(p_value)
    level = np.full(len(score), np.nan)
    for alpha in () if alarm else alphas:
        level[false_discovery_control(p_value) <= alpha + 1e-12] = alpha
    assert open_bins["certified_at"].to_numpy() == pytest.approx(level, nan_ok=True)
    assert set(level[~np.isnan(level)]) == (set() if alarm else set(alphas)), "each rate certifies bins of its own"
    assert (rows["verdict"] == "certified").equals(rows["certified_at"].notna())
    assert night.sums.loc[("all", ""), "num_certified"] == (~np.isnan(level)).sum()

    whole = night.sums.loc[("all", "")]
    reconciled = pa.concat_tables([known_wrong.reconcile(read_table(uri)) for (uri,) in groups])
    in_set = reconciled["record_in_set"].filter(reconciled["assessed"]).to_pylist()
    assert (whole["num_outside"], whole["num_assessed"]) == (in_set.count(False), len(in_set))

    assert set(rows.index[rows["recount"] == "random"]) == draw(seed), "of all assessed bins, the known ones too"
    planned = rows[rows["recount"].notna()]
    chance = np.where(planned["recount"] == "priority", 1, NUM_RANDOM / len(drawable))
    assert planned["inclusion_probability"].to_numpy() == pytest.approx(chance)
    ranked = open_bins[open_bins["recount"] == "priority"].sort_values("rank")
    column = "p_record_wrong" if objective == "probability" else "value_at_risk"
    best = open_bins[open_bins["recount"] != "random"][column].nlargest(BUDGET - NUM_RANDOM)
    assert ranked["rank"].tolist() == list(range(1, BUDGET - NUM_RANDOM + 1))
    assert ranked[column].tolist() == best.tolist()


def test_the_last_count_stands_in_the_row_as_it_was_made(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    rows = reconciler([(RECORDED, 5, WRONG)]).reconcile(read_table(uri)).to_pylist()
    names = ("last_counted_qty", "num_counted", "last_counted_at")
    assert [rows[0][name] for name in names] == [6, 1, datetime(2026, 11, 21, tzinfo=UTC)]
    assert [rows[1][name] for name in names] == [None, 0, None]


def test_a_group_of_more_shards_than_are_merged_at_once_is_reduced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conclude, "MERGED_AT_ONCE", 1)
    monkeypatch.setattr(conclude.ray, "get", lambda shared: shared)
    groups, made = stage_night(tmp_path), reconciler([(RECORDED, RECORDED, RIGHT)])
    rules = rules_of(made, REFERENCE)
    first, second, whole = (
        unpack(conclude._reduce_group({"uris": uris}, rules)["report"])
        for uris in (*groups, [uri for uris in groups for uri in uris])
    )
    assert (whole.num_bins, whole.num_assessed) == (NUM_BINS, NUM_BINS - 1)
    assert whole.num_outside == first.num_outside + second.num_outside
    assert len(whole.drill.key) == NUM_BINS - 2, "a bin that was counted can't stand on the list"
    assert whole.p_values.tolist() == (first.p_values + second.p_values).tolist()
    for name in ("random", "ranked"):
        merged = merge_candidates([getattr(first, name), getattr(second, name)], BUDGET)
        assert getattr(whole, name).bin_id.tolist() == merged.bin_id.tolist()


def test_a_right_count_of_one_sku_says_nothing_of_as_many_of_another(tmp_path: Path) -> None:
    ((uri,), _) = stage_night(tmp_path)
    staged = read_table(uri)
    made = reconciler([(RECORDED, RECORDED, RIGHT)] * 3)
    own = [staged["skus"][row].as_py() for row in range(3)]
    then = [own[0], [{**line, "sku": "another"} for line in own[1]]]
    then += [[{**own[2][0], "quantity": RECORDED - 1}, {**own[2][0], "sku": "gone", "quantity": 1}]]
    known = replace(made, last_counts=made.last_counts.assign(lines=[lines_of(lines) for lines in then]))
    assert known.reconcile(staged)["reason"].to_pylist()[:3] == ["counted", None, None]


def test_a_night_adds_up_to_the_last_bit_in_whatever_order_its_parts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    index = pd.MultiIndex.from_tuples([("all", "")], names=["scope", "scope_value"])
    parts = [
        WrittenParts(pd.DataFrame({"value": [value]}, index), PLANNED_SCHEMA.empty_table(), [f"part-{number}"])
        for number, value in enumerate([0.1, 0.2, 0.3])
    ]
    monkeypatch.setattr(conclude.ray, "put", lambda shared: shared)
    found = []
    for ended in (parts, parts[::-1]):
        monkeypatch.setattr(conclude, "_over_groups", lambda *_, ended=ended: iter(ended))
        night = write_parts([], None, None, "o", 1.0)  # type: ignore[arg-type]
        found.append((night.part_uris, night.sums["value"].tolist()))
    assert found[0] == found[1] and found[0][0] == ["part-0", "part-1", "part-2"]


def test_a_large_night_is_concluded_in_groups_of_bounded_size() -> None:
    staged = [storage.StoredObject(str(number), conclude.GROUP_BYTES * 2 // 5, None) for number in range(7)]
    assert [len(group) for group in conclude.group_shards(staged)] == [3, 3, 1]
