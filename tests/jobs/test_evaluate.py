"""The evaluation measures what the bundle says about the bins that it should, and says which those are."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import evaluate
from jobs.config.evaluate import EvaluateConfig
from jobs.evaluating.doubt import measure_doubt
from jobs.evaluating.figures import measure
from jobs.evaluating.page import find_warnings
from jobs.evaluating.predictions import Predictions, predict_bins
from jobs.platform import storage
from jobs.platform.bundles import ScorerPlan
from jobs.platform.parquet import write_table
from model.bundle import load_bundle, save_bundle
from model.bundle_files import read_training_images
from model.images import decode_image
from model.metrics import evaluate_counts
from model.prediction_sets import build_prediction_sets
from model.processor import multiplies_int8
from model.scoring import Scorer
from schemas.bundle import LabelNoise
from schemas.errors import InputError
from tests.dump import blank_frame, manifest_table, photo, write_bundle, write_photos
from tests.planned_night import bundle_info

NUM_BINS = 60
QUANTITIES = [number % 9 for number in range(NUM_BINS)]
LEARNED, HELD_OUT, MISSING, EMPTY = range(20), range(20, 30), 31, 32


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a manifest over them and a bundle that learned from the first 20 and tested itself on the next 10."""
    folder = tmp_path_factory.mktemp("dump")
    images_uri = str(folder / "bin-images")
    write_photos(images_uri, QUANTITIES)
    (folder / "bin-images" / f"{MISSING:05d}.jpg").unlink()
    (folder / "bin-images" / f"{EMPTY:05d}.jpg").write_bytes(b"")
    names = [[{"sku": "S", "name": "<script>alert(1)</script>", "quantity": quantity}] for quantity in QUANTITIES]
    write_manifest(folder / "manifest", images_uri, QUANTITIES, skus=names)
    seen = [
        {"image_sha256": sha256(number), "bin_id": f"{number:05d}", "split": split}
        for numbers, split in ((LEARNED, "train"), (HELD_OUT, "test"))
        for number in numbers
    ]
    write_bundle(folder / "bundle", seen=pa.Table.from_pylist(seen))
    return folder


def write_manifest(folder: Path, images_uri: str, quantities: list[int], **columns: list) -> None:
    write_table(str(folder / "part-0.parquet"), manifest_table(images_uri, quantities, **columns))


def sha256(number: int) -> str:
    return hashlib.sha256(photo(QUANTITIES[number], number)).hexdigest()


def run(dump: Path, output: Path, *flags: str, manifest: str = "manifest", bundle: str = "bundle") -> int:
    return evaluate.main(
        [
            "--manifest-uri",
            str(dump / manifest),
            "--bundle-uri",
            str(dump / bundle),
            "--output-uri",
            str(output),
            *flags,
        ]
    )


def read_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def score_directly(dump: Path, numbers: list[int], *, bundle: str = "bundle", precision: Any = "fp32") -> np.ndarray:
    loaded = load_bundle(dump / bundle)
    pixels = [decode_image(photo(QUANTITIES[number], number), loaded.info.preprocessing) for number in numbers]
    return Scorer(loaded, device="cpu", precision=precision, batch_size=32).score(np.stack(pixels))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("split", "num_left_out", "num_missing", "num_damaged", "num_moved", "num_blank"),
    [
        ("unseen", len(LEARNED), 3, 2, 1, 1),
        pytest.param("test", NUM_BINS - len(HELD_OUT), 1, 1, 0, 0, marks=pytest.mark.slow),
    ],
)
def test_too_many_photos_without_a_score_exit_1_with_all_written_and_moved_stock_is_not_compared(
    dump: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    split: str,
    num_left_out: int,
    num_missing: int,
    num_damaged: int,
    num_moved: int,
    num_blank: int,
) -> None:
    images_uri = str(dump / "bin-images")
    gone = {LEARNED[3], HELD_OUT[4], 40}
    uris = [f"{images_uri}/{number:05d}{'-gone' if number in gone else ''}.jpg" for number in range(NUM_BINS)]
    for number in (LEARNED[5], HELD_OUT[6]):  # damaged since training read them
        uris[number] = f"{images_uri}/{number:05d}-cut.jpg"
        Path(uris[number]).write_bytes(photo(QUANTITIES[number], number)[:300])
    uris[47] = f"{images_uri}/blank.jpg"
    Path(uris[47]).write_bytes(blank_frame())
    moves = [int(number in (45, LEARNED[7])) for number in range(NUM_BINS)]
    write_manifest(tmp_path / "manifest", images_uri, [3] * NUM_BINS, image_uri=uris, moves_since_photo=moves)
    output = tmp_path / "out"
    assert run(dump, output, "--split", split, manifest=str(tmp_path / "manifest")) == 1
    unscored = rf"\b{num_missing + num_damaged + num_blank} of \d+ photos have no score"
    assert re.search(unscored, capsys.readouterr().err)
    assert (output / "index.html").exists()
    found = read_metrics(output)
    assert found["num_left_out"] == num_left_out
    blank = {"poor_photo": num_blank} if num_blank else {}
    assert found["unscored"] == {"missing_image": num_missing, "unreadable_image": num_damaged, **blank}
    assert found["num_moved"] == num_moved
    assert found["num_bins"] == NUM_BINS - num_left_out - num_missing - num_damaged - num_moved - num_blank
    assert found["metrics"]["1..5"]["majority"]["exact"] == 1.0


def test_a_bin_that_was_tested_on_too_does_not_tell_its_photos_apart(tmp_path: Path) -> None:
    rows = [("aa", "1", "train"), ("bb", "1", "test"), ("cc", "2", "selection"), ("dd", "3", "test")]
    seen = [{"image_sha256": digest * 32, "bin_id": bin_id, "split": split} for digest, bin_id, split in rows]
    bundle = write_bundle(tmp_path, seen=pa.Table.from_pylist(seen))
    for split, expected in (("unseen", {"2"}), ("test", {"1", "3"})):
        config = EvaluateConfig(manifest_uri="m", bundle_uri=str(bundle), output_uri="o", split=split)
        _, photos, bins = evaluate._read_bundle(config)
        assert (len(photos), bins) == (2, expected)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_failures_of_another_nights_photos_of_known_bins_are_not_hidden(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    numbers, there = range(12), range(8)  # bins that training knows
    images_uri = str(tmp_path / "bin-images")
    for number in there:
        storage.write_bytes(f"{images_uri}/{number:05d}.jpg", photo(QUANTITIES[number], 1000 + number))
    write_manifest(tmp_path / "manifest", images_uri, [QUANTITIES[number] for number in numbers])
    assert run(dump, tmp_path / "out", manifest=str(tmp_path / "manifest")) == 1
    assert "4 of 12 photos have no score" in capsys.readouterr().err
    found = read_metrics(tmp_path / "out")
    assert (found["num_bins"], found["num_left_out"]) == (8, 0)
    assert found["unscored"] == {"missing_image": 4}
    assert [row["bin_id"] for row in found["unscored_examples"]] == ["00008", "00009", "00010", "00011"]
    for number in there:
        Path(f"{images_uri}/{number:05d}.jpg").unlink()
    assert run(dump, tmp_path / "none", manifest=str(tmp_path / "manifest")) == 2
    assert "expected photos that can be scored, found none of 12" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_unseen_bins_are_measured_as_the_bundle_scores_them(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dump, tmp_path, "--precision", "fp32") == 0
    found = read_metrics(tmp_path)
    kept = [number for number in range(20, NUM_BINS) if number not in (MISSING, EMPTY)]
    labels = np.minimum([QUANTITIES[number] for number in kept], 6)
    probabilities = score_directly(dump, kept)
    expected = evaluate_counts(probabilities, labels, np.array([str(number // 10) for number in kept]), seed=0)
    assert found["num_left_out"] == len(LEARNED)
    assert found["num_bins"] == len(kept)
    for scope in ("1..5", "0..5", "all"):
        for name in ("exact", "mae", "nll"):
            assert found["metrics"][scope][name]["value"] == pytest.approx(expected[scope][name]["value"], abs=1e-5)
            assert found["metrics"][scope][name]["low"] == pytest.approx(expected[scope][name]["low"], abs=1e-5)
    assert found["calibration"]["raw"] == pytest.approx(expected["calibration_error"]["raw"], abs=1e-5)
    assert found["unscored"] == {"missing_image": 1, "unreadable_image": 1}
    assert [row["bin_id"] for row in found["unscored_examples"]] == [f"{MISSING:05d}", f"{EMPTY:05d}"]
    assert np.sum(found["confusion"]["table"]) == len(kept)
    of_twos = [row for row in found["per_class"] if row["class"] == "2"]
    right = probabilities[labels == 2].argmax(axis=1) == 2
    assert of_twos[0]["exact"]["value"] == pytest.approx(right.mean())
    sets = found["prediction_sets"]
    found_sets = build_prediction_sets(
        probabilities, labels, load_bundle(dump / "bundle").info.prediction_set_threshold
    )
    for figure, values in (
        (of_twos[0]["exact"], right),
        (sets["coverage"], found_sets.has_record),
        (sets["mean_size"], found_sets.size),
    ):
        assert figure["value"] == pytest.approx(values.mean())
        if values.min() == values.max():  # as a bundle that has learned nothing may find them
            assert figure["low"] is figure["high"] is None
        else:
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert "20 left out, 2 photos without a score" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "metrics.json"]
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("data:image/jpeg") == 24
    outside = [link for link in re.findall(r'(?:src|href)="([^"]+)"', page) if not link.startswith(("#", "data:"))]
    assert not outside


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_split_all_says_that_it_flatters(dump: Path, tmp_path: Path) -> None:
    assert run(dump, tmp_path, "--split", "all") == 0
    found = read_metrics(tmp_path)
    assert (found["num_bins"], found["num_left_out"], found["num_learned_from"]) == (NUM_BINS - 2, 0, len(LEARNED))
    assert "these figures flatter" in (tmp_path / "index.html").read_text()
    assert found["metrics"]["all"]["exact"]["low"] is not None


@pytest.mark.parametrize(
    ("left_out", "moved", "lost", "said"),
    [
        (20, 0, 0, "found that all 20 are left out"),
        (15, 5, 0, "found that all 5 have; photograph them again"),
        (15, 0, 5, "found none of 5; the first, a.jpg, is missing_image: gone"),
    ],
)
def test_why_there_is_nothing_to_evaluate_is_said(left_out: int, moved: int, lost: int, said: str) -> None:
    failed = {"bin_id": "a", "image_uri": "a.jpg", "status": "missing_image", "error": "gone"}
    found = Predictions(
        *[np.zeros(0)] * 3,
        np.zeros((0, 7)),
        Counter({"missing_image": lost} if lost else {}),
        [failed] * lost,
        left_out,
        moved,
        0,
        [],
    )
    manifest: Any = SimpleNamespace(uri="m", num_rows=20)
    with pytest.raises(InputError, match=said):
        evaluate._check_any(found, manifest, EvaluateConfig(manifest_uri="m", bundle_uri="b", output_uri="o"))


@pytest.mark.ray
@pytest.mark.slow  # a whole evaluation, for one of the reasons above
@pytest.mark.usefixtures("ray_cluster")
def test_a_manifest_that_training_has_seen_whole_exits_2(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(dump / "seen", str(dump / "bin-images"), QUANTITIES[:20])
    assert run(dump, tmp_path, manifest="seen") == 2
    assert "all 20 are left out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(not multiplies_int8(), reason="this processor has no VNNI")
@pytest.mark.parametrize(("name", "code"), [pytest.param("bundle", 0, marks=pytest.mark.slow), ("narrow", 1)])
def test_int8_is_compared_with_what_it_replaces_and_refused_where_it_counts_otherwise(
    dump: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
) -> None:
    bundle = load_bundle(dump / "bundle")
    computed = {"format_version", "classes", "weights_sha256", "training_images_sha256", "bundle_id"}
    assert bundle.info.activation_ranges is not None
    narrow = {name: (low / 100, high / 100) for name, (low, high) in bundle.info.activation_ranges.items()}
    save_bundle(
        dump / "narrow",
        network=bundle.network,
        fields=bundle.info.model_dump(mode="json", exclude=computed) | {"activation_ranges": narrow},
        training_images=read_training_images(dump / "bundle", bundle.info),
        report_html="",
    )
    kept = [number for number in range(20, NUM_BINS) if number not in (MISSING, EMPTY)]
    scores = [score_directly(dump, kept, bundle=name, precision=p) for p in ("int8", "fp32")]
    counts = [row.argmax(1) for row in scores]
    first: list[Predictions] = []

    def predict(*given: Any, scorer: ScorerPlan, **named: Any) -> Predictions:
        """The second pass, which `score_directly` went through already, is left out."""
        if scorer.precision != "int8":
            return replace(first[0], probabilities=scores[1])
        first.append(predict_bins(*given, scorer=scorer, **named))
        return first[0]

    if name == "narrow":
        monkeypatch.setattr(evaluate, "predict_bins", predict)
    share = float(np.mean(counts[0] == counts[1]))
    assert (share < 0.99) == bool(code)
    assert run(dump, tmp_path / name, "--precision", "int8", bundle=name) == code
    found = read_metrics(tmp_path / name)
    assert found["precision"] == "int8"
    assert found["agreement"]["num_bins"] == len(kept)
    if found["agreement"]["with"] == "fp32":
        assert found["agreement"]["share"] == pytest.approx(share)
    refused = "fewer than 99%: don't audit with this bundle in int8" in capsys.readouterr().err
    assert refused == bool(code)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_bundle_that_does_not_load_exits_2(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dump, tmp_path / "out", bundle="nothing") == 2
    assert "bundle.json: not found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--split", "train"], ["--seeds", "1"]])
def test_flags_that_do_not_parse_exit_2(dump: Path, tmp_path: Path, flags: list[str]) -> None:
    assert run(dump, tmp_path, *flags) == 2


def test_a_counter_that_knows_doubts_the_altered_records_and_one_that_does_not_draws_lots() -> None:
    labels = np.random.default_rng(0).integers(0, 9, 1000)
    knows = np.full((1000, 7), 0.01)
    knows[np.arange(1000), np.minimum(labels, 6)] = 0.94
    groups = np.array([f"g{number // 20}" for number in range(1000)])
    found = measure_doubt(knows, labels, groups, bundle_info(), seed=0)
    assert found["num_altered"] == 50
    assert list(found["rankings"]["p_expected"]) == ["25", "50"]
    assert found["rankings"]["p_expected"]["50"] == {"value": 1.0, "low": None, "high": None}, "every draw finds all"
    assert found["rankings"]["p_record_wrong"]["50"]["value"] > 0.99
    assert {"noise_0.00", "noise_0.05"} <= set(found["rankings"])
    lots = measure_doubt(np.full((1000, 7), 1 / 7), labels, groups, bundle_info(), seed=0)["rankings"]["p_expected"][
        "50"
    ]
    assert lots["value"] == pytest.approx(0.05, abs=0.03)
    assert lots["low"] < lots["value"] < lots["high"] < lots["value"] + 0.05
    unsure = np.random.default_rng(1).dirichlet(np.ones(7), 1000)
    noisy = bundle_info().model_copy(update={"label_noise": LabelNoise(rate=0.05)})
    rankings = measure_doubt(unsure, labels, groups, noisy, seed=0)["rankings"]
    assert rankings["p_record_wrong"] == rankings["noise_0.05"] != rankings["noise_0.00"]


def test_bins_of_another_mix_are_doubted_as_an_audit_of_them_would_and_said_to_be_others() -> None:
    generator, info = np.random.default_rng(0), bundle_info()
    shares = np.array([0.02, 0.32, 0.32, 0.14, 0.1, 0.06, 0.04])  # training has all classes alike
    labels = generator.choice(7, 4000, p=shares)
    evidence = np.exp(-(((labels + generator.normal(0, 0.8, 4000))[:, None] - np.arange(7)) ** 2) / (2 * 0.8**2))
    probabilities = (evidence / evidence.sum(axis=1, keepdims=True)).astype(np.float32)
    names = np.array([f"{number:04}" for number in range(4000)])
    groups = np.array([name[:3] for name in names])
    rankings = measure_doubt(probabilities, labels, groups, info, seed=0)["rankings"]
    ours, simple = rankings["p_record_wrong"]["100"], rankings["p_expected"]["100"]
    assert ours["value"] > simple["value"] + 0.03
    assert ours["low"] < ours["value"] < ours["high"]
    found = measure(Predictions(names, groups, labels, probabilities, Counter(), [], 0, 0, 0, []), info, seed=0)
    assert found["calibration"]["excess"] > 0.02 > abs(found["own_mix"]["calibration_error"])
    assert found["own_mix"]["nll"]["low"] < found["own_mix"]["nll"]["value"] < found["metrics"]["all"]["nll"]["value"]
    (warning,) = find_warnings(found | {"num_learned_from": 0, "unscored": {}})
    assert "mixed otherwise than training's (35 % of them" in warning


def test_too_few_bins_give_no_ranking() -> None:
    found = measure_doubt(np.full((100, 7), 1 / 7), np.arange(100) % 7, np.arange(100), bundle_info(), seed=0)
    assert found["rankings"]["p_expected"] == {}


def test_records_stand_by_row_precision_is_of_what_was_counted_so_and_too_many_is_a_positive_bias() -> None:
    record, camera, names = np.array([1, 1, 1, 2]), np.array([1, 2, 2, 2]), np.array(list("abcd"))
    probabilities = np.full((4, 7), 0.01, np.float32)
    probabilities[np.arange(4), camera] = 0.94
    predictions = Predictions(names, names, record, probabilities, Counter(), [], 0, 0, 0, [])
    found = measure(predictions, bundle_info(), seed=0)
    warnings = find_warnings(found | {"num_learned_from": 0, "unscored": {}})
    assert "4 of 4 bins name no group" in warnings[0] and len(warnings) == 1
    one_by_one = replace(predictions, groups=np.array(list("xyzz")))
    grouped = measure(one_by_one, bundle_info(), seed=0)
    assert find_warnings(grouped | {"num_learned_from": 0, "unscored": {}}) == []
    assert [row[:3] for row in found["confusion"]["table"][:3]] == [[0, 0, 0], [0, 1, 2], [0, 0, 1]]
    one, two = found["per_class"][1:3]
    assert (one["precision"], two["precision"]) == (1.0, pytest.approx(1 / 3))
    assert (one["bias"]["value"], one["exact"]["value"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
