import pytest

from tests.benchmarks import audit
from tests.benchmarks.audit import check_share, conclude, steady_rate, table


def _repeats(*rates: float, **more: float) -> list[dict]:
    return [{"images_per_second": rate, "driver_mb": 1.0, "workers_mb": 2.0, **more} for rate in rates]


def test_costs_on_shared_cores_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ON_GPU", False)
    found = {"fetch": _repeats(100.0), "decode": _repeats(100.0), "network": _repeats(10.0)}
    found |= {"ours": _repeats(5.0, 7.0, 6.0, seconds=60.0, start_and_end_seconds=9.0), "peer": _repeats(2.0)}
    figures = conclude(found)
    assert figures["bound"] == pytest.approx(1 / 0.12)
    assert figures["share_of_bound"] == pytest.approx(6 * 0.12)
    assert figures["ratios"] == {"peer": pytest.approx(3.0)}
    assert figures["spread"]["ours"] == [5.0, 7.0]
    assert "3.00 x" in table(figures)


def test_beside_a_gpu_the_slowest_stage_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ON_GPU", True)
    found = {"fetch": _repeats(100.0), "decode": _repeats(100.0), "network": _repeats(90.0)}
    figures = conclude(found | {"ours": _repeats(45.0, seconds=60.0, start_and_end_seconds=9.0)})
    assert (figures["bound"], figures["share_of_bound"]) == (50.0, 0.9)


def test_more_than_the_bound_is_a_measuring_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert (check_share(0.99), check_share(1.01)) == (0, 1)
    assert "measuring error" in capsys.readouterr().err


def test_a_peers_rate_leaves_out_what_lay_ready_when_it_began() -> None:
    marks = [(0.0, 32), (0.1, 64), (0.2, 96), (1.2, 128), (2.2, 160)]
    assert steady_rate(marks, 160) == pytest.approx(32.0)
    with pytest.raises(AssertionError, match="160 of 192"):
        steady_rate(marks, 192)
