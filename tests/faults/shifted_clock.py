"""The audit with another time of day: `python -m tests.faults.shifted_clock 2026-11-22T23:59:59+00:00 --manifest-uri …`.

Only the jobs' own clock is shifted: requests to S3 are signed with the real time.
"""

from __future__ import annotations

import datetime as clock
import sys

from jobs import audit


def shift(start: clock.datetime) -> None:
    """From now on it is `start` and counting, for every module of jobs."""
    offset = start - clock.datetime.now(clock.UTC)

    class Shifted(clock.datetime):
        @classmethod
        def now(cls, tz: clock.tzinfo | None = None) -> clock.datetime:  # type: ignore[override]
            return clock.datetime.now(tz) + offset

    for name, module in list(sys.modules.items()):
        if name.startswith("jobs.") and vars(module).get("datetime") is clock.datetime:
            vars(module)["datetime"] = Shifted


if __name__ == "__main__":
    shift(clock.datetime.fromisoformat(sys.argv[1]))
    raise SystemExit(audit.main(sys.argv[2:]))
