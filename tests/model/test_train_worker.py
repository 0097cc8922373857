from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.train_worker import gains_in_bfloat16


@pytest.mark.parametrize(("major", "native"), [(7, False), (8, True)])
def test_a_card_that_only_emulates_bfloat16_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, major: int, native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    assert gains_in_bfloat16(torch.device("cuda")) is native
