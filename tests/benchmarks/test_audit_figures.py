import pytest

from tests.benchmarks.audit import conclude, table


def _repeats(*rates: float, **more: float) -> list[dict]:
    return [{"images_per_second": rate, "driver_mb": 1.0, "workers_mb": 2.0, **more} for rate in rates]


def test_costs_on_shared_cores_add_up_and_photos_fetched_ahead_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = {"fetch": _repeats(100.0), "decode": _repeats(100.0), "network": _repeats(10.0)}
    found |= {"ours": _repeats(8.0, 10.0, 9.0, seconds=60.0, start_and_end_seconds=9.0), "peer": _repeats(3.0)}
    figures = conclude(found)
    assert figures["bound"] == pytest.approx(1 / 0.12)
    assert figures["share_of_bound"] == pytest.approx(0.12 / (0.02 + 1 / 9))
    assert figures["ratios"] == {"peer": pytest.approx(3.0)}
    assert figures["spread"]["ours"] == [8.0, 10.0]
    assert "3.00 x" in table(figures)


def test_beside_a_gpu_the_slowest_stage_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = {"fetch": _repeats(100.0), "decode": _repeats(100.0), "network": _repeats(90.0)}
    figures = conclude(found | {"ours": _repeats(45.0, seconds=60.0, start_and_end_seconds=9.0)})
    assert (figures["bound"], figures["share_of_bound"]) == (50.0, 0.9)
