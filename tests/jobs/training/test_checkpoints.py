from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from jobs.platform import s3
from jobs.training.checkpoints import drop_damaged_checkpoints, list_runs, ray_storage, remove_run
from model.training import STATE_FILE


def test_a_list_of_checkpoints_that_a_power_cut_left_damaged_begins_the_training_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot, state = tmp_path / "checkpoint_manager_snapshot.json", tmp_path / "first" / STATE_FILE
    state.parent.mkdir()
    drop_damaged_checkpoints(str(tmp_path))
    snapshot.write_text('{"checkpoint_results": []}')  # none yet
    drop_damaged_checkpoints(str(tmp_path))
    assert snapshot.exists()
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


def test_trainings_that_lie_there_are_those_that_hold_something(tmp_path: Path) -> None:
    for name, content in (("a/inputs/bins.parquet", "bins"), ("b/inputs", ""), ("notes.txt", "no training")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert list_runs(str(tmp_path)) == {"a"}


def test_a_finished_run_can_be_removed_twice(tmp_path: Path) -> None:
    (tmp_path / "t" / "run" / "inputs").mkdir(parents=True)
    remove_run(str(tmp_path / "t" / "run"))
    assert not (tmp_path / "t").exists()
    remove_run(str(tmp_path / "t" / "run"))  # a search that was killed between this and its record
