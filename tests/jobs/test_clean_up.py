"""What is deleted after a commit, by whom, and what is looked at before it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from jobs.counting.plans import list_marked_runs
from jobs.platform import storage
from jobs.platform.layout import committed_run, partition_uri, run_uri, summary_uri
from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from jobs.stages import night_lock
from jobs.stages.conclude import WrittenParts
from jobs.stages.night_lock import hold_night
from jobs.stages.publish import publish_night, tidy_up
from schemas.errors import GateError
from schemas.recount import PLANNED_SCHEMA
from schemas.summary import SUMMARY_SCHEMA
from tests.dump import NIGHT

OLD, NEW = f"{NIGHT}-aaaaaaaaaaaa", f"{NIGHT}-bbbbbbbbbbbb"


@pytest.fixture
def output_uri(tmp_path: Path) -> str:
    """A night that OLD has committed."""
    write_table(summary_uri(str(tmp_path), NIGHT), pa.table({"run_id": [OLD]}))
    _write_part(str(tmp_path), OLD)
    return str(tmp_path)


def _write_part(output_uri: str, run_id: str) -> str:
    uri = join(partition_uri(output_uri, "results", NIGHT), f"part-{run_id}-00000.parquet")
    write_table(uri, pa.table({"bin_id": ["a"]}))
    return uri


def _publish(output_uri: str, *parts: str) -> None:
    with hold_night(output_uri, NIGHT, NEW) as lock:
        _publish_under(lock, output_uri, *parts)


def _publish_under(lock: Any, output_uri: str, *parts: str) -> None:
    publish_night(
        WrittenParts({}, PLANNED_SCHEMA.empty_table(), list(parts)),
        SUMMARY_SCHEMA.empty_table(),
        output_uri=output_uri,
        audit_date=NIGHT,
        run_id=NEW,
        replaces=OLD,
        replace_counted=False,
        lock=lock,
    )


def test_a_commit_discards_what_abandoned_runs_of_its_night_had_staged(output_uri: str) -> None:
    abandoned, later = f"{NIGHT}-cccccccccccc", "2999-01-01-dddddddddddd"
    for run_id in (NEW, abandoned, later):
        for name in ("staged/0000000.parquet", "worklist/00000.parquet", "run.json"):
            storage.write_bytes(join(run_uri(output_uri, run_id), name), b"")
    _publish(output_uri, _write_part(output_uri, NEW))
    left = {entry.uri.rpartition("/runs/")[2] for entry in storage.list_objects(join(output_uri, "runs"))}
    assert f"{abandoned}/run.json" in left
    assert not {name for name in left if NIGHT in name and ("staged" in name or "worklist" in name)}
    assert {f"{later}/staged/0000000.parquet", f"{later}/worklist/00000.parquet"} <= left


def test_a_replacement_under_way_keeps_its_parts_from_whoever_asks_for_the_committed_night(
    output_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_lock, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(night_lock, "LOOK_SECONDS", 0.1)
    with hold_night(output_uri, NIGHT, NEW):
        part = _write_part(output_uri, NEW)
        tidy_up(output_uri, NIGHT, OLD)
        assert storage.exists(part)
    # nobody holds the night: what is there was left by a run that was given up
    storage.write_bytes(join(run_uri(output_uri, OLD), "staged", "0000000.parquet"), b"")
    tidy_up(output_uri, NIGHT, OLD)
    assert not storage.exists(part)
    assert [entry.uri for entry in storage.list_objects(run_uri(output_uri, OLD))] == [
        join(run_uri(output_uri, OLD), "committed")
    ]


def test_a_night_that_was_replaced_meanwhile_is_not_tidied_up_for_the_run_before(output_uri: str) -> None:
    part = _write_part(output_uri, NEW)
    write_table(summary_uri(output_uri, NIGHT), pa.table({"run_id": [NEW]}))
    tidy_up(output_uri, NIGHT, OLD)
    assert storage.exists(part)


def test_a_night_with_a_part_gone_is_not_committed(output_uri: str) -> None:
    part = _write_part(output_uri, NEW)
    storage.delete([part])
    with pytest.raises(GateError, match=rf"1 of this run's 2 parts were deleted .*part-{NEW}-00000\.parquet"):
        _publish(output_uri, part)
    assert committed_run(output_uri, NIGHT) == OLD


def test_a_run_that_died_before_it_was_marked_is_marked_by_the_one_that_replaces_it(output_uri: str) -> None:
    _publish(output_uri, _write_part(output_uri, NEW))
    assert list_marked_runs(output_uri, NIGHT) == {NIGHT: [OLD, NEW]}


def test_who_lost_the_night_after_the_commit_leaves_the_parts_of_whoever_has_it(output_uri: str) -> None:
    part, other = _write_part(output_uri, NEW), _write_part(output_uri, f"{NIGHT}-cccccccccccc")
    _publish_under(SimpleNamespace(check=lambda: None, is_held=lambda: False), output_uri, part)
    assert storage.exists(other)
