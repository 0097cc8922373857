"""The ready queries: they run in DuckDB and Polars, and say what the audit itself says."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from jobs.counting import records
from jobs.counting.history import read_history
from jobs.platform import layout
from jobs.platform.layout import part_uris
from jobs.platform.parquet import DamagedParquet
from jobs.reporting import nights as nights_module
from jobs.reporting.nights import read_night, read_results
from schemas.errors import GateError
from tests.night import NASTY_TEXTS, write_nights
from tests.planned_night import commit_night, counted_row, plan_row, take_in

DATES = ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
TONIGHT = DATES[-1]
SQL = (Path(jobs.__file__).parent / "queries.sql").read_text()
QUERIES = dict(re.findall(r"-- name: (\w+)\n(.*?);", SQL, re.DOTALL))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four committed nights with nasty names, all but the last one counted, one bin wrong in two ways."""
    output = tmp_path_factory.mktemp("audits")
    write_nights(output, DATES, num_bins=1200, recount_budget=200, texts=NASTY_TEXTS)
    take_in(output, _counted("again", 2, "kim", night=DATES[0]), _counted("again", 2, "lee", night=DATES[0]))
    take_in(output, _counted("again", 1, None, expected_qty=2, night=DATES[1], confirmed=True))
    return output


def _duckdb(output: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute((Path(jobs.__file__).parent / "views.sql").read_text().replace("{output_uri}", str(output)))
    return connection


def _polars(output: Path) -> pl.SQLContext[pl.LazyFrame]:
    context = pl.SQLContext()
    summary = pl.scan_parquet(output / "summary", hive_partitioning=True)
    committed = summary.filter(pl.col("scope") == "all").select("audit_date", "run_id")
    results = pl.scan_parquet(output / "results", hive_partitioning=True).join(committed, on=["audit_date", "run_id"])
    counted = pl.scan_parquet(output / "counted")
    context.register_many({"summary": summary, "results": results, "counted": counted})
    return context


def _ask(output: Path, name: str) -> pl.DataFrame:
    """DuckDB's answer, once Polars has given the same."""
    theirs, ours = _duckdb(output).sql(QUERIES[name]).pl(), _polars(output).execute(QUERIES[name]).collect()
    assert theirs.columns == ours.columns
    for column in ours.columns:
        left, right = theirs[column], ours[column]
        if left.dtype.is_numeric():
            left, right = left.cast(pl.Float64), right.cast(pl.Float64)
            assert left.is_null().to_list() == right.is_null().to_list()
            assert left.drop_nulls().to_list() == pytest.approx(right.drop_nulls().to_list(), rel=1e-4, abs=1e-6)
        elif not left.dtype.is_temporal():
            assert left.to_list() == right.to_list()
    return theirs


def _counted(bin_id: str, qty: int, counter: str | None, *, night: str, hour: int = 0, **values: Any) -> dict[str, Any]:
    counted_at = datetime(2026, 3, 5, 8, tzinfo=UTC) + timedelta(hours=hour)
    return counted_row(bin_id, qty, night, counted_at, counter_id=counter, **values)


def test_the_ready_queries_agree_in_duckdb_and_polars(nights: Path) -> None:
    names = ["top_suspects", "accuracy_trend", "repeat_offenders", "shortage_by_sku", "worst_zones"]
    assert list(QUERIES) == names
    for name in names:
        assert _ask(nights, name).height > 0, name


def _results_tonight(nights: Path) -> pl.DataFrame:
    return pl.DataFrame(pa.concat_tables(read_results(read_night(str(nights), TONIGHT))))


def test_top_suspects_are_the_100_most_doubtful_of_the_results(nights: Path) -> None:
    doubted = _results_tonight(nights).filter(pl.col("verdict").is_in(["suspect", "certified"]))
    doubted = doubted.sort("p_record_wrong", "bin_id", descending=[True, False])
    found = _ask(nights, "top_suspects")
    assert doubted.height > 100 and found["bin_id"].to_list() == doubted["bin_id"].to_list()[:100]
    assert set(found["verdict"]) == {"suspect", "certified"}


def test_the_accuracy_trend_has_the_summaries_interval(nights: Path) -> None:
    trend = {str(row["audit_date"]): row for row in _ask(nights, "accuracy_trend").to_dicts()}
    assert list(trend) == DATES
    for night, row in trend.items():
        whole = read_night(str(nights), night).whole
        if whole["error_rate"] is None:
            assert (row["ira"], row["ira_low"], row["ira_high"]) == (None, None, None)
        else:
            rates = (whole["error_rate"], whole["error_rate_high"], whole["error_rate_low"])
            assert (row["ira"], row["ira_low"], row["ira_high"]) == pytest.approx([1 - rate for rate in rates])
            assert row["ira_low"] < row["ira"] < row["ira_high"]
        pieces = [f"{kind}_variance_units{end}" for kind in ("net", "gross") for end in ("_low", "", "_high")]
        assert [row[name] for name in pieces] == [whole[name] for name in pieces]
    assert [row["ira"] is None for row in trend.values()] == [True, False, False, False]
    assert [row["net_variance_units"] is None for row in trend.values()] == [True, False, False, False]


def test_worst_zones_come_by_value_at_risk_and_count_certified_bins_with_the_suspect(nights: Path) -> None:
    results, found = _results_tonight(nights), _ask(nights, "worst_zones")
    for row in found.to_dicts():
        assessed = results.filter(pl.col("verdict") != "not_assessed", zone=row["zone"])
        doubted = assessed["verdict"].is_in(["suspect", "certified"]).sum()
        share = doubted / assessed.height if assessed.height else None
        assert (row["num_suspect_or_certified"], row["suspect_or_certified_share"]) == (doubted, pytest.approx(share))
        assert row["value_at_risk"] == (pytest.approx(assessed["value_at_risk"].sum()) if assessed.height else None)
    assert set(found["zone"]) == set(results["zone"])
    order = ["value_at_risk", "expected_wrong", "zone"]
    by_value = found.sort(order, descending=[True, True, False], nulls_last=True)
    assert found["zone"].to_list() == by_value["zone"].to_list()


@pytest.mark.parametrize("name", ["top_suspects", "accuracy_trend", "shortage_by_sku", "worst_zones"])
def test_what_is_claimed_comes_with_where_its_record_model_is_from(nights: Path, name: str) -> None:
    last = _ask(nights, name)["record_model"]
    assert set(last) == ({"assumed", "learned"} if name == "accuracy_trend" else {"learned"})


def test_repeat_offenders_are_those_of_the_history(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for night in DATES[:3]:
        commit_night(str(tmp_path), night, [plan_row("p")])
    rows = [
        _counted(
            f"b{rng.integers(60):02}",
            int(rng.integers(1, 4)),
            rng.choice(np.array([None, "kim", "lee"], dtype=object)),
            night=DATES[rng.integers(3)],
            hour=int(rng.integers(4)),
            expected_qty=int(rng.integers(2, 4)),
            confirmed=rng.choice(np.array([None, False, True], dtype=object), p=(0.4, 0.5, 0.1)),
            # of a plan that was replaced: its counts hold
            run_id=f"{DATES[0]}-bbbbbbbbbbbb",
        )
        for _ in range(1500)
    ]
    take_in(tmp_path, *rows)
    offenders = read_history(str(tmp_path), TONIGHT).repeat_offenders
    assert 10 < len(offenders) < 60
    found = _ask(tmp_path, "repeat_offenders")
    assert dict(zip(found["bin_id"], found["num_wrong"], strict=True)) == offenders["num_wrong"].to_dict()


def test_shortage_by_sku_keeps_mixed_bins_apart_and_states_its_coverage(nights: Path) -> None:
    frame = _ask(nights, "shortage_by_sku")
    assert frame["share_of_units"].sum() == pytest.approx(1)
    assert frame["num_bins"].sum() == 1200
    unknown = frame.filter(pl.col("sku") == "SKU unknown")
    mixed = sum(
        rows.filter(pa.compute.greater(rows["num_skus"], 1)).num_rows
        for rows in read_results(read_night(str(nights), TONIGHT))
    )
    assert unknown["num_bins"].to_list() == [mixed]
    assert frame["coverage"].is_between(0, 1).all()


def _in_stock(bin_id: str, sku: str, net: float, gross: float, **values: Any) -> dict[str, Any]:
    facts = {"sku": sku, "num_skus": 1, "verdict": "ok", "currency": "EUR", "unit_value": 10.0}
    return plan_row(bin_id, expected_variance_qty=net, expected_abs_variance_qty=gross, **{**facts, **values})


def test_what_may_be_missing_and_what_may_be_too_much_do_not_cancel_in_a_bin(tmp_path: Path) -> None:
    bins = [_in_stock("a", "S", 0.0, 0.6), _in_stock("b", "S", -0.4, 0.4), _in_stock("c", "S", 0.3, 0.5)]
    lost = _in_stock("d", "S", -9.0, 9.0, verdict="not_assessed")
    commit_night(str(tmp_path), TONIGHT, [], other_bins=[*bins, lost])
    take_in(tmp_path)
    (row,) = _ask(tmp_path, "shortage_by_sku").to_dicts()
    assert (row["num_bins"], row["coverage"]) == (4, 0.75)
    assert (row["shortage_units"], row["overage_units"]) == (pytest.approx(0.3 + 0.4 + 0.1), pytest.approx(0.3 + 0.4))
    assert (row["shortage_value"], row["overage_value"]) == (pytest.approx(8), pytest.approx(7))
    assert row["currency"] == "EUR"


def test_sums_beyond_int32_do_not_wrap_around_and_a_night_without_a_piece_has_no_shares(tmp_path: Path) -> None:
    most = 2_000_000_000
    bins = [_in_stock("a", "S", 0.0, 0.0, expected_qty=most), _in_stock("b", "S", 0.0, 0.0, expected_qty=most)]
    commit_night(str(tmp_path / "much"), TONIGHT, [], other_bins=bins)
    take_in(tmp_path / "much")
    (row,) = _ask(tmp_path / "much", "shortage_by_sku").to_dicts()
    assert (row["recorded_units"], row["share_of_units"]) == (2 * most, 1)
    commit_night(str(tmp_path / "none"), TONIGHT, [], other_bins=[_in_stock("a", "S", 0.0, 0.0, expected_qty=0)])
    take_in(tmp_path / "none")
    (row,) = _ask(tmp_path / "none", "shortage_by_sku").to_dicts()
    assert (row["recorded_units"], row["share_of_units"]) == (0, None)


@pytest.mark.parametrize("listed", [True, False])
def test_a_night_that_is_replaced_while_it_is_read_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    commit_night(str(tmp_path), TONIGHT, [], other_bins=[_in_stock("a", "S", 0.0, 0.0)])
    night = read_night(str(tmp_path), TONIGHT)
    (part,) = part_uris(str(tmp_path), "results", TONIGHT, night.run_id)
    monkeypatch.setattr(layout, "committed_run", lambda *place: "another")
    Path(part).unlink()
    for module in (nights_module, records):
        monkeypatch.setattr(module, "part_uris", lambda *place: [part] if listed else [])
    with pytest.raises(GateError, match=f"night {TONIGHT} was replaced while it was read"):
        list(read_results(night))
    with pytest.raises(GateError, match="run the same command again"):
        records.find_records(str(tmp_path), {TONIGHT: {"a"}})
    monkeypatch.setattr(layout, "committed_run", lambda *place: night.run_id)
    assert records.find_records(str(tmp_path), {TONIGHT: {"a"}}) == ({}, {TONIGHT})


def test_a_damaged_part_of_a_night_is_named(tmp_path: Path) -> None:
    commit_night(str(tmp_path), TONIGHT, [], other_bins=[_in_stock("a", "S", 0.0, 0.0)])
    night = read_night(str(tmp_path), TONIGHT)
    (part,) = part_uris(str(tmp_path), "results", TONIGHT, night.run_id)
    data, footer_bytes = Path(part).read_bytes(), pq.read_metadata(part).serialized_size
    body = (
        len(data) - footer_bytes - 12
    )  # between the magic bytes at both ends, the footer's length before the last ones
    Path(part).write_bytes(data[:4] + b"\xff" * body + data[4 + body :])
    with pytest.raises(DamagedParquet, match=rf"{TONIGHT}.*expected a Parquet file"):
        list(read_results(night))
    with pytest.raises(DamagedParquet, match=rf"{TONIGHT}.*expected a Parquet file"):
        records.find_records(str(tmp_path), {TONIGHT: {"a"}})


def test_values_in_several_currencies_are_not_added_up_and_no_value_is_not_zero(tmp_path: Path) -> None:
    bins = [
        _in_stock("a", "both", -1.0, 1.0),
        _in_stock("b", "both", -1.0, 1.0, currency="USD"),
        _in_stock("c", "half", -1.0, 1.0),
        _in_stock("d", "half", -1.0, 1.0, currency=None),
        _in_stock("e", "part", -1.0, 1.0),
        _in_stock("f", "part", -1.0, 1.0, unit_value=None, currency=None),
        _in_stock("g", "none", -1.0, 1.0, unit_value=None),
        _in_stock("h", "lost", -1.0, 1.0, verdict="not_assessed"),
    ]
    commit_night(str(tmp_path), TONIGHT, [], other_bins=bins)
    take_in(tmp_path)
    rows = {row["sku"]: row for row in _ask(tmp_path, "shortage_by_sku").to_dicts()}
    found = {sku: (row["shortage_units"], row["shortage_value"], row["currency"]) for sku, row in rows.items()}
    assert found == {
        "both": (2, None, None),
        "half": (2, None, None),
        "part": (2, 10, "EUR"),
        "none": (1, None, None),
        "lost": (None, None, None),
    }


@pytest.mark.parametrize("table", ["results", "recount_plan"])
def test_the_views_leave_out_a_run_that_did_not_commit_the_night(tmp_path: Path, table: str) -> None:
    run_id, other = commit_night(str(tmp_path), TONIGHT, [plan_row("a")]), f"{TONIGHT}-ffffffffffff"
    take_in(tmp_path)
    (part,) = (tmp_path / table / f"audit_date={TONIGHT}").iterdir()
    rows = pq.read_table(part, partitioning=None)
    place = rows.schema.get_field_index("run_id")
    rows = rows.set_column(place, rows.schema.field(place), pa.array([other]))
    pq.write_table(rows, part.with_name(f"part-{other}-00000.parquet"))
    assert _duckdb(tmp_path).sql(f"SELECT run_id FROM {table}").fetchall() == [(run_id,)]


def test_a_repeat_offender_s_shortage_is_negative_and_its_last_error_the_latest(tmp_path: Path) -> None:
    for hour, (qty, expected) in enumerate([(1, 3), (2, 4)]):
        counted = _counted("a", qty, None, night=DATES[hour], hour=hour, expected_qty=expected, confirmed=True)
        take_in(tmp_path, counted)
    commit_night(str(tmp_path), TONIGHT, [plan_row("p")])
    (row,) = _ask(tmp_path, "repeat_offenders").to_dicts()
    assert (row["num_wrong"], row["net_variance_qty"]) == (2, -4)
    assert row["last_wrong_at"].timestamp() == datetime(2026, 3, 5, 9, tzinfo=UTC).timestamp()
