"""Progress that a person can follow, in a terminal and in a job's log: one line every few seconds."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from jobs.platform.line_timer import LineTimer
from jobs.stages.staging import SCORED, StagedShard, trim_findings
from schemas.errors import GateError
from schemas.results import ImageStatus

logger = logging.getLogger(__name__)
Span = tuple[float, float, int]
"""Of a shard: when something began with its images and was through (seconds since the epoch), and how many they are."""

MISSING = (str(ImageStatus.MISSING_IMAGE), str(ImageStatus.FETCH_FAILED))
UNREADABLE = (str(ImageStatus.UNREADABLE_IMAGE), str(ImageStatus.IMAGE_REJECTED))


@dataclass
class Progress:
    """Counts of the first pass, added up shard by shard; enforces the quality gates."""

    num_bins: int
    max_unreadable_share: float
    max_missing_share: float
    num_done: int = 0
    num_fresh: int = 0
    fetched: list[Span] = field(default_factory=list)
    scored: list[Span] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    findings: Counter = field(default_factory=Counter)
    _timer: LineTimer = field(default_factory=lambda: LineTimer(5.0, at_once=True))

    def add(self, shard: StagedShard) -> None:
        """Counts a staged shard, and says so when it is time. Raises GateError as soon as a gate can't be met."""
        # photos that are asked for again and are still missing say nothing of the rate
        if shard.num_fresh and shard.fetching_began_at is not None and shard.fetched_at is not None:
            self.fetched.append((shard.fetching_began_at, shard.fetched_at, shard.num_fresh))
        if shard.scoring_began_at is not None and shard.scored_at is not None:
            self.scored.append((shard.scoring_began_at, shard.scored_at, shard.num_fresh))
        self.num_done += shard.num_rows
        self.num_fresh += shard.num_fresh
        self.statuses.update(shard.statuses)
        self.findings = trim_findings(self.findings + shard.findings)
        if self._timer.is_due() or self.num_done == self.num_bins:
            logger.info("%s", self.line())
        self.check_gates()

    def images_per_second(self) -> float | None:
        """Of fetching or of scoring, whichever is slower, while both went on: photos pile up while a scorer starts, and what
        it makes of those alone says nothing of a night. Where all were fetched before two shards were scored, of the whole,
        the start included. None for one shard."""
        if len(self.scored) < 2 or not self.fetched:
            return None
        fetched_until = max(ended for _, ended, _ in self.fetched)
        through = sorted(ended for _, ended, _ in self.scored if ended < fetched_until)
        if len(through) > 1:
            middle = through[(len(through) - 1) // 2]
            return min(_rate_between(spans, middle, fetched_until) for spans in (self.fetched, self.scored))
        began, ended = min(began for began, _, _ in self.fetched), max(ended for _, ended, _ in self.scored)
        return sum(num_images for _, _, num_images in self.scored) / (ended - began)

    def has_scored_all(self) -> bool:
        """Whether every photo that has a score got it in this try: an earlier one's seconds and photos are not known."""
        return 0 < self.num_fresh == self.statuses[SCORED]

    def line(self) -> str:
        began = min((began for began, _, _ in self.fetched), default=None)
        rate = self.num_fresh / max(1e-9, time.time() - began) if began is not None else 0.0
        left = f"{_duration((self.num_bins - self.num_done) / rate)} left" if rate else "none of them in this try"
        failed = {status: count for status, count in self.statuses.items() if status != SCORED}
        rejects = ", ".join(f"{count} {status}" for status, count in sorted(failed.items())) or "none"
        return (
            f"{self.num_done:,} of {self.num_bins:,} bins ({self.num_done / self.num_bins:.0%}), {rate:.1f} images/s, "
            f"{left}, without a score: {rejects}"
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


def _rate_between(spans: list[Span], begin: float, end: float) -> float:
    """Images per second; of a shard that began before or ended after, the part that lies in that time."""
    images = sum(
        num_images * (min(ended, end) - max(began, begin)) / (ended - began)
        for began, ended, num_images in spans
        if ended > begin and began < end
    )
    return images / (end - begin)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
