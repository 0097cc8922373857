"""The search: its table, page and bundle, failed trials, the restart, and two trials on two CPUs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import save_file

from jobs import tune
from jobs.config.tune import TuneConfig
from jobs.platform import storage
from jobs.training.checkpoints import remove_run
from jobs.training.trainer import TrainingStoppedError
from jobs.tune import main, require_whole_search
from jobs.tuning import search
from jobs.tuning.page import render_search
from jobs.tuning.search import PROGRESS, first_rung_percent, progress
from jobs.tuning.space import SETTINGS, image_sizes, search_space, trial_config
from jobs.tuning.trials import (
    COMPLETED,
    FAILED,
    STOPPED_EARLY,
    TRIALS_SCHEMA,
    TrialRecord,
    Trials,
    format_trials,
    ranked,
)
from model.bundle import load_bundle
from model.bundle_files import read_bundle_info
from model.learner import TOO_LARGE
from model.network import build_network
from schemas.errors import GateError, InputError
from tests.conftest import S3_ENVIRONMENT
from tests.dump import write_bundle, write_dump

NUM_BINS = 140


@pytest.fixture(scope="module")
def manifest_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dump(str(tmp_path_factory.mktemp("dump")), NUM_BINS)


def flags(manifest_uri: str, folder: Path, **changes: Any) -> list[str]:
    values = {
        "manifest_uri": manifest_uri,
        "bundle_uri": folder / "bundle",
        "architecture": "resnet18",
        "image_size": 32,
        "top_class": 3,
        "max_epochs": 2,
        "num_trials": 2,
        "max_failures": 0,
    } | changes
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def record(number: int, *nlls: float, **fields: Any) -> TrialRecord:
    """A trial of 64 pixels whose epochs had these selection NLLs, the first one on photos of half the size."""
    drawn = {"learning_rate": 0.01 * number}
    made = TrialRecord(number, drawn, {"image_size": 64, "max_epochs": 4} | drawn)
    for epoch, nll in enumerate(nlls):
        made.add_epoch({"epoch": epoch, "image_size": 64 if epoch else 32, "selection_nll": nll, "seconds": 2.0})
    made.end(**{"status": COMPLETED} | fields)
    return made


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:Fixed parameter:UserWarning")  # the trial that has failed is outside the space
def test_a_search_lists_a_failed_trial_goes_on_and_writes_the_best_bundle(
    ray_cluster: None,
    manifest_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = tmp_path / "bundle.search"
    (search / "trials").mkdir(parents=True)
    drawn = {"learning_rate": 1e12, "batch_size": 32, "max_epochs": 2}
    settings = trial_config(TuneConfig(manifest_uri="m", bundle_uri="b", image_size=32), drawn)
    failed = TrialRecord(1, drawn, {name: getattr(settings, name) for name in SETTINGS})
    failed.end(FAILED, "the loss is not a finite number in epoch 1")  # how one really fails stands below
    (search / "trials" / "00001.json").write_text(json.dumps(asdict(failed)))
    arguments = flags(manifest_uri, tmp_path, optimiser="sgd")

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    table = pq.read_table(search / "trials.parquet")
    assert table.schema.equals(TRIALS_SCHEMA)
    rows = table.to_pylist()
    assert [row["trial"] for row in rows] == [1, 2]
    assert rows[0]["status"] == FAILED
    assert "not a finite number" in rows[0]["reason"]
    assert rows[0]["selection_nll"] is None
    for row in rows[1:]:
        assert row["status"] in (COMPLETED, STOPPED_EARLY)
        assert 1e-3 <= row["learning_rate"] <= 1e-1
        assert row["batch_size"] in (16, 32, 64)
        assert [epoch["epoch"] for epoch in row["epochs"]] == list(range(len(row["epochs"])))
        assert row["seconds"] > 0
    best = min(rows[1:], key=lambda row: row["selection_nll"])
    bundle = load_bundle(tmp_path / "bundle")
    assert best["status"] == COMPLETED
    assert best["bundle_id"] == bundle.info.bundle_id
    assert bundle.info.training["learning_rate"] == best["learning_rate"]
    assert bundle.info.training["epochs"] == len(best["epochs"]) == 2
    assert bundle.info.metrics["test"]["all"]["num_bins"] > 0
    assert f"best: trial {best['trial']}" in printed
    page = (search / "search.html").read_text()
    assert "not a finite number" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not (search / "training").exists()
    # else a search that goes on and finds a better trial looks for the checkpoints of this one
    assert [json.loads(path.read_text())["run"] for path in (search / "trials").iterdir()] == [None, None]

    monkeypatch.setattr("jobs.tuning.search.tune.Tuner", None)
    assert main(arguments) == 0  # nothing is left to do: no trial trains again, and the test bins stay unseen
    assert "stands in" in capsys.readouterr().out
    assert pq.read_table(search / "trials.parquet").to_pylist() == rows

    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    secret = S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode()
    # Ray writes there what each process starts with
    assert [path.name for path in logs.rglob("*") if path.is_file() and secret in path.read_bytes()] == []

    assert main(flags(manifest_uri, tmp_path, optimiser="sgd", seed=1)) == 2
    assert "other settings (seed)" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_where_all_trials_fail_there_is_no_bundle_and_the_exit_code_is_1(
    ray_cluster: None, manifest_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    network = build_network("resnet18", 4)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    huge = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(huge, tmp_path / "huge.safetensors")
    changes = {"weights": tmp_path / "huge.safetensors", "num_trials": 1}
    assert main(flags(manifest_uri, tmp_path, **changes)) == 1
    assert "all 1 trials failed" in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "bundle.search" / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == [FAILED]
    assert all("not a finite number" in row["reason"] for row in rows)
    assert not (tmp_path / "bundle").exists()


SEARCH_ON_TWO_CPUS = """
import sys
import ray
from jobs.tune import main
ray.init(num_cpus=2, include_dashboard=False)
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_search_of_two_trials_at_a_time_on_two_cpus_continues_and_repeats_none(
    manifest_uri: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SEARCH_ON_TWO_CPUS, *flags(manifest_uri, tmp_path, num_trials=4, max_concurrent=2)]
    folder = tmp_path / "bundle.search" / "trials"

    def ended() -> dict[str, str]:
        texts = {path.name: path.read_text() for path in folder.glob("*.json")}
        return {name: text for name, text in texts.items() if json.loads(text)["final"]}

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 600
        while not ended() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    before = ended()
    assert 1 <= len(before) < 4
    assert not (tmp_path / "bundle").exists()

    subprocess.run(command, check=True, timeout=900)
    rows = pq.read_table(tmp_path / "bundle.search" / "trials.parquet").to_pylist()
    assert [row["trial"] for row in rows] == [1, 2, 3, 4]
    assert len({row["learning_rate"] for row in rows}) == 4
    assert load_bundle(tmp_path / "bundle").info.bundle_id in {row["bundle_id"] for row in rows}
    after = ended()
    for name, text in before.items():
        # a second training would have taken other seconds
        assert json.loads(after[name])["epochs"][: len(json.loads(text)["epochs"])] == json.loads(text)["epochs"]


def test_trials_are_ranked_by_their_best_epoch_on_whole_photos_and_failed_ones_left_out() -> None:
    records = [
        record(1, 0.1, 1.4, 1.3),
        record(2, 1.5, 1.2, 1.6, status=STOPPED_EARLY),
        record(3, 0.5, status=STOPPED_EARLY),
        record(4, 0.1, 0.2, status=FAILED, reason="the loss is not a finite number"),
    ]
    assert [found.number for found in ranked(records)] == [2, 1, 3]
    assert [found.selection_nll for found in records] == [1.3, 1.2, None, None]
    text = format_trials(records, ["learning_rate"])
    assert "trial 4: the loss is not a finite number" in text
    assert text.splitlines()[2].split() == ["2", "stopped", "early", "0.02", "3/4", "1.2000", "6"]


def test_a_search_whose_trials_were_cut_short_is_not_done() -> None:
    ended = [record(1, 1.4, 1.3), record(2, 1.5, status=STOPPED_EARLY), record(3, status=FAILED, reason="not finite")]
    require_whole_search(ended, ended[0])
    lost = record(4, status=FAILED, reason="storage is away", final=False)
    with pytest.raises(
        GateError, match=r"1 of 4 trials were cut short \(trial 4: storage is away\); the bundle is.*again"
    ):
        require_whole_search([*ended, lost], ended[0])
    with pytest.raises(GateError, match=r"1 of 1 trials were cut short .*; no bundle is written; the same command"):
        require_whole_search([lost], None)
    with pytest.raises(GateError, match=r"all 1 trials failed.*change the settings"):
        require_whole_search([record(1, status=FAILED, reason="not finite")], None)


def test_trials_are_compared_on_photos_of_one_size() -> None:
    config = TuneConfig(manifest_uri="m", bundle_uri="b")
    for settings in (config, config.model_copy(update={"weights": "IMAGENET1K_V2"})):
        rung = first_rung_percent(settings)
        compared = [
            (trial, epoch)
            for trial in (trial_config(settings, {"max_epochs": number}) for number in range(2, 7))
            for epoch in range(trial.max_epochs)
            if progress({"epoch": epoch}, trial.max_epochs).get(PROGRESS, 0) >= rung
        ]
        assert {trial.image_size_of(epoch) for trial, epoch in compared} == {config.image_size}
        # a trial that is done is no measure for those under way
        assert not [epoch for trial, epoch in compared if epoch == trial.max_epochs - 1]
    assert first_rung_percent(config.model_copy(update={"space": "wide"})) == 25


def test_the_spaces_are_those_of_the_help() -> None:
    seed = search_space(TuneConfig(manifest_uri="m", bundle_uri="b"))
    assert set(seed) == {"learning_rate", "batch_size", "max_epochs"}
    assert {seed["max_epochs"].sample() for _ in range(200)} == {2, 3, 4, 5, 6}
    capped = search_space(TuneConfig(manifest_uri="m", bundle_uri="b", max_epochs=3))
    assert {capped["max_epochs"].sample() for _ in range(100)} == {2, 3}
    wide = TuneConfig(manifest_uri="m", bundle_uri="b", space="wide")
    assert set(search_space(wide)) == {"learning_rate", "weight_decay", "augmentation", "targets", "image_size"}
    loaded = wide.model_copy(update={"weights": "IMAGENET1K_V2"})
    assert set(search_space(loaded)) - set(search_space(wide)) == {"unfreeze"}
    assert image_sizes(112) == [64, 80, 112]


def test_a_setting_that_is_searched_can_not_be_given(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(flags("m", tmp_path, learning_rate=0.01)) == 2
    assert "--learning-rate: is searched in --space seed" in " ".join(capsys.readouterr().err.split())


def test_a_bundle_that_could_not_be_written_is_refused_before_anything_is_searched(
    manifest_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "bundle").write_bytes(b"a file")
    assert main(flags(manifest_uri, tmp_path)) == 2
    assert f"{tmp_path}/bundle/_writable: can't be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_micro_batches_must_fill_every_batch_that_is_searched(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(flags("m", tmp_path, micro_batch_size=48)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--micro-batch-size: expected a divisor of every batch size that is searched (16, 32, 64), found 48" in said


def test_the_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    config = TuneConfig(manifest_uri="m", bundle_uri="b")
    Trials(config, str(tmp_path), "data", "weights")
    Trials(config.model_copy(update={"num_trials": 20, "max_concurrent": 2}), str(tmp_path), "data", "weights")
    with pytest.raises(InputError, match=r"other settings \(space, data\)"):
        Trials(config.model_copy(update={"space": "wide"}), str(tmp_path), "other data", "weights")
    with pytest.raises(InputError, match=r"other settings \(weights\)"):
        Trials(config, str(tmp_path), "data", "other weights")


def test_what_a_power_cut_leaves_of_a_search_s_records_is_as_if_it_had_not_been_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TuneConfig(manifest_uri="m", bundle_uri="b")
    trials = Trials(config, str(tmp_path), "data", "weights")
    drawn = [{"learning_rate": rate, "batch_size": 32, "max_epochs": 2} for rate in (0.01, 0.02, 0.03, 0.04)]
    for parameters in drawn[:3]:
        trials.save(trials.of(parameters))
    for name in ("search.json", "trials/00002.json"):
        (tmp_path / name).write_bytes(b"")
    again = Trials(config, str(tmp_path), "data", "weights")
    assert [record.parameters for record in again.records] == [drawn[0], drawn[2]]
    assert caplog.text.count("damaged, as by a power cut") == 2
    assert (again.of(drawn[3]).number, again.of(drawn[2]).number) == (4, 3)
    with pytest.raises(InputError, match=r"other settings \(data\)"):
        Trials(config, str(tmp_path), "other data", "weights")


def test_records_of_a_search_that_may_not_be_read_are_not_taken_for_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = TuneConfig(manifest_uri="m", bundle_uri="b")
    Trials(config, str(tmp_path), "data", "weights")
    before = (tmp_path / "search.json").read_bytes()

    def denied(uri: str, *, anonymous: bool = False) -> bytes:
        raise InputError(f"{uri}: can't be read")

    monkeypatch.setattr(storage, "read_bytes", denied)
    with pytest.raises(InputError, match=r"search\.json: can't be read"):
        Trials(config, str(tmp_path), "data", "weights")
    assert (tmp_path / "search.json").read_bytes() == before


def test_the_page_s_test_figures_are_those_of_the_trial_that_became_the_bundle(tmp_path: Path) -> None:
    """Trained anew for it, that one may have ended behind another."""
    config = TuneConfig(manifest_uri="m", bundle_uri="b")
    trials = Trials(config, str(tmp_path / "search"), "data", "weights")
    for rate, nll in ((0.01, 0.51), (0.02, 0.53)):
        trial = trials.of({"learning_rate": rate, "batch_size": 32, "max_epochs": 2})
        epoch = {"epoch": 0, "image_size": trial.settings["image_size"], "selection_nll": nll, "seconds": 2.0}
        trial.add_epoch(epoch)
        trial.end(COMPLETED)
    records = trials.records
    records[1].bundle_id = "b"
    info = read_bundle_info(write_bundle(tmp_path / "bundle")).model_copy(
        update={"bundle_id": "b", "metrics": {"test": {}}}
    )
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render_search(config, records, info)))
    assert "The bundle of trial 2 on test bins" in page
    assert "0.5100 trial 1;" in page
    assert "The bundle of trial" not in re.sub(r"<[^>]+>", " ", render_search(config, records, None))


def test_a_bundle_that_is_no_longer_whole_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = Trials(TuneConfig(manifest_uri="m", bundle_uri="b"), str(tmp_path / "s"), "data", "weights").of({})
    folder = write_bundle(tmp_path / "bundle")
    record.bundle_id = read_bundle_info(folder).bundle_id
    found = tune.written_bundle(str(folder), record)
    assert found is not None and found.bundle_id == record.bundle_id
    (folder / "weights.safetensors").unlink()
    assert tune.written_bundle(str(folder), record) is None
    assert "it is written anew" in caplog.text


def test_the_checkpoints_of_a_bundle_that_stands_already_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials = Trials(TuneConfig(manifest_uri="m", bundle_uri="b"), str(tmp_path), "data", "weights")
    best = trials.of({"learning_rate": 0.01, "batch_size": 32, "max_epochs": 2})
    best.end(COMPLETED)
    best.run = "run"
    (tmp_path / "training" / "run").mkdir(parents=True)
    written = SimpleNamespace(bundle_id="b")
    monkeypatch.setattr(tune, "written_bundle", lambda uri, found: written)
    bins, start = cast(Any, None), cast(Any, None)
    assert tune.finish_best(bins, start, trials) == (best, written)
    assert not (tmp_path / "training").exists()
    assert Trials(trials.config, str(tmp_path), "data", "weights").records[0].run is None


def test_a_removal_that_is_cut_short_leaves_no_snapshot_of_checkpoints_that_have_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir()
    snapshot.write_text("{}")

    def cut_short(folder: str) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(shutil, "rmtree", cut_short)
    with pytest.raises(PermissionError):
        remove_run(str(tmp_path / "run"))
    assert snapshot.parent.exists()
    assert not snapshot.exists()


def test_a_trial_that_is_done_stays_so_where_its_repetition_dies(tmp_path: Path) -> None:
    trials = Trials(TuneConfig(manifest_uri="m", bundle_uri="b"), str(tmp_path), "data", "weights")
    drawn = {"learning_rate": 0.01, "batch_size": 32, "max_epochs": 2}
    record = trials.of(drawn)
    record.add_epoch({"epoch": 1, "image_size": 224, "selection_nll": 1.4, "seconds": 1.0})
    record.end(COMPLETED)
    trials.save(record)
    trial: Any = SimpleNamespace(config=drawn, trial_id="a", get_error=lambda: "ActorDiedError: out of memory")
    search.KeepRecords(trials).on_trial_error(0, [], trial)
    (kept,) = Trials(trials.config, str(tmp_path), "data", "weights").records
    assert (kept.status, kept.final, kept.selection_nll) == (COMPLETED, True, 1.4)
    cut_short: Any = SimpleNamespace(**vars(trial) | {"config": drawn | {"max_epochs": 3}})
    search.KeepRecords(trials).on_trial_error(0, [], cut_short)
    assert not trials.of(cut_short.config).final


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (GateError("storage is away"), False),
        (InputError("denied"), False),
        (TrainingStoppedError("unhealthy", [], "t"), True),
        (GateError(f"training failed: 32 photos of 448 pixels {TOO_LARGE}: lower --image-size"), True),
    ],
    ids=["storage", "denied", "unhealthy", "too large"],
)
def test_only_a_training_that_fails_by_its_settings_has_had_its_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, final: bool
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(search, "train_network", fail)
    monkeypatch.setattr(search, "run_name", lambda *given: "run")
    monkeypatch.setattr(search, "ReportEpochs", lambda *given: SimpleNamespace(wait=lambda: None))
    nothing: Any = None
    trials = Trials(TuneConfig(manifest_uri="m", bundle_uri="b"), str(tmp_path), "data", "weights")
    drawn = {"learning_rate": 0.01, "batch_size": 32, "max_epochs": 2}
    last = search.run_trial(drawn, nothing, nothing, trials)
    assert last[search.FINAL] is final
    space = {"learning_rate": optuna.distributions.FloatDistribution(0.001, 0.1)}
    told = search.FairSearch(space=space, metric=search.METRIC, mode="min")
    told.suggest("a")
    told.on_trial_complete("a", last)
    (seen,) = told._ot_study.trials
    assert seen.state.name == ("COMPLETE" if final else "FAIL")
