"""What the planner's page says of money and of zones, and what its search finds."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.config.report import ReportConfig
from jobs.platform.layout import committed_run, part_uris
from jobs.reporting.files import write_report
from jobs.reporting.overview import Overview
from jobs.reporting.page import MAX_LINES, MAX_TEXT, hidden_text, list_rows, list_worries, one_currency_money
from jobs.reporting.photos import Thumbnail
from jobs.reporting.pictures import zone_picture
from tests.night import write_nights

TONIGHT = "2026-03-02"

NET_UNITS = ("net_variance_units", "net_variance_units_low", "net_variance_units_high")
GROSS_UNITS = ("gross_variance_units", "gross_variance_units_low", "gross_variance_units_high")


def read_page(output: Path, **night: Any) -> str:
    write_nights(output, ["2026-03-01", TONIGHT], num_bins=200, **night)
    return render(output)


def render(output: Path) -> str:
    write_report(ReportConfig(output_uri=str(output), audit_date=TONIGHT, report_uri=str(output / "report")))
    return (output / "report" / "report.html").read_text()


def set_summary(output: Path, **columns: Any) -> None:
    """One value in every row of tonight's summary."""
    path = output / "summary" / f"audit_date={TONIGHT}" / "summary.parquet"
    table = pq.read_table(path, partitioning=None)
    rows = [{**row, **columns} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_shortage_and_surplus_stand_on_the_page_in_the_night_s_currency(tmp_path: Path) -> None:
    page = read_page(tmp_path, count_recounts=False)
    assert re.search(r"<dt>Shortage and surplus</dt>\s*<dd>EUR [\d,]+ short</dd>", page)
    assert "random counts say" not in page
    set_summary(tmp_path, net_variance_value=-1234.0, net_variance_value_low=-2000.0, net_variance_value_high=-400.0)
    assert (
        "random counts say that the records of an average night of the window are off by EUR -1,234 net (a level, not a loss a night; 95 %: EUR -2,000 to EUR -400)"
        in render(tmp_path)
    )


def test_what_counts_of_other_currencies_say_is_not_given_in_tonight_s(tmp_path: Path) -> None:
    known = dict.fromkeys(("net_variance_value", "net_variance_value_low", "net_variance_value_high"), -1234.0)
    write_nights(tmp_path, ["2026-03-01", TONIGHT], num_bins=200)
    set_summary(tmp_path, **known)
    assert "EUR -1,234 net" in render(tmp_path)
    path = tmp_path / "runs" / (committed_run(str(tmp_path), "2026-03-01") or "") / "plan.parquet"
    plan = pq.read_table(path)
    pounds = pa.array(["GBP"] * plan.num_rows, plan.schema.field("currency").type)
    pq.write_table(plan.set_column(plan.schema.get_field_index("currency"), "currency", pounds), path)
    assert "-1,234 net" not in render(tmp_path)


def test_how_many_pieces_the_records_are_off_by_stands_on_the_page_without_unit_values_too(tmp_path: Path) -> None:
    assert "pieces net" not in read_page(tmp_path, count_recounts=False)
    set_summary(
        tmp_path,
        **{"ira": 0.9, "error_rate_low": 0.05, "error_rate_high": 0.15},
        **dict(zip(NET_UNITS, (-1234.4, -2000.0, 10.0), strict=True)),
        **dict(zip(GROSS_UNITS, (3000.0, 2500.4, 4000.0), strict=True)),
        **dict.fromkeys(("shortage_value", "overage_value", "value_at_risk")),
    )
    page = render(tmp_path)
    assert (
        "off by −1,234 pieces net (95 %: −2,000 to +10), above 0 a surplus, and 3,000 gross (95 %: 2,500 to 4,000)"
        in page
    )


def test_money_that_is_not_known_is_a_dash_and_never_0(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", TONIGHT], num_bins=200)
    set_summary(tmp_path, shortage_value=None, overage_value=None, value_at_risk=None)
    page = render(tmp_path)
    assert "Shortage and surplus" not in page
    zone = re.search(r'<tr><th scope="row"><bdi>Z1</bdi></th>.*?</tr>', page)
    assert zone is not None and zone.group().count("<td>–</td>") == 3
    assert "Tonight, by wrong records expected" in page
    places = re.findall(r'<tr><th scope="row"><bdi>(Z\d+)</bdi></th>(.*?)</tr>', page)
    expected = [float(re.findall(r"<td>(.*?)</td>", cells)[5]) for _, cells in places]
    assert len(expected) > 3 and expected == sorted(expected, reverse=True)


def test_money_says_of_how_many_bins_it_is_where_some_have_no_unit_value(tmp_path: Path) -> None:
    page = read_page(tmp_path)
    assert "expected by photo and record in the assessed bins, whatever" in page
    assert "assessed bins that have a unit value" not in page and "at risk in the" not in page
    num_assessed = num_valued = num_listed = 0
    for part in part_uris(str(tmp_path), "results", TONIGHT, committed_run(str(tmp_path), TONIGHT) or ""):
        table = pq.read_table(part, partitioning=None)
        rows = [
            row if place % 4 else {**row, "unit_value": None, "value_at_risk": None}
            for place, row in enumerate(table.to_pylist())
        ]
        assessed = [row for row in rows if row["verdict"] != "not_assessed"]
        num_assessed += len(assessed)
        num_valued += sum(row["unit_value"] is not None for row in assessed)
        num_listed += sum(row["recount"] == "priority" and row["unit_value"] is not None for row in rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
    page, valued = render(tmp_path), f"{num_valued} of {num_assessed} assessed bins that have a unit value"
    assert 0 < num_listed < 70 and f" at risk in the {num_listed} that have a unit value; 30 random" in page
    assert f" over, expected by photo and record in the {valued}, whatever" in page
    assert f"Tonight, by value at risk. Money is that of the {valued}.</p>" in page
    assert (
        '<figcaption aria-hidden="true">Value of differences on the list, of the bins that have a unit value,' in page
    )


def test_a_zone_s_certified_bins_stand_with_its_suspect_ones(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", TONIGHT], num_bins=200)
    set_summary(tmp_path, num_suspect=3, num_certified=4, num_assessed=10)
    page = render(tmp_path)
    assert '<th scope="col">Suspect or certified</th><th scope="col">Share of assessed</th>' in page
    assert "<td>7</td><td>70.0\N{NO-BREAK SPACE}%</td>" in page


@pytest.mark.parametrize(
    ("currencies", "text"), [({"EUR"}, "EUR 12"), ({None}, "12"), ({"EUR", None}, None), (set(), None)]
)
def test_money_is_named_where_all_of_it_is_in_one_currency(currencies: set[str | None], text: str | None) -> None:
    assert one_currency_money(12.3, currencies) == text
    assert one_currency_money(None, currencies) is None


def test_a_night_without_random_bins_says_so(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", TONIGHT], num_bins=200)
    unknown = {"ira": None, "error_rate": None, "error_rate_low": None, "error_rate_high": None}
    set_summary(tmp_path, num_certified=0, **unknown)
    page = render(tmp_path)
    assert "no random bins tonight: ranking only" in page
    assert "90 % of its random bins" not in page
    set_summary(tmp_path, num_certified=3, **unknown)
    page = render(tmp_path)
    assert "no random bins tonight<" in page and "ranking only" not in page


def test_bins_without_a_zone_are_told_of_below_the_table_of_zones(tmp_path: Path) -> None:
    assert "in none of these rows" not in read_page(tmp_path)
    path = tmp_path / "summary" / f"audit_date={TONIGHT}" / "summary.parquet"
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.filter(pc.not_equal(table["scope_value"].fill_null(""), "Z1")), path)
    assert "<p>25 bins name no zone and are in none of these rows.</p>" in render(tmp_path)


def test_a_list_of_an_assumed_record_model_stays_marked_when_tonight_s_is_learned(tmp_path: Path) -> None:
    page = read_page(tmp_path)
    promises = page[page.index('<section id="promises"') : page.index('<section id="accuracy"')]
    assert re.findall(r'<tr><th scope="row">(.*?)</th>', promises) == [TONIGHT, "2026-03-01 (assumed)"]


def test_drift_of_a_night_of_which_nothing_was_assessed_is_not_said_to_be_none(tmp_path: Path) -> None:
    page = read_page(tmp_path)
    assert re.search(r"<dt>Drift</dt>\s*<dd>None</dd>", page) and "not measured" not in page.lower()
    set_summary(tmp_path, record_outside_set_share=None, num_assessed=0, coverage=0.0)
    page = render(tmp_path)
    assert re.search(r'<dt>Drift</dt>\s*<dd>Not measured</dd>\s*<dd class="small">nothing was assessed</dd>', page)
    assert page.count("<td>–</td><td>not measured</td>") == 1  # the night before was


def test_all_skus_and_names_of_a_bin_are_found_also_those_that_are_not_shown() -> None:
    def row(names: list[str]) -> dict[str, Any]:
        return {"sku": None, "skus": [{"sku": f"S{place}", "name": name} for place, name in enumerate(names)]}

    assert hidden_text(row(["tea"] * MAX_LINES)) == ""
    assert hidden_text(row(["tea"] * MAX_LINES + ["coffee"])).split("\n")[-2:] == [f"S{MAX_LINES}", "coffee"]
    assert hidden_text(row(["t" * MAX_TEXT + "end"])).endswith("end")
    assert hidden_text({"sku": None, "skus": [{"sku": None, "name": None}] * 20}) == ""


def test_what_a_search_finds_beyond_what_is_shown_is_bounded_over_all_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.reporting.page.MAX_SEARCH_TEXT", 250)
    monkeypatch.setattr("jobs.reporting.page.hidden_text", lambda row: "x" * 100)
    monkeypatch.setattr("jobs.reporting.page._list_row", lambda row, thumbnail: {})
    top: Any = pa.table({"bin_id": list("abcd")})
    rows = list_rows(Overview(top=top), [Thumbnail(None)] * 4)
    assert [len(row["search"]) for row in rows] == [100, 100, 50, 0]


def test_an_alarm_of_the_night_paints_no_zone_as_alarmed() -> None:
    zones = [{"scope_value": name, "record_outside_set_share": 0.1, "drift_alarm": True} for name in ("A", "B")]
    assert "--alarm" not in str(zone_picture(zones))


def test_the_axis_of_a_picture_rounds_none_of_its_marks() -> None:
    zones = [{"scope_value": "A", "record_outside_set_share": 0.18}]
    marks = [float(text) for text in re.findall(r">([\d.]+)%<", str(zone_picture(zones)))]
    assert len(marks) > 3 and len({round(after - mark, 6) for mark, after in pairwise(marks)}) == 1


def test_records_that_wait_for_their_correction_are_told_of_before_any_list_is_resolved(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", TONIGHT], num_bins=200, count_recounts=False)
    assert "counted wrong not long ago" not in render(tmp_path)
    part = Path(part_uris(str(tmp_path), "results", TONIGHT, committed_run(str(tmp_path), TONIGHT) or "")[0])
    table = pq.read_table(part, partitioning=None)
    reasons = table["reason"].to_pylist()
    reasons[:3] = ["counted_wrong", "second_count", "counted_wrong"]
    pq.write_table(table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons)), part)
    page = render(tmp_path)
    assert (
        "2 bins were counted wrong not long ago and the record says the same tonight: kept off the priority list"
        in page
    )
    assert "No priority bin has been counted yet" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drift_alarm": True}, "Drift alarm: camera or records have changed"),
        ({"num_assessed": 90}, "Only 90.0\N{NO-BREAK SPACE}% of the bins were assessed"),
        ({"num_scored": 90}, "10 photos could not be scored"),
        ({"num_bins": 101}, "The results hold 100 bins, the summary 101"),
        ({"num_bins": 99}, "The results hold 100 bins, the summary 99"),
    ],
)
def test_what_to_look_at_first_is_said_and_nothing_of_a_sound_night(change: dict[str, Any], said: str) -> None:
    sound = {"drift_alarm": False, "num_assessed": 97, "num_bins": 100, "num_scored": 98}
    assert list_worries(sound, Overview(num_rows=100)) == []
    (worry,) = list_worries(sound | change, Overview(num_rows=100))
    assert said in worry


def test_a_coverage_right_below_its_limit_is_not_shown_as_the_limit() -> None:
    night = {"drift_alarm": False, "num_bins": 100_000, "num_scored": 100_000}
    (worry,) = list_worries(night | {"num_assessed": 94_996}, Overview(num_rows=100_000))
    assert worry == "Only 94.9\N{NO-BREAK SPACE}% of the bins were assessed."
    assert list_worries(night | {"num_assessed": 95_000}, Overview(num_rows=100_000)) == []


def test_a_list_that_claims_less_than_one_wrong_record_does_not_claim_none(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", TONIGHT], num_bins=200)
    set_summary(tmp_path, exp_wrong_in_list=0.4)
    assert "about 0.4 wrong records expected" in render(tmp_path)
