"""Training end to end on generated dots: the bundle, the resume, the workers, and every bad input's message."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable
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
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import save_file

from jobs import train as train_job
from jobs import tune as tune_job
from jobs.config.train import TrainConfig
from jobs.config.tune import TuneConfig
from jobs.train import main
from jobs.training import bundle as trained_bundle
from jobs.training import trainer
from jobs.training.bundle import TRACE_FILE
from jobs.training.bundle import write_bundle as write_trained_bundle
from jobs.training.labelled_bins import LabelledBins, check_photos, read_labelled_bins
from jobs.training.splits import split_bins
from jobs.training.start import Start, read_start
from jobs.training.trainer import FINDINGS_FILE, Trained, TrainingStoppedError, _reason, run_name, train_network
from model.bundle import load_bundle
from model.bundle_files import read_training_images
from model.calibration import calibrate
from model.images import decode_image
from model.learner import TOO_LARGE
from model.metrics import evaluate_counts
from model.network import build_network
from model.progress import NOT_FINITE, UNHEALTHY
from model.scoring import Scorer
from model.training import STATE_FILE
from schemas.errors import GateError, InputError
from tests.dots import NUM_BINS, draw_dots, few_bins, training_config, training_flags, write_dump
from tests.dump import write_bundle


def train(
    checked: LabelledBins,
    training_uri: Path,
    *,
    callbacks: list[Any] | None = None,
    conclude: tuple[str, ...] = ("selection", "test"),
    **changes: Any,
) -> Trained:
    made = training_config(**changes)
    start = read_start(made)
    bins = split_bins(checked, made, start.seen).table
    # a worker that is alone has as many threads as one of two: more of them add up in another order, which AdamW's first
    # steps, of a gradient's sign, amplify to percents of the loss
    num_runs = 2 // made.num_workers
    return train_network(
        bins, made, start, str(training_uri), callbacks=callbacks, conclude=conclude, num_runs=num_runs
    )


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
    made = training_config(manifest_uri)
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
        assert main([*training_flags(manifest_uri, tmp_path / "bundle", trace_steps=1), "--no-mixed-precision"]) == 0
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
    of_others = evaluate_counts(fitted.held_out_probabilities, labels[chosen], groups[chosen])
    assert bundle.info.metrics["selection"] == of_others, "by fits that have not seen the bin"
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
    assert main(training_flags(manifest_uri, tmp_path / "bundle", **changes)) == 1
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


def stub_trainer(monkeypatch: pytest.MonkeyPatch, fit: Callable[[], Any]) -> list[str]:
    """Puts one in place of Ray Train's; to be filled with what a training is told to do when it is unhealthy."""
    told: list[str] = []

    def make_trainer(loop: object, *, train_loop_config: dict[str, Any], **named: object) -> SimpleNamespace:
        told.append(train_loop_config["settings"].on_unhealthy)
        return SimpleNamespace(fit=fit)

    monkeypatch.setattr(trainer, "plan_workers", lambda *given: (None, 1))
    monkeypatch.setattr(trainer, "controller_environment", nullcontext)
    monkeypatch.setattr(trainer, "TorchTrainer", make_trainer)
    return told


@pytest.mark.parametrize("reason", [UNHEALTHY, NOT_FINITE])
def test_an_unhealthy_training_ends_with_its_findings_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    finding = {"rule": "poor_initialisation", "message": "The weights are all alike.", "evidence": {}, "epoch": 1}
    outcome = {"stopped": f"{reason} in epoch 1: poor_initialisation", "findings": [finding]}
    told = stub_trainer(monkeypatch, lambda: SimpleNamespace(return_value=outcome, checkpoint=object()))
    made = training_config(on_unhealthy="stop")
    with pytest.raises(TrainingStoppedError, match=rf"{reason} in epoch 1: .*poor_initialisation"):
        train_network(few_bins(), made, read_start(made), str(tmp_path))
    (findings,) = tmp_path.glob(f"*/{FINDINGS_FILE}")
    assert json.loads(findings.read_text()) == [finding]
    assert told == ["stop"]


@pytest.mark.parametrize(("reason", "goes_on"), [(f"32 photos {TOO_LARGE}: lower --image-size", False), ("503", True)])
def test_a_training_that_failed_names_the_same_command_where_that_would_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, goes_on: bool
) -> None:
    made = training_config()
    start = read_start(made)
    snapshot = tmp_path / run_name(few_bins(), made, start) / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir()
    snapshot.touch()  # as a power cut leaves it: every later try would end by it

    def fail() -> None:
        assert not snapshot.exists()
        raise WorkerGroupError("Ray's own words", {0: UserExceptionWithTraceback(RuntimeError(reason), "a traceback")})

    stub_trainer(monkeypatch, fail)
    with pytest.raises(GateError, match=f"training failed: {reason}") as failed:
        train_network(few_bins(), made, start, str(tmp_path))
    assert ("the same command continues from" in str(failed.value)) is goes_on


def test_an_older_bundle_is_none_any_more_before_its_weights_are_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / TRACE_FILE).write_bytes(b"of the older one")

    def die(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    fitted = SimpleNamespace(
        calibration=SimpleNamespace(model_dump=dict), prediction_set_threshold=0.9, num_calibration=10,
        record_outside_set_share=0.1, num_independent=10, held_out_probabilities=None,
    )  # fmt: skip
    network = build_network("resnet18", 4)
    for name, value in {
        "calibrate": fitted,
        "apply_calibration": None,
        "evaluate_counts": {},
        "save_bundle": None,
    }.items():
        monkeypatch.setattr(trained_bundle, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(trained_bundle, "resnet_state", lambda state: network.state_dict())
    monkeypatch.setattr(trained_bundle, "render_training_report", lambda **_: "")
    monkeypatch.setattr(trained_bundle, "all_photos", lambda *_: None)
    monkeypatch.setattr(trained_bundle.storage, "upload_folder", die)
    rows, logits = ({split: np.arange(3) for split in ("selection", "test")} for _ in range(2))
    outcome: dict[str, Any] = {"rows": rows, "logits": logits, "best_epoch": 0, "history": [], "trace": None}
    outcome |= {"stopped": None, "precision": "fp32", "activation_ranges": {}}
    made = training_config().model_copy(update={"bundle_uri": str(folder)})
    bins = few_bins().append_column("split", pa.array(["train"] * NUM_BINS))
    start: Any = SimpleNamespace(weights="none", bundle_id=None, seen=None)
    with pytest.raises(KeyboardInterrupt):
        write_trained_bundle(LabelledBins(bins, ()), made, start, Trained(outcome, {}, "t"))
    assert not (folder / "bundle.json").exists() and not (folder / TRACE_FILE).exists()


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


def test_a_run_is_named_by_data_settings_split_and_the_content_of_its_weights(tmp_path: Path) -> None:
    bins, path = few_bins(), tmp_path / "weights.safetensors"
    state = {name: value.contiguous() for name, value in build_network("resnet18", 4).state_dict().items()}
    save_file(state, path)

    def name(**changes: Any) -> str:
        made = training_config(**changes)
        return run_name(bins, made, read_start(made))

    first = name(weights=str(path))
    assert first == name(weights=str(path), on_unhealthy="stop", max_failures=5)
    save_file(state | {"conv1.weight": state["conv1.weight"] + 1}, path)
    others = [name(weights=str(path)), name(), name(seed=1), name(split_seed=1)]
    others += [name(test_share=0.2), name(selection_share=0.2)]
    assert len({first, *others}) == 7


def test_a_bundle_is_not_written_over_the_weights_that_it_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    manifest = write_dump(tmp_path / "dump")
    parent = write_bundle(tmp_path / "parent")
    weights = str(parent / "weights.safetensors")
    check_refused(capsys, training_flags(manifest, parent, weights=weights), "lies where the new bundle is written")


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
    check_refused(
        capsys, training_flags(manifest_uri, tmp_path / "bundle"), f"{tmp_path}/bundle/_writable: can't be written"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_too_few_groups_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = write_dump(tmp_path / "dump", group=[f"g{i % 3}" for i in range(NUM_BINS)])
    check_refused(capsys, training_flags(uri, tmp_path / "b"), "group: expected at least 5 groups", "found 3")


def test_too_few_bins_exit_2(tmp_path: Path, manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    check_refused(
        capsys, training_flags(manifest_uri, tmp_path / "b", batch_size=512), "expected at least 512 bins", "found 1"
    )


def test_a_class_without_examples_exits_2(tmp_path: Path, manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    check_refused(
        capsys, training_flags(manifest_uri, tmp_path / "b", top_class=6), "found none of 5, 6", "--top-class"
    )


def test_a_negative_quantity_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    quantities = [i % 5 for i in range(NUM_BINS)]
    quantities[3] = -2
    uri = write_dump(tmp_path / "dump", expected_qty=quantities)
    check_refused(capsys, training_flags(uri, tmp_path / "b"), "expected_qty: expected 0 or more, found -2")


def test_a_bin_that_stands_twice_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = write_dump(tmp_path / "dump", bin_id=["00000", *[f"{i:05d}" for i in range(NUM_BINS - 1)]])
    check_refused(capsys, training_flags(uri, tmp_path / "b"), f"'00000' stands in 2 rows ({uri} row 1, {uri} row 2)")


def test_a_missing_manifest_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_refused(capsys, training_flags(str(tmp_path / "none.parquet"), tmp_path / "b"), "none.parquet")


def test_missing_columns_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"bin_id": ["a"]}), uri)
    check_refused(capsys, training_flags(str(uri), tmp_path / "b"), "image_uri", "expected_qty", "num_skus")


def test_every_damaged_file_of_a_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = Path(write_dump(tmp_path / "dump")).parent / "parts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.parquet").write_bytes(b"no table")
    pq.write_table(pa.table({"bin_id": ["a"]}), folder / "c.parquet")
    check_refused(
        capsys, training_flags(str(folder), tmp_path / "b"), "a.parquet", "b.parquet", "c.parquet: column image_uri"
    )


def test_weights_that_do_not_fit_exit_2(tmp_path: Path, manifest_uri: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    check_refused(
        capsys, training_flags(manifest_uri, tmp_path / "b", weights=path), "don't fit resnet18", "--weights none"
    )


def test_an_empty_image_uri_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = write_dump(tmp_path / "dump", image_uri=["", *["a.jpg"] * (NUM_BINS - 1)])
    check_refused(capsys, training_flags(uri, tmp_path / "b"), "row 1: image_uri: expected a text, found an empty one")


def test_a_seed_that_no_generator_takes_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_refused(
        capsys, training_flags("m", tmp_path / "b", seed=2**32), "--seed: expected less than or equal to 4294967295"
    )
    check_refused(capsys, training_flags("m", tmp_path / "b", split_seed=-1), "--split-seed")


def test_what_was_drawn_is_not_kept_as_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_refused(
        capsys, training_flags("m", tmp_path / "b", unfreeze="head"), "--unfreeze: expected all with --weights none"
    )


@pytest.mark.ray
@pytest.mark.slow  # what its worker says stands in test_photos.py
def test_a_photo_that_is_replaced_during_a_training_ends_it_and_is_named(ray_cluster: None, tmp_path: Path) -> None:
    made = training_config(write_dump(tmp_path / "dump"))
    start = read_start(made)
    bins = split_bins(check_photos(read_labelled_bins(made), made), made, start.seen).table
    replaced = next(row["image_uri"] for row in bins.to_pylist() if row["split"] == "train")
    Path(replaced).write_bytes(draw_dots(9, np.random.default_rng(1)))
    with pytest.raises(GateError, match=rf"{replaced}: another photo than when training began; put the former back"):
        train_network(bins, made, start, str(tmp_path / "t"))


@pytest.mark.ray
def test_more_workers_than_micro_batches_are_refused(checked: LabelledBins, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--num-workers: expected at most 2"):
        train(checked, tmp_path, num_workers=3)


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
    made = TuneConfig(manifest_uri="m", bundle_uri="b") if job is tune_job.run_tune else training_config()
    with pytest.raises(GateError, match="far enough"):
        job(made)
    assert given == [seen]
