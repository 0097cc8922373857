"""Progress that a person can follow, in a terminal and in a job's log: one line every few seconds."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from jobs.platform import storage
from jobs.platform.command import message
from jobs.platform.line_timer import LineTimer
from jobs.stages.staging import SCORED, StagedShard, trim_findings
from schemas.errors import GateError, InputError
from schemas.results import ImageStatus

logger = logging.getLogger(__name__)

MISSING = (ImageStatus.MISSING_IMAGE, ImageStatus.FETCH_FAILED)
UNREADABLE = (ImageStatus.UNREADABLE_IMAGE, ImageStatus.IMAGE_REJECTED)


@dataclass
class Progress:
    """Counts of the first pass, added up shard by shard; enforces the quality gates."""

    num_bins: int
    max_unreadable_share: float
    max_missing_share: float
    num_done: int = 0
    num_fresh: int = 0
    """Images that this try has scored."""
    statuses: Counter = field(default_factory=Counter)
    findings: Counter = field(default_factory=Counter)
    _began: float = field(default_factory=time.monotonic)
    _scored: float | None = None
    """When the last of them came."""
    _timer: LineTimer = field(default_factory=lambda: LineTimer(5.0, at_once=True))

    def add(self, shard: StagedShard) -> None:
        """Counts a staged shard, and says so when it is time. Raises GateError as soon as a gate can't be met."""
        if shard.num_fresh:
            self._scored = time.monotonic()
        self.num_done += shard.num_rows
        self.num_fresh += shard.num_fresh
        self.statuses.update(shard.statuses)
        self.findings = trim_findings(self.findings + shard.findings)
        if self._timer.is_due() or self.num_done == self.num_bins:
            logger.info("%s", self.line())
        self.check_gates()

    def images_per_second(self) -> float | None:
        """Of those that this try has scored, the start of its workers included: any part of the time might have photos that
        lay ready at its beginning, or none. None where there are none."""
        return None if self._scored is None else self.num_fresh / max(1e-9, self._scored - self._began)

    def has_scored_all(self) -> bool:
        """Whether every photo that has a score got it in this try: an earlier one's seconds and photos are not known."""
        return 0 < self.num_fresh == self.statuses[SCORED]

    def line(self) -> str:
        pace = ""
        if self.num_fresh:
            rate = self.num_fresh / max(1e-9, time.monotonic() - self._began)
            pace = f", {rate:.1f} images/s, {_duration((self.num_bins - self.num_done) / rate)} left"
        failed = {status: count for status, count in self.statuses.items() if status != SCORED}
        rejects = ", ".join(f"{count} {status}" for status, count in sorted(failed.items())) or "none"
        return (
            f"{self.num_done:,} of {self.num_bins:,} bins ({self.num_done / self.num_bins:.0%}){pace}, "
            f"without a score: {rejects}"
        )

    def check_gates(self) -> None:
        """Raises GateError when the share of failed images is beyond a gate, whatever the rest of the night brings."""
        for statuses, limit, flag in (
            (MISSING, self.max_missing_share, "--max-missing-share"),
            (UNREADABLE, self.max_unreadable_share, "--max-unreadable-share"),
        ):
            failed = sum(self.statuses[status] for status in statuses)
            if failed > limit * self.num_bins:
                kinds = [(count, kind) for kind, count in self.findings.items() if kind[0] in statuses]
                cause = ""
                if kinds:
                    count, (status, error, folder) = max(kinds)
                    where = f"below {folder}" if folder else "in many folders"
                    cause = f"The commonest cause, {count} of them: {status} {where}: {error}. "
                raise GateError(
                    f"{failed} of {self.num_bins} images are {' or '.join(statuses)}, {flag} allows {limit:.1%} "
                    f"(seen so far: {self.num_done} bins). {cause}"
                    "Nothing was committed; mend it and run the same command again, which retries them"
                )

    def write_findings(self, uri: str, failed: GateError) -> None:
        """What the photos without a score failed by, and what ended the run, as a JSON document."""
        findings = [
            {"status": status, "error": error, "below": below, "images": count}
            for (status, error, below), count in self.findings.most_common()
        ]
        try:
            storage.write_json(uri, {"failed": message(failed), "findings": findings})
        except (GateError, InputError) as unwritten:  # by the same outage, perhaps, which is what the user must read
            logger.warning("the findings were not written: %s", message(unwritten))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
