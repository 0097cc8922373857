"""What a run of the audit wrote down when it began, and how it ended: `run.json`.

The record model and calibration in force are written there when the run starts: a recount that comes in between a crash
and its restart does not change a night halfway.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jobs.platform import storage
from jobs.platform.uris import join
from schemas.errors import InputError

_RUN_RECORD = "run.json"


def freeze_run(run_uri: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes `run.json` where none is yet, and returns what stands there: this try's facts or an earlier one's."""
    return storage.freeze_json(join(run_uri, _RUN_RECORD), facts)


def finish_run(run_uri: str, frozen: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Adds timings and counts to `run.json`; what was frozen stays."""
    storage.write_json(join(run_uri, _RUN_RECORD), {**frozen, "outcome": outcome})
    storage.settle(run_uri)  # without it no later night knows how this one was planned


def read_run(run_uri: str) -> dict[str, Any]:
    """What a run says of itself. Raises InputError where its `run.json` is gone or damaged."""
    uri = join(run_uri, _RUN_RECORD)
    try:
        run = storage.read_json(uri)
    except FileNotFoundError as error:
        raise InputError(f"{uri}: expected a committed run's own record, found nothing; restore it") from error
    if not isinstance(run, dict) or "config" not in run:
        found = "no JSON" if run is None else "other JSON"
        raise InputError(f"{uri}: expected a committed run's own record, found {found}; restore it")
    return run


def began_at(run: dict[str, Any]) -> datetime | None:
    """When a run began; None where its record doesn't say."""
    text = run.get("started_at")
    return None if text is None else datetime.fromisoformat(text)


def manifest_of(run: dict[str, Any]) -> str | None:
    """Fingerprint of the manifest that a run audited; None where its record doesn't say."""
    return run.get("manifest", {}).get("fingerprint")


def settings_of(run: dict[str, Any]) -> dict[str, Any]:
    """The settings of the try that committed; where that one died before it said so, those that the run began with."""
    return run.get("outcome", {}).get("config") or run.get("config", {})
