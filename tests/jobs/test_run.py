import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.config.audit import AuditConfig
from jobs.config.base import tell_future_night
from jobs.platform import provenance as provenance_module
from jobs.platform import storage
from jobs.platform.layout import REPORT_FACTS
from jobs.platform.parquet import parquet_bytes
from jobs.platform.provenance import provenance
from jobs.platform.run_record import finish_run, freeze_run
from jobs.stages import night_lock, tonight
from jobs.stages.manifest_file import report_file
from jobs.stages.night_lock import NightLock, hold_night
from jobs.stages.tonight import Tonight
from schemas.errors import GateError, InputError
from tests.dump import manifest_table
from tests.planned_night import commit_night, counted_row, plan_row, take_in

CONFIG = AuditConfig(manifest_uri="m", bundle_uri="b", output_uri="o")
FACTS: dict[str, Any] = {
    "audit_date": "2026-11-22",
    "fingerprint": "f",
    "weights_sha256": "w",
    "bundle_id": "b",
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 32,
    "allowed_roots": ("/photos",),
    "replaces": None,
}


CHANGE_NO_ROW = {
    # in FACTS, as what was found there or settled from it
    *("manifest_uri", "bundle_uri", "audit_date", "allowed_root", "precision"),
    # where to, whether at all, and what is said beside the rows
    *("output_uri", "report_uri", "replace", "replace_counted", "max_unreadable_share", "max_missing_share"),
    *("anonymous", "node_price"),
}


@pytest.fixture
def output_uri(place: str) -> str:
    return f"{place}/audits"


def run_id(config: AuditConfig = CONFIG, **changes: Any) -> str:
    facts = FACTS | changes
    found: Any = SimpleNamespace(**facts)  # manifest, bundle and resources in one
    return Tonight(
        config, "o", found, found, np.empty(0), facts["allowed_roots"], found, facts["precision"], facts["replaces"]
    ).run_id


def test_the_same_inputs_and_settings_name_the_same_run() -> None:
    assert set(AuditConfig.model_fields) >= CHANGE_NO_ROW
    otherwise = CONFIG.model_copy(update=dict.fromkeys(CHANGE_NO_ROW, "otherwise"))
    assert run_id() == run_id(otherwise)
    assert run_id().startswith("2026-11-22-")


@pytest.mark.parametrize("name", sorted(set(AuditConfig.model_fields) - CHANGE_NO_ROW))
def test_every_other_setting_names_another_run(name: str) -> None:
    assert run_id(CONFIG.model_copy(update={name: "otherwise"})) != run_id()


@pytest.mark.parametrize("name", FACTS)
def test_every_input_is_part_of_the_name(name: str) -> None:
    assert run_id(**{name: "2026-11-23"}) != run_id()


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (
            {"config": {}, "device": "cuda", "precision": "bf16", "batch_size": 256},
            "device cuda then, cpu now; batch_size 256 then, 32 now",
        ),
        ({"config": {}, "device": "cpu", "precision": "bf16", "batch_size": 32}, "other inputs or settings"),
        (None, "other inputs or settings"),
    ],
)
def test_a_night_that_begins_anew_names_the_run_that_was_not_finished(
    output_uri: str, then: dict[str, Any] | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    now: Any = SimpleNamespace(
        output_uri=output_uri,
        audit_date="2026-11-22",
        run_id="2026-11-22-bbb",
        replaces="2026-11-22-ddd",
        precision="bf16",
        resources=SimpleNamespace(device="cpu", batch_size=32),
    )
    # that one is committed, and its clean-up was cut short
    for run_id in ("2026-11-22-aaa", "2026-11-23-aaa", "2026-11-22-ddd"):
        storage.write_bytes(f"{output_uri}/runs/{run_id}/staged/0000000.parquet", b"")
        storage.write_bytes(f"{output_uri}/runs/{run_id}/run.json", json.dumps(then).encode() if then else b"")
    storage.write_bytes(f"{output_uri}/runs/2026-11-22-ccc/committed", b"")
    tonight.tell_of_others(now)
    storage.write_bytes(f"{output_uri}/runs/2026-11-22-bbb/staged/0000000.parquet", b"")
    tonight.tell_of_others(now)  # this one goes on
    (found,) = caplog.messages
    assert found.startswith("run 2026-11-22-aaa of this night was begun and not finished") and said in found


def test_what_a_run_froze_first_stays(output_uri: str) -> None:
    assert freeze_run(output_uri, {"belief": 1}) == {"belief": 1}
    assert freeze_run(output_uri, {"belief": 2}) == {"belief": 1}


def test_how_a_run_ended_is_on_disk_before_the_job_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[dict] = []
    monkeypatch.setattr(storage, "settle", lambda uri: settled.append(storage.read_json(f"{uri}/run.json")))
    finish_run(str(tmp_path), {"belief": 1}, {"seconds": 2})
    assert settled == [{"belief": 1, "outcome": {"seconds": 2}}]


def test_a_record_that_a_power_cut_emptied_is_written_anew(output_uri: str) -> None:
    freeze_run(output_uri, {"belief": 1})
    storage.write_bytes(f"{output_uri}/run.json", b"")
    assert freeze_run(output_uri, {"belief": 2}) == {"belief": 2}


def test_a_package_in_another_repository_s_folder_has_no_commit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "another one's"]
    for command in (["init", "-q", "."], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance_module, "__file__", str(tmp_path / "provenance.py"))
    assert provenance()["git_commit"] is None


def test_what_decodes_photos_and_estimates_is_named_with_its_version() -> None:
    versions = provenance("optuna")["versions"]
    assert {"pillow", "scipy", "pandas", "optuna"} <= versions.keys()
    assert "optuna" not in provenance()["versions"]


def test_without_git_there_is_no_commit_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git_commit"] is None
    assert provenance()["versions"]["ray"]


def test_a_held_night_names_its_holder(output_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_lock, "HEARTBEAT_SECONDS", 0.2)
    with hold_night(output_uri, "2026-11-22", "run-a") as lock:
        with pytest.raises(GateError, match=rf"held by run run-a on .* \(pid {os.getpid()}"):
            hold_night(output_uri, "2026-11-22", "run-b").__enter__()
        lock.check()
        with hold_night(output_uri, "2026-11-23", "run-b"):
            pass  # another night is free
    with hold_night(output_uri, "2026-11-22", "run-b"):
        pass


def test_what_else_lies_beside_a_hold_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "locks" / "audit_date=2026-11-22"
    (folder / "old").mkdir(parents=True)
    for name in ("notes.txt", "999.json", "old/000009.json"):
        (folder / name).write_text("not ours")
    with hold_night(str(tmp_path), "2026-11-22", "run-a") as lock:
        assert lock._generation == 0


def test_a_hold_that_a_power_cut_emptied_is_nobody_s_unless_somebody_writes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_lock, "EXPIRY_SECONDS", 0.5)
    monkeypatch.setattr(night_lock, "LOOK_SECONDS", 0.1)
    path = tmp_path / "locks" / "audit_date=2026-11-22" / "000000.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with hold_night(str(tmp_path), "2026-11-22", "run-a") as lock:
        assert lock._generation == 1
        path = path.with_name("000001.json")
        alive = path.read_bytes()
        path.write_bytes(b"")
        writes = threading.Timer(0.2, path.write_bytes, [alive])
        writes.start()
        with pytest.raises(GateError, match="the night is held by run unknown on unknown"):
            hold_night(str(tmp_path), "2026-11-22", "run-b").__enter__()
        writes.join()


def test_storage_without_conditional_writes_can_hold_no_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create_bytes", lambda uri, data: storage.write_bytes(uri, data) or True)
    with pytest.raises(InputError, match="two audits could hold one night; use one with conditional writes"):
        hold_night(str(tmp_path), "2026-11-22", "run-a").__enter__()


def test_a_hold_that_can_not_be_let_go_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(lock: NightLock) -> None:
        lock._stopped.set()
        raise GateError("storage is away")

    monkeypatch.setattr(NightLock, "release", away)
    with hold_night(str(tmp_path), "2026-11-22", "run-a"):
        pass
    assert "was not let go: storage is away" in caplog.text
    with pytest.raises(ValueError, match="what really went wrong"), hold_night(str(tmp_path), "2026-11-23", "run-a"):
        raise ValueError("what really went wrong")


def hold_and_die(lock_uri: str) -> None:
    """In a process of its own, which lets nothing go."""
    script = "import os, sys; from jobs.stages.night_lock import NightLock; NightLock(sys.argv[1], 'dead').acquire(); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", script, lock_uri], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 9


def test_a_dead_holder_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    hold_and_die(f"{tmp_path}/locks/audit_date=2026-11-22")
    started = time.monotonic()
    with hold_night(str(tmp_path), "2026-11-22", "run-b"):
        assert time.monotonic() - started < night_lock.EXPIRY_SECONDS / 4


def test_a_holder_elsewhere_whose_heart_stopped_is_replaced(output_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_lock, "EXPIRY_SECONDS", 2.0)
    monkeypatch.setattr(night_lock.socket, "gethostname", lambda: "another-machine")
    stopped = NightLock(f"{output_uri}/locks/audit_date=2026-11-22", "dead")
    monkeypatch.setattr(night_lock, "HEARTBEAT_SECONDS", 3600.0)
    stopped.acquire()
    monkeypatch.setattr(night_lock.socket, "gethostname", lambda: "this-machine")
    # should the first one wake up, it must not commit
    taken = pytest.raises(GateError, match="another run has taken the night")
    with hold_night(output_uri, "2026-11-22", "run-b"), taken:
        stopped.check()
    stopped._stopped.set()


def test_a_holder_that_wakes_up_takes_the_night_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have had the night since, and let it go; its heartbeat goes on for a while."""
    monkeypatch.setattr(night_lock, "EXPIRY_SECONDS", 0.5)
    monkeypatch.setattr(night_lock, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(night_lock, "HEARTBEAT_SECONDS", 3600.0)
    sleeper = NightLock(f"{tmp_path}/locks/audit_date=2026-11-22", "sleeper")
    sleeper.acquire()
    with hold_night(str(tmp_path), "2026-11-22", "run-b"):
        pass
    with hold_night(str(tmp_path), "2026-11-22", "run-c") as lock:
        sleeper._stopped.set()
        storage.write_bytes(sleeper._uri(sleeper._generation), sleeper._content())
        lock.check()
        assert not sleeper.is_held()


def test_a_process_that_slept_while_another_had_the_night_still_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = storage.create_bytes

    def create_and_sleep(uri: str, data: bytes) -> bool:
        is_new = create(uri, data)
        if uri.endswith("000000.json") and is_new and not Path(uri).with_name("000001.json").exists():
            Path(uri).unlink()  # taken for dead, cleared away by whoever let the night go since
            create(uri.replace("000000", "000001"), json.dumps({**night_lock._NOBODY, "released": True}).encode())
        return is_new

    monkeypatch.setattr(storage, "create_bytes", create_and_sleep)
    with hold_night(str(tmp_path), "2026-11-22", "run-a") as lock:
        lock.check()


def test_a_holder_that_storage_hid_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While storage is away the holder can't renew its hold either: that silence says nothing of it."""
    monkeypatch.setattr(night_lock, "EXPIRY_SECONDS", 0.5)
    monkeypatch.setattr(night_lock, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(night_lock, "HEARTBEAT_SECONDS", 3600.0)
    monkeypatch.setattr(night_lock.socket, "gethostname", lambda: "another-machine")
    holder = NightLock(f"{tmp_path}/locks", "run-a")
    holder.acquire()
    monkeypatch.setattr(night_lock.socket, "gethostname", lambda: "this-machine")
    monkeypatch.setattr(night_lock, "HEARTBEAT_SECONDS", 0.2)
    looker, looks = NightLock(f"{tmp_path}/locks", "run-b"), 0
    look = looker._latest

    def look_through_an_outage() -> tuple[int, dict | None]:
        nonlocal looks
        looks += 1
        if looks == 3:
            time.sleep(1.0)
        if looks == 6:
            holder._beats += 1
            night_lock.storage.write_bytes(holder._uri(0), holder._content())
        return look()

    monkeypatch.setattr(looker, "_latest", look_through_an_outage)
    with pytest.raises(GateError, match="held by run run-a"):
        looker.acquire()
    holder._stopped.set()


@pytest.mark.parametrize("knows_boot", [True, False], ids=["another container", "no boot, as on macOS"])
def test_a_process_that_may_run_elsewhere_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows_boot: bool
) -> None:
    monkeypatch.setattr(night_lock, "EXPIRY_SECONDS", 2.0)
    monkeypatch.setattr(night_lock, "LOOK_SECONDS", 0.5)
    if not knows_boot:  # another machine of the same name would be taken for this one
        monkeypatch.setattr(night_lock, "_boot_id", lambda: " ")
    folder = tmp_path / "locks" / "audit_date=2026-11-22"
    hold_and_die(str(folder))
    (lock,) = folder.iterdir()
    # a container's own processes have numbers of their own, and here none has this one
    boot = re.sub(r"pid:\[\d+\]", "pid:[1]", night_lock._boot_id())
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"boot": boot}))
    assert ("pid:[1]" in lock.read_text()) == knows_boot
    started = time.monotonic()
    with hold_night(str(tmp_path), "2026-11-22", "run-b"):
        assert time.monotonic() - started > 2.0


@pytest.mark.parametrize(
    ("night", "hour", "is_told"),
    [
        ("2026-11-29", 9, False),  # tomorrow
        ("2026-11-30", 9, True),
        ("2026-11-30", 10, False),  # and where the 29th has begun
        ("2027-11-27", 9, True),
        ("2025-11-27", 9, False),
    ],
)
def test_a_night_beyond_tomorrow_is_told_of_wherever_the_warehouse_is(
    night: str, hour: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tell_future_night(date.fromisoformat(night), "--audit-date", datetime(2026, 11, 28, hour, tzinfo=UTC))
    assert (f"--audit-date: expected a night up to 2026-11-29, found {night}: no count" in caplog.text) is is_told


def test_a_replacement_that_died_after_its_commit_is_gone_on_with_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, replaced = str(tmp_path), "2026-11-22-aaaaaaaaaaaa"
    found: Any = SimpleNamespace(**FACTS, uri="m", images_uri="/photos", top_class=6, least=lambda: None)
    for name, value in {
        "read_bundle": (found, None),
        "learned_from": None,
        "digests": np.empty(0),
        "check_manifest": found,
        "settle_resources": (found, "fp32"),
        "await_free": None,
    }.items():
        monkeypatch.setattr(tonight, name, lambda *given, value=value: value)
    config = CONFIG.model_copy(update={"output_uri": output, "replace": True})
    name = run_id(config, replaces=replaced, allowed_roots=("/photos",))
    commit_night(output, "2026-11-22", [plan_row("a")], run=name.removeprefix("2026-11-22-"))
    storage.write_bytes(
        f"{output}/runs/{name}/run.json",
        json.dumps({"run_id": name, "config": {"replace": True}, "replaces": replaced}).encode(),
    )
    settled = tonight.settle_night(config)
    assert (settled.run_id, settled.replaces, settled.is_committed) == (name, replaced, True)
    again = tonight.settle_night(config.model_copy(update={"recount_budget": 7}))
    assert (again.replaces, again.is_committed) == (name, False)


def test_a_report_that_is_not_ours_does_not_finish_a_night(tmp_path: Path) -> None:
    config = AuditConfig(manifest_uri="m", bundle_uri="b", output_uri="o", report_uri=str(tmp_path))
    frozen = {"outcome": {}, "run_id": "2026-11-22-a", "config": {"replace": False}}
    for text, unfinished in (
        ("no JSON", True),
        ("[1]", True),
        ('{"run_id": "2026-11-22-b"}', True),
        ('{"run_id": "2026-11-21-b"}', True),
        ('{"run_id": "2026-11-22-a"}', False),
        ('{"run_id": "2026-11-22-a", "complete": true}', False),
        ('{"run_id": "2026-11-22-a", "complete": false}', True),  # page and lists are there, the rows are not
        ('{"run_id": "2026-11-23-b", "complete": false}', False),
        ('{"run_id": "2026-11-23-b"}', False),  # a later night's, where all share one folder
    ):
        (tmp_path / REPORT_FACTS).write_text(text)
        assert tonight._is_unfinished(config, frozen) is unfinished


def test_a_run_that_died_before_it_said_how_it_ended_is_gone_on_with_by_a_command_that_asks_for_the_same() -> None:
    frozen = {"config": {"replace": False}, "run_id": "2026-11-22-a"}
    assert tonight._is_unfinished(CONFIG, frozen)
    assert not tonight._is_unfinished(CONFIG.model_copy(update={"replace": True}), frozen)


def test_a_counted_night_is_replaced_only_where_that_is_asked_for_too(tmp_path: Path) -> None:
    output, config = str(tmp_path), CONFIG.model_copy(update={"replace": True})
    committed = commit_night(output, "2026-11-22", [plan_row("a")])
    tonight._check_replacement(config, output, "2026-11-22", committed)
    take_in(output, counted_row("a", 3, "2026-11-22", datetime(2026, 11, 23, tzinfo=UTC)))
    with pytest.raises(InputError, match="pass --replace-counted as well"):
        tonight._check_replacement(config, output, "2026-11-22", committed)
    counted_too = config.model_copy(update={"replace_counted": True})
    tonight._check_replacement(counted_too, output, "2026-11-22", committed)


def test_a_replacement_that_died_before_its_report_is_finished_and_not_made_again(tmp_path: Path) -> None:
    config = AuditConfig(manifest_uri="m", bundle_uri="b", output_uri="o", report_uri=str(tmp_path), replace=True)
    outcome = {"config": config.model_dump(mode="json")}
    frozen = {"outcome": outcome, "run_id": "2026-11-22-b", "replaces": "2026-11-22-a"}
    for run_id, unfinished in (
        ("", True),
        ("2026-11-22-a", True),  # of what it replaced
        ("2026-11-21-c", True),  # of the night before, where all share one folder
        ("2026-11-22-b", False),  # asked for anew
        ("2026-11-23-c", False),
    ):
        (tmp_path / REPORT_FACTS).write_text(json.dumps({"run_id": run_id}))
        assert tonight._is_unfinished(config, frozen) is unfinished
    (tmp_path / REPORT_FACTS).unlink()
    assert tonight._is_unfinished(config, frozen)
    assert not tonight._is_unfinished(config.model_copy(update={"recount_budget": 7}), frozen)


@pytest.mark.parametrize("names", [(), ("photo_at",), ("photo_at", "expected_as_of")], ids=str)
def test_a_limit_on_the_age_of_photos_needs_photos_of_known_age(names: tuple[str, ...]) -> None:
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    data = bytes(parquet_bytes(manifest_table("/photos", [1], **{name: [moment] for name in names})))
    manifest: Any = SimpleNamespace(uri="m", has_photo_ages=report_file("m", data).has_photo_ages)
    config = CONFIG.model_copy(update={"max_photo_age_hours": 24.0})
    refused = pytest.raises(InputError, match="expected photo_at and expected_as_of, found no row with both")
    with nullcontext() if len(names) == 2 else refused:
        tonight._check_flags(config, manifest)
