"""Training end to end on generated dots: the bundle, the resume, the workers, and every bad input's message."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import save_file

from jobs import train as train_job
from jobs import tune as tune_job
from jobs.config.train import TrainConfig
from jobs.config.tune import TuneConfig
from jobs.platform import s3, storage
from jobs.platform.parquet import read_table, write_table
from jobs.platform.uris import join
from jobs.stages.images import Photo
from jobs.train import main
from jobs.training import labelled_bins, trainer
from jobs.training.bundle import TRACE_FILE, all_photos
from jobs.training.bundle import write_bundle as write_trained_bundle
from jobs.training.checkpoints import drop_damaged_checkpoints, ray_storage, remove_run
from jobs.training.labelled_bins import LabelledBins, check_photos, fingerprint, read_labelled_bins
from jobs.training.splits import assign_splits, split_bins
from jobs.training.start import Start, read_start
from jobs.training.trainer import FINDINGS_FILE, Trained, TrainingStoppedError, _reason, run_name, train_network
from model.bundle import load_bundle
from model.bundle_files import TRAINING_IMAGES_SCHEMA, read_bundle_info, read_training_images
from model.calibration import calibrate
from model.images import decode_image
from model.metrics import format_interval
from model.network import build_network
from model.scoring import Scorer
from model.training import NOT_FINITE, STATE_FILE, UNHEALTHY
from schemas.errors import GateError, InputError
from schemas.manifest import MANIFEST_SCHEMA
from schemas.results import ImageStatus
from tests.dump import blank_frame, manifest_table, write_bundle, write_photos

NUM_BINS = 200
NOTHING_SEEN = TRAINING_IMAGES_SCHEMA.empty_table()
SIDE = 40


def draw_dots(count: int, generator: np.random.Generator) -> bytes:
    """A photo of `count` bright squares on a dim ground."""
    pixels = generator.integers(20, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    for cell in generator.choice(16, count, replace=False):
        row, column = 10 * (cell // 4) + 2, 10 * (cell % 4) + 2
        pixels[row : row + 6, column : column + 6] = (230, 180, 60)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def write_dump(folder: Path, **columns: Any) -> str:
    """A manifest of NUM_BINS bins of 0..4 dots in ten groups; `columns` replace its columns."""
    generator = np.random.default_rng(11)
    (folder / "bin-images").mkdir(parents=True)
    counts = [i % 5 for i in range(NUM_BINS)]
    rows: dict[str, Any] = {
        "bin_id": [f"{i:05d}" for i in range(NUM_BINS)],
        "image_uri": [str(folder / "bin-images" / f"{i:05d}.jpg") for i in range(NUM_BINS)],
        "expected_qty": counts,
        "num_skus": [min(1, count) for count in counts],
        "skus": [[] for _ in counts],
        "group": [f"block-{i // 20}" for i in range(NUM_BINS)],
        "record_inconsistent": [False] * NUM_BINS,
    }
    for uri, count in zip(rows["image_uri"], counts, strict=True):
        Path(uri).write_bytes(draw_dots(count, generator))
    rows |= columns
    types = {field.name: field.type for field in MANIFEST_SCHEMA}
    table = pa.table({name: pa.array(values, types[name]) for name, values in rows.items()})
    table = table.replace_schema_metadata({"images_uri": str(folder / "bin-images")})
    pq.write_table(table, folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "architecture": "resnet18",
        "image_size": 32,
        "max_epochs": 2,
        "top_class": 3,
        "batch_size": 32,
        "micro_batch_size": 16,
        "max_failures": 0,
    } | changes


def flags(manifest_uri: str, bundle_uri: Path, **changes: Any) -> list[str]:
    found = ["--manifest-uri", manifest_uri, "--bundle-uri", str(bundle_uri)]
    for name, value in settings(**changes).items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def config(manifest_uri: str = "unused", **changes: Any) -> TrainConfig:
    return TrainConfig(manifest_uri=manifest_uri, bundle_uri="unused", **settings(**changes))


def train(
    checked: LabelledBins,
    training_uri: Path,
    *,
    callbacks: list[Any] | None = None,
    conclude: tuple[str, ...] = ("selection", "test"),
    **changes: Any,
) -> Trained:
    made = config(**changes)
    start = read_start(made)
    bins = split_bins(checked, made, start.seen).table
    # a worker that is alone has as many threads as one of two: more of them add up in another order, which AdamW's first
    # steps, of a gradient's sign, amplify to percents of the loss
    num_runs = 2 // made.num_workers
    return train_network(
        bins, made, start, str(training_uri), callbacks=callbacks, conclude=conclude, num_runs=num_runs
    )


def test_a_list_of_checkpoints_that_a_power_cut_left_damaged_begins_the_training_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot, state = tmp_path / "checkpoint_manager_snapshot.json", tmp_path / "first" / STATE_FILE
    state.parent.mkdir()
    drop_damaged_checkpoints(str(tmp_path))
    document = b'{"checkpoint_results": [{"checkpoint_dir_name": "first"}]}'
    torch.save({"epoch": 1}, state)
    whole = state.read_bytes()
    snapshot.write_bytes(document)
    drop_damaged_checkpoints(str(tmp_path))
    assert snapshot.exists()
    assert not caplog.text
    for of_snapshot, of_state in ((b"", whole), (document, b""), (document, whole[: len(whole) // 2])):
        snapshot.write_bytes(of_snapshot)
        state.write_bytes(of_state)
        drop_damaged_checkpoints(str(tmp_path))
        assert not snapshot.exists()
    assert caplog.text.count("as by a power cut; this training begins anew") == 3


def test_of_two_checkpoints_the_one_that_a_power_cut_left_whole_is_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = [{"checkpoint_dir_name": name, "metrics": {}} for name in ("first", "second")]
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    document = {
        "checkpoint_results": listed,
        "checkpoint_report_indices": [3, 4],
        "latest_checkpoint_result": listed[1],
    }
    snapshot.write_text(json.dumps(document | {"current_report_index": 5}))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        torch.save({"epoch": 1}, tmp_path / name / STATE_FILE)
    newest = tmp_path / "second" / STATE_FILE
    newest.write_bytes(newest.read_bytes()[:200])
    drop_damaged_checkpoints(str(tmp_path))
    assert json.loads(snapshot.read_text()) == {
        "checkpoint_results": listed[:1],
        "checkpoint_report_indices": [3],
        "latest_checkpoint_result": listed[0],
        "current_report_index": 5,
    }
    assert "goes on from the other one" in caplog.text


def first_epoch(training_uri: Path) -> dict[str, Any]:
    """What the first checkpoint says of it. Its seconds would be others, had a training begun anew."""
    checkpoint = min(training_uri.glob(f"*/checkpoint_*/{STATE_FILE}"))
    return torch.load(checkpoint, weights_only=True)["history"][0]


@pytest.fixture(scope="module")
def manifest_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two bins the photo is damaged or gone."""
    folder = tmp_path_factory.mktemp("dump")
    manifest_uri = write_dump(folder)
    photo = folder / "bin-images" / "00007.jpg"
    photo.write_bytes(photo.read_bytes()[:300])
    (folder / "bin-images" / "00008.jpg").unlink()
    return manifest_uri


@pytest.fixture(scope="module")
def checked(ray_cluster: None, manifest_uri: str) -> LabelledBins:
    """The bins whose photos can be used."""
    made = config(manifest_uri)
    return check_photos(read_labelled_bins(made), made)


@pytest.fixture(scope="module")
def undisturbed(checked: LabelledBins, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training that was not stopped before its bundle was due; its folder is the one of a bundle beside it.

    In float32: on so few photos bfloat16's rounding is as large as what a wrong batch would do."""
    folder = tmp_path_factory.mktemp("undisturbed") / "bundle.training"
    return train(checked, folder, mixed_precision=False, trace_steps=1)


class StopAfterFirstEpoch(UserCallback):
    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        if checkpoint is not None:
            raise RuntimeError("killed by the test")


@pytest.mark.ray
def test_a_stopped_training_continues_as_if_it_had_never_stopped_and_writes_a_bundle_without_unreadable_photos(
    undisturbed: Trained,
    checked: LabelledBins,
    manifest_uri: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = tmp_path / "bundle.training"
    with pytest.raises(GateError, match="the same command continues"):
        train(checked, training, mixed_precision=False, callbacks=[StopAfterFirstEpoch()])
    first = first_epoch(training)
    other = training / "0123456789ab" / "inputs" / "bins.parquet"  # of a training with other settings, given up
    other.parent.mkdir(parents=True)
    other.write_bytes(b"bins")
    concluded: list[tuple[LabelledBins, Trained]] = []
    before = pa.table({"image_sha256": ["ab" * 32], "bin_id": ["before"], "split": ["train"]})

    def keep(labelled: LabelledBins, made: TrainConfig, start: Start, trained: Trained) -> None:
        concluded.append((labelled, trained))
        write_trained_bundle(labelled, made, replace(start, seen=before), trained)

    monkeypatch.setattr(train_job, "write_bundle", keep)
    with caplog.at_level(logging.WARNING):
        assert main([*flags(manifest_uri, tmp_path / "bundle", trace_steps=1), "--no-mixed-precision"]) == 0
    left = signal.getsignal(signal.SIGINT)  # Ray Train's own would swallow Ctrl-C from now on
    assert not getattr(left, "__module__", "").startswith("ray.train")
    ((labelled, resumed),) = concluded
    assert [entry["epoch"] for entry in resumed.outcome["history"]] == [0, 1]
    assert resumed.outcome["history"][0] == first
    assert resumed.outcome["step_losses"] == pytest.approx(undisturbed.outcome["step_losses"], rel=1e-3)
    assert set(resumed.outcome["logits"]) == set(undisturbed.outcome["logits"]) == {"selection", "test"}
    assert "2 of 200 photos can't be used (1 unreadable_image, 1 missing_image; the first, " in caplog.text
    assert "their bins are left out" in caplog.text
    assert not training.exists()
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.info.classes == ["0", "1", "2", "3+"]
    assert bundle.info.preprocessing.image_size == 32
    chosen = resumed.outcome["rows"]["selection"]
    labels = np.minimum(labelled.table["expected_qty"].to_numpy(), 3)
    groups, splits = (np.array(labelled.table[name].to_pylist()) for name in ("group", "split"))
    histogram = np.bincount(labels[splits == "train"], minlength=4)
    fitted = calibrate(resumed.outcome["logits"]["selection"], labels[chosen], groups[chosen], histogram)
    assert (bundle.info.calibration, bundle.info.num_calibration) == (fitted.calibration, len(chosen))
    assert bundle.info.label_histogram == histogram.tolist()
    assert bundle.info.metrics["test"]["all"]["num_bins"] == (splits == "test").sum() > 0
    assert bundle.info.training["epochs"] == 2
    assert bundle.info.training["best_epoch"] == resumed.outcome["best_epoch"] + 1 in (1, 2)
    assert bundle.info.training["left_out"] == {"unreadable_image": 1, "missing_image": 1}
    images = read_training_images(tmp_path / "bundle", bundle.info)
    assert images.num_rows == NUM_BINS - 2 + before.num_rows
    assert before.to_pylist()[0] in images.select(before.column_names).to_pylist()
    assert {"00007", "00008"}.isdisjoint(images["bin_id"].to_pylist())
    assert set(images["split"].to_pylist()) == {"train", "selection", "test"}
    scores = Scorer(bundle, device="cpu", precision="fp32", batch_size=4).score(np.zeros((2, 32, 32, 3), np.uint8))
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)
    # the bundle answers as the network that was calibrated: the best epoch's average, both ways round
    asked = labelled.table.take(pa.array(resumed.outcome["rows"]["test"]))["image_uri"].to_pylist()
    photos = np.stack([decode_image(Path(uri).read_bytes(), bundle.info.preprocessing) for uri in asked])
    expected = resumed.outcome["logits"]["test"]
    found = Scorer(bundle, device="cpu", precision="fp32", batch_size=32).logits(photos)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert bundle.info.test_time_flip
    names = ("prediction_set_threshold", "record_outside_set_share", "num_independent")
    assert [getattr(bundle.info, name) for name in names] == [getattr(fitted, name) for name in names]
    assert len(bundle.info.activation_ranges or {}) == 20
    trace = json.loads(gzip.decompress((tmp_path / "bundle" / TRACE_FILE).read_bytes()))
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])
    report = (tmp_path / "bundle" / "report.html").read_text()
    assert "Where the time went" in report
    assert "1 unreadable_image, 1 missing_image." in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert not training.exists()


class KillWorkerOnce(UserCallback):
    """After the first epoch, as the machine it runs on would die. Only a worker of this very cluster."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        if checkpoint is None or self.sign.exists():
            return
        raylet = next(parent for parent in psutil.Process().parents() if "raylet" in parent.name())
        workers = [
            worker for worker in raylet.children(recursive=True) if "RayTrainWorker" in " ".join(worker.cmdline())
        ]
        self.sign.write_text(str(len(workers)))
        for worker in workers:
            worker.kill()


@pytest.mark.ray
@pytest.mark.s3
def test_a_training_whose_worker_dies_goes_on_from_its_checkpoint_in_a_bucket(
    undisturbed: Trained, checked: LabelledBins, bucket: str, tmp_path: Path
) -> None:
    killing = KillWorkerOnce(tmp_path / "killed")
    made = {"mixed_precision": False, "max_failures": 1, "callbacks": [killing]}
    trained = train(checked, f"{bucket}/bundle.training", **made)  # type: ignore[arg-type]
    assert killing.sign.read_text() == "1"
    assert [entry["epoch"] for entry in trained.outcome["history"]] == [0, 1]
    assert trained.outcome["step_losses"] == pytest.approx(undisturbed.outcome["step_losses"], rel=1e-3)
    assert trained.run_uri.startswith(bucket)


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_whose_epochs_are_done_has_its_bundle_left_to_write(
    undisturbed: Trained, checked: LabelledBins, tmp_path: Path
) -> None:
    shutil.copytree(Path(undisturbed.run_uri).parent, tmp_path / "t")
    done = train(checked, tmp_path / "t", mixed_precision=False, conclude=())
    assert done.outcome["history"] == undisturbed.outcome["history"]
    assert done.outcome["logits"] == done.outcome["rows"] == {}  # a trial of a search sees no test bins


@pytest.mark.ray
def test_two_workers_train_on_the_same_batches_as_one(
    undisturbed: Trained, checked: LabelledBins, tmp_path: Path
) -> None:
    both = train(checked, tmp_path, mixed_precision=False, num_workers=2)
    ours, theirs = both.outcome["step_losses"], undisturbed.outcome["step_losses"]
    assert len(ours) == len(theirs) >= 6
    assert ours[:6] == pytest.approx(theirs[:6], rel=0.01)
    assert ours == pytest.approx(theirs, rel=0.05)
    answers, expected = both.outcome["logits"]["test"], undisturbed.outcome["logits"]["test"]
    assert (answers != 0).any(axis=1).all(), "each bin is answered by one of the two"
    assert np.linalg.norm(answers) == pytest.approx(np.linalg.norm(expected), rel=0.2)
    assert len(undisturbed.outcome["trace"]) > 1000


@pytest.mark.ray
@pytest.mark.slow  # the loop's own check stands in tests/model/test_training.py
def test_a_loss_that_is_not_finite_stops_without_a_bundle(
    ray_cluster: None, manifest_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changes = {"optimiser": "sgd", "learning_rate": 1e12, "max_epochs": 2}
    assert main(flags(manifest_uri, tmp_path / "bundle", **changes)) == 1
    message = capsys.readouterr().err
    assert "not a finite number" in message
    assert "lower --learning-rate" in message
    assert not (tmp_path / "bundle" / "bundle.json").exists()


@pytest.fixture
def stopped(checked: LabelledBins, tmp_path: Path) -> str:
    """The weights of a training in `tmp_path` that was stopped as unhealthy."""
    network = build_network("resnet18", 4)
    state = {name: torch.full_like(value, 0.01).contiguous() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "constant.safetensors")
    weights = str(tmp_path / "constant.safetensors")
    with pytest.raises(GateError, match=r"unhealthy in epoch 1: .*poor_initialisation"):
        train(checked, tmp_path / "t", weights=weights, on_unhealthy="stop")
    return weights


def test_an_unhealthy_training_ends_with_its_findings_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = {"rule": "poor_initialisation", "message": "The weights are all alike.", "evidence": {}, "epoch": 1}
    outcome = {"stopped": f"{UNHEALTHY} in epoch 1: poor_initialisation", "findings": [finding]}
    ended = SimpleNamespace(return_value=outcome, checkpoint=object())
    monkeypatch.setattr(trainer, "plan_workers", lambda *given: (None, 1))
    monkeypatch.setattr(trainer, "controller_environment", nullcontext)
    told: list[str] = []

    def make_trainer(loop: object, *, train_loop_config: dict[str, Any], **named: object) -> SimpleNamespace:
        told.append(train_loop_config["settings"].on_unhealthy)
        return SimpleNamespace(fit=lambda: ended)

    monkeypatch.setattr(trainer, "TorchTrainer", make_trainer)
    made = config(on_unhealthy="stop")
    with pytest.raises(TrainingStoppedError, match=r"unhealthy in epoch 1: .*poor_initialisation"):
        train_network(few_bins(), made, read_start(made), str(tmp_path))
    (findings,) = tmp_path.glob(f"*/{FINDINGS_FILE}")
    assert json.loads(findings.read_text()) == [finding]
    assert told == ["stop"]


def test_a_failed_training_says_what_its_worker_met() -> None:
    met = UserExceptionWithTraceback(ValueError("first\n\na.jpg: another photo"), "a traceback")
    assert _reason(WorkerGroupError("Ray's own words", {1: met})) == "a.jpg: another photo"


@pytest.mark.ray
@pytest.mark.slow  # a whole training, for what the two above and tests/model/test_training.py say apart
def test_an_unhealthy_training_stops_where_that_is_asked_for(stopped: str, tmp_path: Path) -> None:
    (findings,) = (tmp_path / "t").glob(f"*/{FINDINGS_FILE}")
    assert "poor_initialisation" in {finding["rule"] for finding in json.loads(findings.read_text())}


@pytest.mark.ray
@pytest.mark.slow  # it goes on as any training does that was stopped, which stands above
def test_an_unhealthy_training_goes_on_where_it_is_to_warn(checked: LabelledBins, stopped: str, tmp_path: Path) -> None:
    first = first_epoch(tmp_path / "t")
    resumed = train(checked, tmp_path / "t", weights=stopped, on_unhealthy="warn", conclude=())
    assert [entry["epoch"] for entry in resumed.outcome["history"]] == [0, 1]
    assert resumed.outcome["history"][0] == first
    assert resumed.outcome["stopped"] is None
    assert "poor_initialisation" in {finding["rule"] for finding in resumed.outcome["findings"]}
    assert len(list((tmp_path / "t").iterdir())) == 1


def test_a_stopped_training_says_what_to_do_next_and_where_its_checkpoints_are() -> None:
    finding = {"rule": "overfitting", "message": "It learns by heart.", "evidence": {}, "epoch": 2}
    unhealthy = str(
        TrainingStoppedError(f"{UNHEALTHY} in epoch 2: overfitting", [finding], "s3://b/bundle.training/0a")
    )
    assert "overfitting in epoch 2: It learns by heart." in unhealthy
    assert "--on-unhealthy warn" in unhealthy
    assert "change the recipe" in unhealthy
    assert "s3://b/bundle.training/0a" in unhealthy
    # from weights that are not finite nothing can go on
    assert "--on-unhealthy" not in str(TrainingStoppedError(f"{NOT_FINITE} in epoch 2", [], "t"))


def few_bins() -> pa.Table:
    rows = range(NUM_BINS)
    columns = {"bin_id": [f"{i:05d}" for i in rows], "image_uri": ["none"] * NUM_BINS, "num_skus": [1] * NUM_BINS}
    return pa.table(columns | {"expected_qty": [i % 5 for i in rows], "group": [f"block-{i // 20}" for i in rows]})


@pytest.mark.parametrize("name", ["bin_id", "group", "image_sha256"])
def test_other_groups_or_photos_are_other_data(name: str) -> None:
    """Else a training would go on with weights that have learned from what tests now."""
    bins = few_bins().append_column("image_sha256", pa.array([f"{i:064x}" for i in range(NUM_BINS)]))
    values = pa.array(["another", *bins[name].to_pylist()[1:]])
    changed = bins.set_column(bins.schema.get_field_index(name), name, values)
    assert fingerprint(changed) != fingerprint(bins)


def test_the_split_is_drawn_by_its_own_seed() -> None:
    first, other_seed, other_split = (
        assign_splits(few_bins(), config(**changes))["split"].to_pylist()
        for changes in ({}, {"seed": 1}, {"split_seed": 1})
    )
    assert first == other_seed
    assert first != other_split


def test_splits_that_few_groups_make_other_than_asked_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    assign_splits(few_bins(), config())
    assert "not as asked" not in caplog.text
    bins = few_bins().set_column(4, "group", pa.array([str(i * 5 // NUM_BINS) for i in range(NUM_BINS)]))
    assign_splits(bins, config())
    assert "with 5 of them the splits are not as asked: train 20% instead of 70%" in caplog.text


@pytest.mark.parametrize(("seed", "expected"), [(0, "bins to train on"), (2, "bins for selection")])
def test_one_large_group_that_leaves_a_split_too_few_bins_is_refused(seed: int, expected: str) -> None:
    groups = [str(min(i, 4)) for i in range(NUM_BINS)]  # of 1, 1, 1, 1 and the rest
    bins = few_bins().set_column(4, "group", pa.array(groups))
    with pytest.raises(
        InputError, match=rf"expected at least \d+ {expected}.*196 of them in the largest group.*--split-seed"
    ):
        assign_splits(bins, config(split_seed=seed))


def test_a_run_is_named_by_data_settings_split_and_the_content_of_its_weights(tmp_path: Path) -> None:
    bins, path = few_bins(), tmp_path / "weights.safetensors"
    state = {name: value.contiguous() for name, value in build_network("resnet18", 4).state_dict().items()}
    save_file(state, path)

    def name(**changes: Any) -> str:
        made = config(**changes)
        return run_name(bins, made, read_start(made))

    first = name(weights=str(path))
    assert first == name(weights=str(path), on_unhealthy="stop", max_failures=5)
    save_file(state | {"conv1.weight": state["conv1.weight"] + 1}, path)
    others = [name(weights=str(path)), name(), name(seed=1), name(split_seed=1)]
    others += [name(test_share=0.2), name(selection_share=0.2)]
    assert len({first, *others}) == 7


def test_what_a_bundles_weights_have_learned_from_is_not_asked_for_and_stays_known(tmp_path: Path) -> None:
    bins = few_bins().append_column("image_sha256", pa.array([f"{i:064x}" for i in range(NUM_BINS)]))
    splits = assign_splits(bins, config())["split"].to_pylist()
    trained, selected, tested = (splits.index(split) for split in ("train", "selection", "test"))
    before = {trained: "test", selected: "selection", tested: "train", NUM_BINS: "selection", NUM_BINS + 1: "test"}
    seen = pa.table(
        {
            "image_sha256": [f"{i:064x}" for i in before],
            "bin_id": [f"before-{i}" for i in before],
            "split": list(before.values()),
        }
    )
    parent = write_bundle(tmp_path / "parent", seen=seen)
    start = read_start(config(weights=str(parent / "weights.safetensors"), top_class=6))
    assert start.bundle_id == read_bundle_info(parent).bundle_id
    assert start.weights == read_bundle_info(parent).weights_sha256
    found = split_bins(LabelledBins(bins, ()), config(), start.seen)
    assert found.left_out == {"photo_of_another_split": 1}
    gone = set(bins["bin_id"].to_pylist()) - set(found.table["bin_id"].to_pylist())
    assert gone == {bins["bin_id"][tested].as_py()}
    images = {row["image_sha256"]: row["split"] for row in all_photos(found.table, start.seen).to_pylist()}
    assert len(images) == NUM_BINS - 1 + 2
    expected = {trained: "train", selected: "selection", tested: "train", NUM_BINS: "selection"}
    assert {i: images.get(f"{i:064x}") for i in before} == expected | {NUM_BINS + 1: None}


def test_a_bundle_is_not_written_over_the_weights_that_it_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    manifest = write_dump(tmp_path / "dump")
    parent = write_bundle(tmp_path / "parent")
    weights = str(parent / "weights.safetensors")
    check_refused(capsys, flags(manifest, parent, weights=weights), "lies where the new bundle is written")


@pytest.mark.parametrize("weights", ["missing.pth", "missing.safetensors"])
def test_weights_that_are_nowhere_are_an_input_error(weights: str) -> None:
    with pytest.raises(InputError, match=f"weights: no file {weights}; .*'none'"):
        read_start(config(weights=weights))


def test_weights_may_lie_on_s3(tmp_path: Path, bucket: str) -> None:
    parent = write_bundle(tmp_path / "parent")
    storage.upload_folder(parent, f"{bucket}/parent", last="bundle.json")
    start = read_start(config(weights=f"{bucket}/parent/weights.safetensors", top_class=6))
    local = read_start(config(weights=str(parent / "weights.safetensors"), top_class=6))
    assert (start.bundle_id, start.weights) == (local.bundle_id, local.weights)
    assert all(torch.equal(value, local.state[name]) for name, value in start.state.items())
    with pytest.raises(InputError, match=f"weights: no file {bucket}/nothing.pth"):
        read_start(config(weights=f"{bucket}/nothing.pth"))


@pytest.mark.parametrize("source", ["AWS_REGION", "AWS_DEFAULT_REGION", "profile"])
def test_checkpoints_go_to_the_region_of_everything_else_and_carry_no_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    monkeypatch.delenv("AWS_REGION")
    if source == "profile":
        (tmp_path / "config").write_text("[profile stock]\nregion = eu-north-1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "stock")
    else:
        monkeypatch.setenv(source, "eu-north-1")
    path, filesystem = ray_storage("s3://bucket/bundle.training")
    assert path == "bucket/bundle.training"
    assert filesystem.region == s3.region() == "eu-north-1"
    assert b"tester-secret" not in pickle.dumps(filesystem)


def test_a_figure_of_one_group_is_printed_without_interval() -> None:
    assert format_interval({"value": 0.4, "low": None, "high": None}, ".1%") == "40.0%"
    assert format_interval({"value": 0.4, "low": 0.3, "high": 0.5}, ".1%") == "40.0% (30.0% to 50.0%)"


def check_refused(capsys: pytest.CaptureFixture, arguments: list[str], *texts: str) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    for text in texts:
        assert text in message


def test_a_bucket_alone_is_no_place_for_a_bundle(manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, ["--manifest-uri", manifest_uri, "--bundle-uri", "s3://stock"], "found the bucket alone")


def test_a_bundle_that_could_not_be_written_is_refused_before_anything_is_trained(
    manifest_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "bundle").write_bytes(b"a file")
    check_refused(capsys, flags(manifest_uri, tmp_path / "bundle"), f"{tmp_path}/bundle/_writable: can't be written")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_too_few_groups_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = write_dump(tmp_path / "dump", group=[f"g{i % 3}" for i in range(NUM_BINS)])
    check_refused(capsys, flags(uri, tmp_path / "b"), "group: expected at least 5 groups", "found 3")


def test_too_few_bins_exit_2(tmp_path: Path, manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, flags(manifest_uri, tmp_path / "b", batch_size=512), "expected at least 512 bins", "found 1")


def test_a_class_without_examples_exits_2(tmp_path: Path, manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, flags(manifest_uri, tmp_path / "b", top_class=6), "found none of 5, 6", "--top-class")


def test_a_negative_quantity_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    quantities = [i % 5 for i in range(NUM_BINS)]
    quantities[3] = -2
    uri = write_dump(tmp_path / "dump", expected_qty=quantities)
    check_refused(capsys, flags(uri, tmp_path / "b"), "expected_qty: expected 0 or more, found -2")


def test_a_bin_that_stands_twice_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = write_dump(tmp_path / "dump", bin_id=["00000", *[f"{i:05d}" for i in range(NUM_BINS - 1)]])
    check_refused(capsys, flags(uri, tmp_path / "b"), f"'00000' stands in 2 rows ({uri} row 1, {uri} row 2)")


def test_a_missing_manifest_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, flags(str(tmp_path / "none.parquet"), tmp_path / "b"), "none.parquet")


def test_missing_columns_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"bin_id": ["a"]}), uri)
    check_refused(capsys, flags(str(uri), tmp_path / "b"), "image_uri", "expected_qty", "num_skus")


def test_every_damaged_file_of_a_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = Path(write_dump(tmp_path / "dump")).parent / "parts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.parquet").write_bytes(b"no table")
    pq.write_table(pa.table({"bin_id": ["a"]}), folder / "c.parquet")
    check_refused(capsys, flags(str(folder), tmp_path / "b"), "a.parquet", "b.parquet", "c.parquet: column image_uri")


def test_weights_that_do_not_fit_exit_2(tmp_path: Path, manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    check_refused(capsys, flags(manifest_uri, tmp_path / "b", weights=path), "don't fit resnet18", "--weights none")


@pytest.mark.ray
def test_photos_that_are_nowhere_or_may_not_be_read_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    uri = write_dump(tmp_path / "gone", image_uri=[str(tmp_path / f"gone/bin-images/{i}.jpg") for i in range(NUM_BINS)])
    with pytest.raises(InputError, match=r"found none: 200 of 200 .*200 missing_image"):
        check_photos(read_labelled_bins(config(uri)), config())
    inside, outside = tmp_path / "dump" / "bin-images", tmp_path / "elsewhere" / "a.jpg"
    strange = [str(outside), f"{inside}/../../elsewhere/a.jpg", f"{inside}/a\tb.jpg", "s3://b/k"]
    uris = strange + [str(inside / f"{i:05d}.jpg") for i in range(len(strange), NUM_BINS)]
    made = config(write_dump(tmp_path / "dump", image_uri=uris))
    outside.parent.mkdir()
    shutil.copy(inside / "00009.jpg", outside)
    (inside / "00011.jpg").write_bytes(blank_frame())
    found = check_photos(read_labelled_bins(made), made)
    assert found.table.num_rows == NUM_BINS - len(strange) - 1
    assert sum(found.left_out.values()) == len(strange) + 1
    assert found.left_out["image_rejected"] >= 3
    assert found.left_out["poor_photo"] == 1
    with pytest.raises(GateError, match=r"5 of 200 photos can't be used .*--max-unusable-share allows 1%"):
        check_photos(read_labelled_bins(made), made.model_copy(update={"max_unusable_share": 0.01}))


def test_a_manifest_that_names_no_place_for_its_photos_needs_a_root(tmp_path: Path) -> None:
    uri = Path(write_dump(tmp_path / "dump"))
    pq.write_table(pq.read_table(uri).replace_schema_metadata(None), uri)
    with pytest.raises(InputError, match="--allowed-root"):
        read_labelled_bins(config(str(uri)))
    assert read_labelled_bins(config(str(uri), allowed_root=("/photos",))).roots == ("/photos",)


def test_what_else_a_manifest_holds_is_not_read(tmp_path: Path) -> None:
    """Two columns of one name, as a join leaves them, are none that audit or evaluation would refuse."""
    uri = Path(write_dump(tmp_path / "dump"))
    table = pq.read_table(uri)
    plain = read_labelled_bins(config(str(uri))).table
    for value in ("x", "y"):
        table = table.append_column("note", pa.array([value] * NUM_BINS))
    pq.write_table(table, uri)
    assert read_labelled_bins(config(str(uri))).table.equals(plain)


def test_bins_without_a_group_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = config(write_dump(tmp_path / "dump", group=[None, *["block"] * (NUM_BINS - 1)]))
    with caplog.at_level(logging.WARNING):
        assert read_labelled_bins(made).table["group"].to_pylist().count("00000") == 1
    assert "1 of 200 bins name no group" in caplog.text


def test_an_empty_image_uri_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = write_dump(tmp_path / "dump", image_uri=["", *["a.jpg"] * (NUM_BINS - 1)])
    check_refused(capsys, flags(uri, tmp_path / "b"), "row 1: image_uri: expected a text, found an empty one")


def test_a_seed_that_no_generator_takes_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, flags("m", tmp_path / "b", seed=2**32), "--seed: expected less than or equal to 4294967295")
    check_refused(capsys, flags("m", tmp_path / "b", split_seed=-1), "--split-seed")


def test_what_was_drawn_is_not_kept_as_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, flags("m", tmp_path / "b", unfreeze="head"), "--unfreeze: expected all with --weights none")


def test_one_photo_of_two_bins_is_not_learned_and_asked_for() -> None:
    bins = few_bins()
    splits = assign_splits(bins, config())["split"].to_pylist()
    photos = [f"{i}" for i in range(NUM_BINS)]
    tested, selected, trained = (splits.index(split) for split in ("test", "selection", "train"))
    photos[tested] = photos[trained]
    photos[splits.index("test", tested + 1)] = photos[selected]
    photos[splits.index("train", trained + 1)] = photos[trained]  # two that train may show the same
    checked = LabelledBins(bins.append_column("image_sha256", pa.array(photos)), (), {"missing_image": 1})
    found = split_bins(checked, config(), NOTHING_SEEN)
    assert found.left_out == {"missing_image": 1, "photo_of_another_split": 2}
    gone = set(bins["bin_id"].to_pylist()) - set(found.table["bin_id"].to_pylist())
    assert gone == {bins["bin_id"][i].as_py() for i in (tested, splits.index("test", tested + 1))}
    one = LabelledBins(bins.append_column("image_sha256", pa.array(["same"] * NUM_BINS)), ())
    with pytest.raises(InputError, match="2 groups and 10 bins with photos of their own for selection, found 0 and 0"):
        split_bins(one, config(), NOTHING_SEEN)
    # two groups are left, of one bin each
    found_at = [i for i, split in enumerate(splits) if split == "test"]
    groups = bins["group"].to_pylist()
    kept = {groups[i]: i for i in found_at}
    photos = [photos[trained] if i in set(found_at) - set(kept.values()) else f"{i}" for i in range(NUM_BINS)]
    few = LabelledBins(bins.append_column("image_sha256", pa.array(photos)), ())
    with pytest.raises(InputError, match=rf"for test, found {len(kept)} and {len(kept)}: "):
        split_bins(few, config(), NOTHING_SEEN)


@pytest.mark.ray
def test_a_photo_that_can_never_be_fetched_is_left_out(ray_cluster: None, tmp_path: Path) -> None:
    made = config(write_dump(tmp_path / "dump"))
    photo = tmp_path / "dump" / "bin-images" / "00003.jpg"
    photo.unlink()
    photo.symlink_to(photo)  # neither gone nor to be read
    assert check_photos(read_labelled_bins(made), made).left_out == {"fetch_failed": 1}


@pytest.mark.ray
@pytest.mark.s3
def test_a_photo_that_changed_since_it_was_listed_is_left_out(ray_cluster: None, bucket: str) -> None:
    write_photos(f"{bucket}/bin-images", [1, 2])
    etags = [entry.etag for entry in storage.list_objects(f"{bucket}/bin-images")]
    uri = f"{bucket}/manifest"
    table = manifest_table(f"{bucket}/bin-images", [1, 2], image_etag=etags)
    write_table(join(uri, "part-0.parquet"), table)
    write_photos(f"{bucket}/bin-images", [5])  # the first bin's
    made = config(uri, max_unusable_share=0.5)
    found = check_photos(read_labelled_bins(made), made)
    assert found.left_out == {"fetch_failed": 1}
    assert found.table["bin_id"].to_pylist() == ["00001"]
    assert "image_etag" not in found.table.column_names


@pytest.mark.ray
@pytest.mark.slow  # what its worker says stands in test_photos.py
def test_a_photo_that_is_replaced_during_a_training_ends_it_and_is_named(ray_cluster: None, tmp_path: Path) -> None:
    made = config(write_dump(tmp_path / "dump"))
    start = read_start(made)
    bins = split_bins(check_photos(read_labelled_bins(made), made), made, start.seen).table
    replaced = next(row["image_uri"] for row in bins.to_pylist() if row["split"] == "train")
    Path(replaced).write_bytes(draw_dots(9, np.random.default_rng(1)))
    with pytest.raises(GateError, match=rf"{replaced}: another photo than when training began; put the former back"):
        train_network(bins, made, start, str(tmp_path / "t"))


def test_bins_whose_stock_has_moved_since_the_photo_do_not_train(tmp_path: Path) -> None:
    moves = [1 if i == 4 else None if i == 5 else 0 for i in range(NUM_BINS)]
    found = read_labelled_bins(config(write_dump(tmp_path / "some", moves_since_photo=moves)))
    assert set(found.table["bin_id"].to_pylist()) == {f"{i:05d}" for i in range(NUM_BINS)} - {"00004"}
    assert found.left_out == {"moved": 1}
    with pytest.raises(InputError, match="moves_since_photo: expected bins whose stock has not moved"):
        read_labelled_bins(config(write_dump(tmp_path / "all", moves_since_photo=[2] * NUM_BINS)))


def test_a_finished_run_can_be_removed_twice(tmp_path: Path) -> None:
    (tmp_path / "t" / "run" / "inputs").mkdir(parents=True)
    remove_run(str(tmp_path / "t" / "run"))
    assert not (tmp_path / "t").exists()
    remove_run(str(tmp_path / "t" / "run"))  # a search that was killed between this and its record


@pytest.mark.ray
def test_more_workers_than_micro_batches_are_refused(checked: LabelledBins, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--num-workers: expected at most 2"):
        train(checked, tmp_path, num_workers=3)


def test_the_fingerprint_covers_records_and_not_the_layout(tmp_path: Path, manifest_uri: str) -> None:
    bins = read_labelled_bins(config(manifest_uri)).table
    table = read_table(manifest_uri)
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(120), tmp_path / "parts" / "a.parquet")
    pq.write_table(table.slice(0, 120), tmp_path / "parts" / "b.parquet")
    assert fingerprint(read_labelled_bins(config(str(tmp_path / "parts"))).table) == fingerprint(bins)
    changed = bins.set_column(2, "expected_qty", pa.array([7, *bins["expected_qty"].to_pylist()[1:]], pa.int32()))
    assert fingerprint(changed) != fingerprint(bins)


def test_the_flags_of_the_job_are_these() -> None:
    assert set(TrainConfig.model_fields) == {
        *("manifest_uri", "bundle_uri", "num_workers", "selection_share", "test_share", "on_unhealthy"),
        *("max_failures", "trace_steps", "architecture", "weights", "initialisation", "unfreeze", "image_size"),
        *("progressive_resizing", "augmentation", "top_class", "targets", "auxiliary", "max_epochs", "patience"),
        *("batch_size", "micro_batch_size", "optimiser", "learning_rate", "weight_decay", "schedule"),
        *("averaging_epochs", "test_time_flip", "mixed_precision", "seed", "split_seed", "anonymous"),
        *("allowed_root", "max_unusable_share"),
    }
    assert all(field.description for field in TrainConfig.model_fields.values())


@pytest.mark.parametrize("job", [train_job.run_train, tune_job.run_tune], ids=["train", "tune"])
def test_bins_are_split_by_what_the_loaded_weights_have_seen(
    job: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, given = object(), []

    def note(bins: Any, config: Any, before: Any) -> None:
        given.append(before)
        raise GateError("far enough")

    stubs: dict[str, Any] = {
        "read_labelled_bins": lambda config: SimpleNamespace(table=None),
        "assign_splits": lambda *some: None,
        "read_start": lambda config: SimpleNamespace(seen=seen),
        "connect": lambda **some: nullcontext(),
        "await_workers": lambda *some: None,
        "check_photos": lambda bins, config: bins,
        "split_bins": note,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(sys.modules[job.__module__], name, stub)
    made = TuneConfig(manifest_uri="m", bundle_uri="b") if job is tune_job.run_tune else config()
    with pytest.raises(GateError, match="far enough"):
        job(made)
    assert given == [seen]


class LastBlockFirst:
    """In place of Ray Data, which gives blocks back in the order in which they end."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.blocks = blocks

    def map_batches(self, check: Callable[..., pa.Table], *, fn_kwargs: Any, **options: Any) -> LastBlockFirst:
        return LastBlockFirst([check(block, **fn_kwargs) for block in self.blocks])

    def iter_batches(self, **options: Any) -> Iterator[pa.Table]:
        return reversed(self.blocks)


@pytest.fixture
def blocks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_bins, "ROWS_PER_TASK", 50)
    monkeypatch.setattr(labelled_bins, "task_pool", lambda num_blocks: None)
    monkeypatch.setattr(labelled_bins.ray.data, "from_blocks", LastBlockFirst)


def test_a_photo_s_hash_is_its_bin_s_in_whatever_order_blocks_end(blocks_in_any_order: None, tmp_path: Path) -> None:
    made = config(write_dump(tmp_path / "dump"))
    (tmp_path / "dump" / "bin-images" / "00003.jpg").unlink()
    found = check_photos(read_labelled_bins(made), made)
    assert found.left_out == {"missing_image": 1} and found.table.num_rows == NUM_BINS - 1
    for row in found.table.to_pylist():
        assert row["image_sha256"] == hashlib.sha256(Path(row["image_uri"]).read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_manifest_that_is_written_anew_while_it_is_read_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    table = read_table(write_dump(tmp_path / "dump"))
    uri, first = str(tmp_path / "manifest"), tmp_path / "manifest" / "part-00000.parquet"
    write_table(str(first), table.slice(0, 100))
    write_table(str(first.with_name("part-00001.parquet")), table.slice(100))
    read_bytes = storage.read_bytes

    def replaced_meanwhile(name: str) -> bytes:
        data = read_bytes(name)
        second = first.with_name("part-00001.parquet")
        second.unlink() if change == "gone" else write_table(str(second), table.slice(150))
        return data

    monkeypatch.setattr(storage, "read_bytes", replaced_meanwhile)
    with pytest.raises(InputError, match="was written anew while it was read"):
        read_labelled_bins(config(uri))


def test_a_photo_that_storage_did_not_deliver_is_waited_for(
    blocks_in_any_order: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(rows: pa.Table, *some: Any) -> list[Photo]:
        gone = Photo(ImageStatus.FETCH_FAILED, "503", gave_up=True)
        sound = Photo(ImageStatus.SCORED, None, None, bytes(32))
        return [gone if uri.endswith("00003.jpg") else sound for uri in rows["image_uri"].to_pylist()]

    monkeypatch.setattr(labelled_bins, "fetch_photos", fetch)
    made = config(write_dump(tmp_path / "dump"))
    with pytest.raises(GateError, match=r"1 of 200 photos .*when storage is back, the same command goes on"):
        check_photos(read_labelled_bins(made), made)
