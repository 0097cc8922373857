"""What a run of the audit wrote down when it began, and how it ended: `run.json`.

The record model and calibration in force are written there when the run starts: a recount that comes in between a crash
and its restart does not change a night halfway.
"""

from __future__ import annotations

from typing import Any

from jobs.platform import storage
from jobs.platform.layout import RUN_RECORD


def freeze_run(run_uri: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes `run.json` where none is yet, and returns what stands there: this try's facts or an earlier one's."""
    return storage.freeze_json(storage.join(run_uri, RUN_RECORD), facts)


def finish_run(run_uri: str, frozen: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Adds timings and counts to `run.json`; what was frozen stays."""
    storage.write_json(storage.join(run_uri, RUN_RECORD), {**frozen, "outcome": outcome})
    storage.settle(run_uri)  # without it no later night knows how this one was planned
