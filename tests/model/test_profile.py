from __future__ import annotations

import pytest
import torch

from model.profile import PHASES, Stopwatch


def test_the_profile_adds_up_to_the_wall_time() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.phase("forward"):
        sum(range(200_000))
    watch.add("decode", 5.0)
    watch.add_earlier("forward", 100.0)
    table = watch.table()
    assert table["decode"] == 5.0
    assert table["forward"] > 100.0
    assert sum(table[name] for name in PHASES) == pytest.approx(100.0, abs=5.0)
