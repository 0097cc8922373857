"""When a job that takes long says again how far it is."""

from __future__ import annotations

import math
import time


class LineTimer:
    """Says when another line of progress is due: at most one in so many seconds."""

    def __init__(self, seconds: float, *, at_once: bool = False) -> None:
        """The first line is due after `seconds` too, or else `at_once`."""
        self._seconds = seconds
        self._last_line = -math.inf if at_once else time.monotonic()

    def is_due(self) -> bool:
        """Whoever is told so writes the line: the next one is due `seconds` later."""
        now = time.monotonic()
        if now - self._last_line <= self._seconds:
            return False
        self._last_line = now
        return True
