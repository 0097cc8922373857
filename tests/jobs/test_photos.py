"""What is prepared at a time, without preparing it."""

from __future__ import annotations

import numpy as np

from jobs.training.photos import FIRST_WINDOW, WINDOW_BYTES, _windows
from model.micro_batches import MicroBatch


def test_windows_are_small_at_first_and_never_too_large_where_photos_grow() -> None:
    planned = [MicroBatch(np.arange(32), size, 0) for size in (112, 168, 224) for _ in range(300)]
    windows = _windows(planned)
    assert [batch for window in windows for batch in window] == planned
    assert len(windows[0]) == FIRST_WINDOW
    assert max(sum(32 * batch.image_size**2 * 3 for batch in window) for window in windows) <= WINDOW_BYTES
