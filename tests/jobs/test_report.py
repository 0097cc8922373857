"""The report: what it reads, what stands in its files, and that no text from a record does harm there."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes
from obstore.exceptions import GenericError
from PIL import Image
from xlsxwriter.exceptions import FileCreateError

from jobs.config.report import ReportConfig
from jobs.counting.estimates import estimate_window
from jobs.counting.history import BinToCount, read_history
from jobs.counting.plans import read_plan
from jobs.platform import storage
from jobs.platform.layout import REPORT_FACTS
from jobs.platform.provenance import provenance
from jobs.platform.texts import csv_text, visible_text
from jobs.report import main
from jobs.reporting import discrepancies, files, ordering, pictures
from jobs.reporting.closing import close_night
from jobs.reporting.discrepancies import DISCREPANCIES, write_discrepancies
from jobs.reporting.files import _list_second_counts, write_report
from jobs.reporting.nights import read_night, read_nights, read_results
from jobs.reporting.ordering import rows_by_doubt, sort_rows, top_rows
from jobs.reporting.overview import EXAMPLES, survey_night
from jobs.reporting.photos import Thumbnail, fetch_thumbnails
from jobs.reporting.promises import (
    CertificatePromise,
    Promise,
    find_offenders,
    keep_certificates,
    keep_promises,
)
from jobs.reporting.recount_lists import (
    PLANNER_SCHEMA,
    SEEN_BY_PLANNER,
    planner_csv,
    recount_xlsx,
    second_counts_csv,
    walk_order,
)
from schemas.errors import GateError, InputError
from schemas.results import RESULTS_SCHEMA
from tests.night import NASTY_TEXTS, write_nights
from tests.planned_night import commit_night, counted_row, plan_row, priority_row, take_in

DATES = ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
TONIGHT = DATES[-1]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four committed nights with nasty names, all but the last one counted."""
    output = tmp_path_factory.mktemp("audits")
    photo = output / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)).save(photo)
    write_nights(output, DATES, num_bins=1200, recount_budget=60, texts=NASTY_TEXTS, photos=[str(photo), "gone.jpg"])
    return output


@pytest.fixture(scope="module")
def report(nights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's folder for the last night."""
    folder = tmp_path_factory.mktemp("report")
    _write(nights, folder)
    return folder


def _write(nights: Path, folder: Path, audit_date: str = TONIGHT) -> None:
    write_report(ReportConfig(output_uri=str(nights), audit_date=audit_date, report_uri=str(folder)))


def _list(page: str) -> list[dict]:
    found = re.findall(r'<script id="rows" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def _set_run(output: Path, audit_date: str = TONIGHT, **facts: Any) -> None:
    """Changes what the committed run says of itself."""
    path = output / "runs" / read_night(str(output), audit_date).run_id / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_report_holds_a_page_the_lists_the_queries_and_what_made_it(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {
        *("report.html", "recount_list.csv", "recount_list.xlsx", "recount_list_planner.csv", "second_counts.csv"),
        *("discrepancies.csv", "discrepancies.xlsx", "queries.sql", "report.json"),
    }
    facts = json.loads((report / "report.json").read_text())
    assert facts["run_id"].startswith(TONIGHT)
    assert (facts["audit_date"], facts["bins"]) == (TONIGHT, 1200)
    assert (report / "report.html").stat().st_size < 6_000_000
    assert "<code>recount_list_planner.csv</code>" in (report / "report.html").read_text()


def test_a_report_names_its_settings_its_bundle_s_checksum_the_versions_and_the_commit(tmp_path: Path) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=60)
    _set_run(tmp_path, bundle={"bundle_id": "0123456789ab", "weights_sha256": "f" * 64})
    _write(tmp_path, tmp_path / "report")
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert facts["config"] == {
        "output_uri": str(tmp_path),
        "audit_date": TONIGHT,
        "report_uri": str(tmp_path / "report"),
    }
    assert (facts["bundle_id"], facts["weights_sha256"]) == ("0123456789ab", "f" * 64)
    assert facts["git_commit"] == provenance()["git_commit"]
    assert {"python", "pyarrow", "obstore", "jinja2", "xlsxwriter"} <= set(facts["versions"])


def test_a_night_that_is_not_committed_exits_2_and_names_those_that_are(
    nights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--output-uri", str(nights), "--audit-date", "2026-04-01", "--report-uri", str(tmp_path)])
    assert code == 2
    message = capsys.readouterr().err
    assert "2026-04-01 is not committed" in message
    assert all(date in message for date in DATES)


@pytest.mark.parametrize("kind", [lambda error: error, FileCreateError])
def test_a_full_temporary_folder_exits_1_and_says_what_to_do(
    nights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[OSError], Exception],
) -> None:
    def fail(*_: object) -> None:
        raise kind(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(files, "recount_xlsx", fail)
    assert main(["--output-uri", str(nights), "--audit-date", TONIGHT, "--report-uri", str(tmp_path / "report")]) == 1
    said = capsys.readouterr().err
    assert f"failed: {tempfile.gettempdir()}: the report can't be made there ([Errno 28] No space left" in said
    assert "make room, or set TMPDIR" in said
    assert not (tmp_path / "report").exists()


def test_page_and_lists_are_there_before_all_rows_are_and_no_older_rows_beside_them(
    nights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, is_complete = [], []

    def look(*given: Any) -> None:
        found.append({path.name for path in tmp_path.iterdir()})
        is_complete.append(storage.read_json(f"{tmp_path}/{REPORT_FACTS}")["complete"])
        write_discrepancies(*given)

    _write(nights, tmp_path, DATES[0])
    monkeypatch.setattr(files, "write_discrepancies", look)
    _write(nights, tmp_path)
    lists = {"recount_list.csv", "recount_list.xlsx", "recount_list_planner.csv", "second_counts.csv"}
    assert (found, is_complete) == ([{"report.html", "queries.sql", REPORT_FACTS, *lists}], [False])
    assert {path.name for path in tmp_path.iterdir()} == found[0] | {*DISCREPANCIES}
    assert storage.read_json(f"{tmp_path}/{REPORT_FACTS}")["complete"] is True


def test_an_older_report_no_longer_stands_for_one_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=60)
    report = tmp_path / "report"
    _write(tmp_path, report)
    assert (report / REPORT_FACTS).exists()
    write_bytes = storage.write_bytes

    def write_one(uri: str, data: Path) -> None:
        if not uri.endswith("discrepancies.csv"):
            raise GateError("killed")
        write_bytes(uri, data)

    monkeypatch.setattr(storage, "write_bytes", write_one)
    with pytest.raises(GateError, match="killed"):
        _write(tmp_path, report)
    assert not (report / REPORT_FACTS).exists()


def test_parts_of_a_run_that_did_not_commit_the_night_are_not_read(nights: Path, tmp_path: Path) -> None:
    output = tmp_path / "audits"
    shutil.copytree(nights, output)
    part = next((output / "results" / f"audit_date={TONIGHT}").glob("part-*-00000.parquet"))
    shutil.copy(part, part.with_name(f"part-{TONIGHT}-ffffffffffff-00000.parquet"))
    assert sum(rows.num_rows for rows in read_results(read_night(str(output), TONIGHT))) == 1200


def test_the_page_lists_the_plan_by_rank_and_then_the_most_doubtful_bins(report: Path, nights: Path) -> None:
    rows = _list((report / "report.html").read_text())
    assert len(rows) == 1000
    assert [row["rank"] for row in rows[:42]] == list(range(1, 43))
    assert [row["recount"] for row in rows[42:60]] == ["random"] * 18
    assessed = [row["wrong"] for row in rows[60:] if row["verdict"] != "not_assessed"]
    assert assessed == sorted(assessed, reverse=True)


def test_the_page_gives_accuracy_with_its_interval_and_what_past_lists_claimed_and_found(
    report: Path, nights: Path
) -> None:
    page = (report / "report.html").read_text()
    whole = read_night(str(nights), TONIGHT).whole
    accuracy, low, high = whole["ira"], 1 - whole["error_rate_high"], 1 - whole["error_rate_low"]
    assert f"<dd>{100 * accuracy:.1f}\N{NO-BREAK SPACE}%</dd>" in page
    assert f"95 %: {100 * low:.1f}\N{NO-BREAK SPACE}% to {100 * high:.1f}\N{NO-BREAK SPACE}%" in page
    assert "record model: assumed" not in page
    assert page.count("<svg") == 5


def test_without_random_counts_the_page_ranks_and_claims_nothing(tmp_path: Path) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=100)
    _write(tmp_path, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "no night has 90 % of its random bins resolved yet: ranking only" in page
    assert page.count("record model: assumed") >= 4
    assert "No priority bin has been counted yet" in page


def test_no_text_from_a_record_leaves_its_place_in_the_page(report: Path) -> None:
    page = (report / "report.html").read_text()
    rows = _list(page)
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert "alert(1)</script>" not in page
    assert not re.search(r"<img[^>]*onerror", page)
    data = re.search(r'<script id="rows" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert not set("<>&\u2028\u2029") & set(data.group(1))
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", page)
    assert "49" not in re.findall(r"ampersand; (\S+)", page)
    assert any("<script>alert(1)</script>" in row["bin"] for row in rows) or any(
        "<script>alert(1)</script>" in (row["zone"] or "") for row in rows
    )


def test_every_bin_stands_once_in_the_csv_and_in_the_spreadsheet(report: Path, nights: Path) -> None:
    expected = pa.concat_tables(read_results(read_night(str(nights), TONIGHT)))
    table = duckdb.sql(f"SELECT * FROM read_csv('{report / 'discrepancies.csv'}')")
    assert table.columns == ["audit_date", *discrepancies.COLUMNS, "record_model"]
    assert set(discrepancies.COLUMNS) == set(RESULTS_SCHEMA.names)
    frame = table.pl()
    sheet = pd.read_excel(report / "discrepancies.xlsx", sheet_name="Discrepancies")
    assert frame.height == len(sheet) == expected.num_rows
    assert (
        frame["expected_qty"].sum() == sheet["expected_qty"].sum() == pa.compute.sum(expected["expected_qty"]).as_py()
    )
    doubt = pa.compute.sum(expected["p_record_wrong"]).as_py()
    assert frame["p_record_wrong"].sum() == pytest.approx(doubt, rel=1e-5)
    assert sheet["p_record_wrong"].sum() == pytest.approx(doubt, rel=1e-4)
    assert set(frame["record_model"]) == {"learned"}
    assert frame["rank"][0] == sheet["rank"].iloc[0] == 1
    assert frame["photo_at"].dtype.is_temporal()
    assert str(sheet["photo_at"].dtype).startswith("datetime64")


def test_no_text_from_a_record_is_a_formula_in_a_csv(report: Path) -> None:
    for name in ("discrepancies.csv", "recount_list.csv", "recount_list_planner.csv"):
        with (report / name).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1
        for row in rows[1:]:
            for cell in row:
                number = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell)
                assert number or not re.match(r"[=+\-@\t\r\n]", cell), (name, cell)
                assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", cell)
    with (report / "discrepancies.csv").open(encoding="utf-8-sig", newline="") as file:
        skus = {row["sku"] for row in csv.DictReader(file)}
    assert '\'=HYPERLINK("http://evil.example","x")' in skus
    assert "control␀␇␛[31mcharacters" in skus


@pytest.mark.parametrize("name", ["discrepancies.xlsx", "recount_list.xlsx"])
def test_no_text_from_a_record_is_a_formula_or_a_link_in_a_spreadsheet(report: Path, name: str) -> None:
    book = openpyxl.load_workbook(report / name)
    for sheet in book.worksheets:
        for row in sheet.iter_rows():
            for cell in row:
                assert cell.data_type != "f", cell.value
                assert cell.hyperlink is None


def test_a_spreadsheet_shows_shares_as_such(report: Path) -> None:
    sheet = openpyxl.load_workbook(report / "discrepancies.xlsx")["Discrepancies"]
    head, *rows = sheet.iter_rows()
    formats = {
        cell.value: {row[place].number_format for row in rows if row[place].value is not None}
        for place, cell in enumerate(head)
    }
    for name in ("p_record_wrong", "p_short", "p_over", "p_empty", "p_expected", "inclusion_probability"):
        assert formats[name] == {"0.0%"}, name
    for name in ("expected_variance_qty", "value_at_risk"):
        assert formats[name] == {"#,##0.00"}, name


def test_a_spreadsheet_keeps_nasty_text_whole_with_a_frozen_header_and_filters(report: Path) -> None:
    sheet = openpyxl.load_workbook(report / "discrepancies.xlsx")["Discrepancies"]
    column = discrepancies.SHEET_COLUMNS.index("sku")
    skus = {row[column] for row in sheet.iter_rows(min_row=2, values_only=True)}
    assert {"x" * 500, "<script>alert(1)</script>", '=HYPERLINK("http://evil.example","x")'} <= skus
    assert sheet.freeze_panes == "F2"
    assert sheet.auto_filter.ref == f"A1:{openpyxl.utils.get_column_letter(len(discrepancies.SHEET_COLUMNS))}1201"


@pytest.mark.parametrize(
    ("audit_date", "said"), [(DATES[0], "assumed: too few random"), (TONIGHT, "learned from recounts")]
)
def test_a_spreadsheet_says_where_its_record_model_is_from(
    nights: Path, tmp_path: Path, audit_date: str, said: str
) -> None:
    _write(nights, tmp_path, audit_date)
    sheet = openpyxl.load_workbook(tmp_path / "discrepancies.xlsx")["About"]
    facts = dict(sheet.iter_rows(values_only=True))
    assert facts["record model"].startswith(said) and facts["record model"].endswith("5.0% of the records wrong")


def test_a_spreadsheet_that_can_not_hold_the_night_says_so_and_keeps_the_most_doubtful(
    nights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discrepancies, "SHEET_ROWS", 101)
    _write(nights, tmp_path)
    book = openpyxl.load_workbook(tmp_path / "discrepancies.xlsx")
    assert book["Discrepancies"].max_row == 101
    assert book["Discrepancies"]["A2"].value == 1
    assert "100 of 1,200" in str([row[1].value for row in book["About"].iter_rows()])
    assert "first 100 of 1,200" in caplog.text
    with (tmp_path / "discrepancies.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1201


def test_the_recount_list_is_blind_and_in_walk_order(report: Path, nights: Path) -> None:
    with (report / "recount_list.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    places = walk_order(read_plan(str(nights), read_night(str(nights), TONIGHT).run_id))
    assert len(places) == 60
    assert [(row["stop"], row["zone"], row["bin_id"]) for row in rows] == [
        (str(stop), *csv_text(pa.array(place)).to_pylist()) for stop, place in enumerate(places, start=1)
    ]
    columns = [
        "stop",
        "zone",
        "bin_id",
        "audit_date",
        "counted_qty",
        "counted_at",
        "counter_id",
        "confirmed",
        "reason_code",
    ]
    assert list(rows[0]) == columns
    assert all(row[name] == "" for row in rows for name in columns[4:])
    sheet = openpyxl.load_workbook(report / "recount_list.xlsx").active
    assert sheet is not None
    cells = [[cell.value for cell in row] for row in sheet.iter_rows(min_row=4, max_row=64)]
    assert cells[0] == ["Stop", "Zone", "Bin", "Count", "Remarks"]
    assert all(row[3] is None and row[4] is None for row in cells[1:])
    assert [row[:3] for row in cells[1:]] == [
        [stop, *map(visible_text, place)] for stop, place in enumerate(places, start=1)
    ]


def test_the_planner_s_list_has_the_blind_list_s_stops_with_what_the_results_say(report: Path, nights: Path) -> None:
    blind, planner = (
        list(csv.DictReader((report / name).read_text(encoding="utf-8-sig").splitlines()))
        for name in ("recount_list.csv", "recount_list_planner.csv")
    )
    place = ["stop", "zone", "bin_id", "audit_date"]
    assert list(planner[0]) == [*place, *SEEN_BY_PLANNER, "record_model"]
    assert {row["record_model"] for row in planner} == {"learned"}
    assert [[row[name] for name in place] for row in planner] == [[row[name] for name in place] for row in blind]
    night = read_night(str(nights), TONIGHT)
    results = {row["bin_id"]: row for rows in read_results(night) for row in rows.to_pylist()}
    for row, (_, bin_id) in zip(planner, walk_order(read_plan(str(nights), night.run_id)), strict=True):
        for name in SEEN_BY_PLANNER:
            value = results[bin_id][name]
            assert row[name] == "" if value is None else type(value)(row[name]) == pytest.approx(value)
    assert {row["recount"] for row in planner} == {"priority", "random"}
    assert sorted(int(row["rank"]) for row in planner if row["rank"]) == list(range(1, 43))


def test_a_currency_is_no_formula_in_the_planner_s_list() -> None:
    facts = {
        **dict.fromkeys(SEEN_BY_PLANNER),
        "bin_id": "b",
        "expected_qty": 1,
        "recount": "random",
        "currency": "=1+1",
    }
    planned = pa.Table.from_pylist([facts], schema=PLANNER_SCHEMA)
    (row,) = csv.DictReader(planner_csv([("=Z", "b")], planned, TONIGHT, "learned").decode("utf-8-sig").splitlines())
    assert (row["zone"], row["currency"], row["value_at_risk"]) == ("'=Z", "'=1+1", "")
    assert row["record_model"] == "learned"


def test_a_night_without_a_plan_has_empty_lists(tmp_path: Path) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=60, recount_budget=0)
    _write(tmp_path, tmp_path / "report")
    for name in ("recount_list.csv", "recount_list_planner.csv"):
        assert len((tmp_path / "report" / name).read_text().splitlines()) == 1


def test_a_list_that_was_filled_in_where_it_lies_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=60)
    report = tmp_path / "report"
    _write(tmp_path, report)
    paths = [report / name for name in files.FLOOR_LISTS]
    blank = [path.read_text() for path in paths]
    _write(tmp_path, report)
    assert not list(report.glob("*-filled-in-*"))
    line = f"1,Z1,{{}},{TONIGHT},2,2026-03-02T12:00,kim,,\n"
    counted = [text + line.format(path.stem) for text, path in zip(blank, paths, strict=True)]
    for path, text in zip(paths, counted, strict=True):
        path.write_text(text)
    for _ in range(2):
        _write(tmp_path, report)
        assert [path.read_text() for path in paths] == blank
        kept = sorted(report.glob("*-filled-in-*"))
        assert [path.read_text() for path in kept] == counted
    for path in kept:
        assert f"it is kept as {path.name}" in caplog.text


def test_walk_order_compares_numbers_as_numbers_and_puts_unknown_zones_last() -> None:
    plan = pa.table({"zone": ["Z10", "Z2", None, "Z2", "Z2"], "bin_id": ["a", "b-10", "c", "b-9", "b-09x"]})
    assert walk_order(plan) == [("Z2", "b-9"), ("Z2", "b-09x"), ("Z2", "b-10"), ("Z10", "a"), (None, "c")]


def test_second_counts_are_in_walk_order_and_of_a_bin_by_night() -> None:
    waiting = [BinToCount("Z2", *found) for found in (("b-10", DATES[0]), ("b-9", DATES[1]), ("b-9", DATES[0]))]
    rows = csv.DictReader(second_counts_csv(waiting).decode("utf-8-sig").splitlines())
    assert [(row["bin_id"], row["audit_date"]) for row in rows] == [
        ("b-9", DATES[0]),
        ("b-9", DATES[1]),
        ("b-10", DATES[0]),
    ]


def test_the_top_of_a_stream_is_the_top_of_the_sorted_whole(nights: Path) -> None:
    batches = [
        rows.slice(start, 97) for rows in read_results(read_night(str(nights), TONIGHT)) for start in range(0, 1200, 97)
    ]
    whole = sort_rows(pa.concat_tables(batches))
    top = top_rows(batches, 150)
    assert top["bin_id"].to_pylist() == whole["bin_id"].to_pylist()[:150]


def test_a_night_sorted_through_files_is_the_sorted_night(nights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "BUCKET_ROWS", 100)
    night = read_night(str(nights), TONIGHT)
    tables = list(rows_by_doubt(read_results(night), survey_night(night).histogram))
    assert len(tables) > 5
    assert max(table.num_rows for table in tables) < 400
    found, whole = pa.concat_tables(tables), sort_rows(pa.concat_tables(read_results(night)))
    assessed = pa.compute.not_equal(whole["verdict"], "not_assessed")
    assert (
        found["bin_id"].to_pylist()[: whole.filter(assessed).num_rows] == whole.filter(assessed)["bin_id"].to_pylist()
    )
    assert sorted(found["bin_id"].to_pylist()) == sorted(whole["bin_id"].to_pylist())


def _counted(bin_id: str, qty: int, counter: str, night: str = DATES[0], **values: Any) -> dict[str, Any]:
    """A row of `counted`; the later a counter's name in the alphabet, the later they counted."""
    hours = 30 + ord(counter[0]) - ord("a")
    counted_at = datetime.fromisoformat(night).replace(tzinfo=UTC) + timedelta(hours=hours)
    return counted_row(bin_id, qty, night, counted_at, counter_id=counter, **values)


def _promise(output: Path, night: str = DATES[0]) -> Promise:
    (promise,) = [
        promise for promise in keep_promises(read_history(str(output), TONIGHT)) if promise.audit_date == night
    ]
    return promise


def test_a_promise_is_kept_by_second_counts_as_by_confirmed_ones(tmp_path: Path) -> None:
    bins = [f"p{number}" for number in range(10)]
    commit_night(
        str(tmp_path), DATES[0], [priority_row(name, rank, unit_value=2.0) for rank, name in enumerate(bins, 1)]
    )
    take_in(tmp_path, *(_counted(name, 1 if name < "p6" else 3, "ann") for name in bins))
    promise = _promise(tmp_path)
    assert (promise.num_listed, promise.num_resolved, promise.num_pending) == (10, 4, 6)
    assert (promise.num_compared, promise.claimed_precision, promise.found_precision) == (0, None, None)
    assert (promise.claimed_value, promise.found_value) == (None, None)
    take_in(tmp_path, *(_counted(name, 1, "ann", confirmed=True) for name in bins[:3]))
    take_in(tmp_path, *(_counted(name, 1, "bob") for name in bins[3:6]))
    promise = _promise(tmp_path)
    assert (promise.num_resolved, promise.num_pending, promise.num_compared, promise.found_hits) == (10, 0, 10, 6)
    assert promise.claimed_precision == pytest.approx(0.6)
    assert promise.found_precision == 0.6
    assert (promise.claimed_value, promise.found_value) == (pytest.approx(2.0), pytest.approx(6 * 2 * 2.0))


def test_nights_of_several_currencies_are_not_added_up_in_a_picture() -> None:
    def promise(audit_date: str, currency: str) -> Promise:
        return Promise(audit_date, 4, 4, 4, 1.0, 2, 10.0, 12.0, frozenset([currency]))

    euros = [promise(DATES[0], "EUR"), promise(DATES[1], "EUR")]
    assert pictures.value_picture(euros) is not None
    assert pictures.value_picture([promise(DATES[0], "BGN"), euros[1]]) is None


def test_certified_bins_that_were_counted_are_held_against_their_false_share(tmp_path: Path) -> None:
    """The record was right for p0, wrong for p1 and p2; of 12 pieces 11 are there in p3, which is the same class."""
    listed = [priority_row(f"p{number}", number + 1, certified_at=0.1 if number < 2 else 0.3) for number in range(3)]
    listed += [priority_row("p3", 4, 12, certified_at=0.3), priority_row("plain", 5)]
    commit_night(str(tmp_path), DATES[0], [*listed, plan_row("drawn")])
    found = [_counted("p0", 3, "ann"), _counted("plain", 3, "ann"), _counted("p3", 11, "ann", expected_qty=12)]
    take_in(tmp_path, *found, _counted("drawn", 3, "ann"))
    assert keep_certificates(read_history(str(tmp_path), TONIGHT)) == [], "matches come in first"
    take_in(tmp_path, *(_counted(name, 1, who) for name in ("p1", "p2") for who in ("ann", "bob")))
    take_in(tmp_path, _counted("p3", 11, "bob", expected_qty=12))
    strict, usual = keep_certificates(read_history(str(tmp_path), TONIGHT))
    assert strict == CertificatePromise(0.1, 2, num_in_reach=2, num_right_in_reach=1, share_right=0.5, effective_size=2)
    assert usual == CertificatePromise(0.3, 4, num_in_reach=4, num_right_in_reach=2, share_right=0.5, effective_size=4)
    assert not usual.stands_for_all
    assert usual.right_interval[0] < 0.5 < usual.right_interval[1]


def test_random_bins_stand_for_the_certified_ones_that_the_list_could_not_hold(tmp_path: Path) -> None:
    """The list's only bin was wrong; the one drawn of ten as likely certified ones was right."""
    listed = priority_row("listed", 1, certified_at=0.3, p_record_wrong=0.9)
    commit_night(str(tmp_path), DATES[0], [listed, plan_row("drawn", certified_at=0.3, p_record_wrong=0.4)])
    take_in(tmp_path, _counted("listed", 1, "ann", confirmed=True), _counted("drawn", 3, "ann"))
    (usual,) = keep_certificates(read_history(str(tmp_path), TONIGHT))
    assert (usual.num_counted, usual.share_right) == (2, pytest.approx(10 / 11))
    assert usual.effective_size == pytest.approx(11**2 / 101)
    assert (usual.num_in_reach, usual.num_right_in_reach, usual.num_off_list) == (1, 0, 1)


@pytest.mark.parametrize(
    ("num_off_list", "said"),
    [
        (0, "of the 2 counted since that the list held or reached, 1 was right after all. For any off the list none"),
        (
            4,
            "1 was right after all. For any off the list 4 of the random bins stand yet, too few to tell a share of all",
        ),
        (5, "the random ones standing for those off the list, 98.1\N{NO-BREAK SPACE}% of these records were right"),
    ],
)
def test_the_list_alone_does_not_say_how_many_certified_records_were_right(
    tmp_path: Path, num_off_list: int, said: str
) -> None:
    drawn = [plan_row(f"drawn{number}", certified_at=0.3, p_record_wrong=0.4) for number in range(num_off_list)]
    plan = [*(priority_row(name, 1, certified_at=0.3) for name in "pq"), *drawn, plan_row("plain")]
    commit_night(str(tmp_path), DATES[0], plan)
    found = [_counted(row["bin_id"], 1 if row["bin_id"] == "p" else 3, "ann", confirmed=True) for row in plan]
    take_in(tmp_path, *found)
    write_nights(tmp_path, [TONIGHT], num_bins=100)
    _write(tmp_path, tmp_path / "report")
    assert said in (tmp_path / "report" / "report.html").read_text()


def test_planned_bins_that_nobody_counted_are_pending_and_a_list_half_counted_is_not_compared(tmp_path: Path) -> None:
    bins = [f"p{number:02}" for number in range(20)]
    commit_night(str(tmp_path), DATES[0], [priority_row(name, rank) for rank, name in enumerate(bins, 1)])
    take_in(tmp_path, *(_counted(name, 3, "ann") for name in bins[:17]))
    promise = _promise(tmp_path)
    assert (promise.num_resolved, promise.num_pending, promise.num_compared, promise.claimed_hits) == (17, 3, 0, 0)
    # 18 of 20 are enough, and what is compared includes a mismatch as it was first counted (as in the estimates)
    take_in(tmp_path, _counted("p17", 3, "ann"), _counted("p18", 1, "ann"))
    promise = _promise(tmp_path)
    assert (promise.num_resolved, promise.num_pending, promise.num_compared, promise.found_hits) == (18, 2, 19, 1)
    assert promise.claimed_hits == pytest.approx(19 * 0.6)
    estimates = estimate_window(read_history(str(tmp_path), TONIGHT))
    assert promise.found_precision == pytest.approx(estimates.list_precision_window)


def test_counts_taken_in_against_a_plan_that_was_replaced_keep_promises_too(tmp_path: Path) -> None:
    plan = [priority_row("p", 1), priority_row("q", 2)]
    commit_night(str(tmp_path), DATES[0], plan)
    take_in(tmp_path, *(_counted(name, 3, "ann") for name in "pq"))
    commit_night(str(tmp_path), DATES[0], plan, run="bbbbbbbbbbbb")
    promise = _promise(tmp_path)
    assert (promise.num_listed, promise.num_resolved, promise.num_compared) == (2, 2, 2)


def test_the_page_compares_only_lists_that_are_resolved(nights: Path, tmp_path: Path) -> None:
    output = tmp_path / "audits"
    shutil.copytree(nights, output)
    counts = output / "counted" / f"counts-{DATES[1]}.parquet"
    pq.write_table(pq.read_table(counts).slice(0, 20), counts)
    promises = keep_promises(read_history(str(output), "2026-03-05"))
    assert [promise.num_compared > 0 for promise in promises] == [True, False, True, False]
    assert 0 < promises[1].num_resolved < promises[1].num_listed
    _write(output, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    compared = sum(promise.num_compared for promise in promises)
    assert f"{compared} priority bins were counted on lists that are at least 90 % resolved" in page
    assert f"<td>42</td><td>{promises[1].num_resolved}</td><td>{promises[1].num_pending}</td><td>–</td>" in page


@pytest.mark.parametrize(("later", "sku", "is_asked"), [(3, "A", True), (4, "A", False), (3, "B", False)])
def test_nobody_is_asked_again_about_a_record_that_a_later_night_saw_changed(
    tmp_path: Path, later: int, sku: str, is_asked: bool
) -> None:
    uri = str(tmp_path)
    commit_night(uri, "2026-03-02", [plan_row("a", skus=[{"sku": "A", "name": None, "quantity": 3}])])
    counted_at = datetime(2026, 3, 2, 15, tzinfo=UTC)
    take_in(uri, counted_row("a", 1, "2026-03-02", counted_at, run_id="r"))
    commit_night(uri, "2026-03-03", [plan_row("a", later, skus=[{"sku": sku, "name": None, "quantity": 3}])])
    night = read_night(uri, "2026-03-02")
    assert _list_second_counts(night, read_history(uri, "2026-03-03")) == [(None, "a", "2026-03-02")] * is_asked


def test_repeat_offenders_were_wrong_again_after_a_correction(tmp_path: Path) -> None:
    for night in DATES[:3]:
        commit_night(str(tmp_path), night, [priority_row("listed", 1), priority_row("again", 2, zone="Z1")])
    found = [("again", 2, 3), ("again", 1, 2), ("same", 2, 3), ("same", 2, 3), ("listed", 3, 3)]
    for number, (name, qty, expected) in enumerate(found):
        night = DATES[number % 2]
        take_in(tmp_path, *(_counted(name, qty, who, night, expected_qty=expected) for who in ("ann", "bob")))
    (offender,) = find_offenders(read_history(str(tmp_path), TONIGHT))
    assert offender == {
        "bin_id": "again",
        "zone": "Z1",
        "listed": 3,
        "counted": 4,
        "wrong": 2,
        "last_counted_at": pd.Timestamp("2026-03-03T07:00Z"),
    }


def test_of_repeat_offenders_the_one_that_was_wrong_most_often_comes_first(tmp_path: Path) -> None:
    for name, num_wrong in (("twice", 2), ("thrice", 3), ("also twice", 2)):
        for night, expected in zip(DATES, range(num_wrong), strict=False):
            take_in(tmp_path, _counted(name, 9, "ann", night, expected_qty=expected, confirmed=True))
    offenders = find_offenders(read_history(str(tmp_path), TONIGHT))
    assert [(row["bin_id"], row["wrong"]) for row in offenders] == [("thrice", 3), ("also twice", 2), ("twice", 2)]


def test_only_scored_photos_are_fetched_and_one_that_is_gone_says_so(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (900, 300), "red").save(photo)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    rows = [
        {"image_uri": str(photo), "status": "scored"},
        {"image_uri": str(photo), "status": "image_rejected"},
        {"image_uri": str(tmp_path / "gone.jpg"), "status": "scored"},
        {"image_uri": str(tmp_path / "broken.jpg"), "status": "scored"},
    ]
    shown, rejected, gone, broken = fetch_thumbnails(rows, (str(tmp_path),), anonymous=False, audited_at=None)
    assert shown.source is not None
    assert shown.source.startswith("data:image/jpeg;base64,")
    assert (rejected.source, rejected.problem) == (None, "image rejected")
    assert (gone.source, gone.problem) == (None, "no longer there")
    assert broken.source is None
    assert broken.problem


def test_a_photo_that_became_a_link_to_elsewhere_is_not_shown(tmp_path: Path) -> None:
    Image.new("RGB", (90, 30), "red").save(tmp_path / "private.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(tmp_path / "private.png")
    rows = [{"image_uri": str(tmp_path / "photos" / "a.png"), "status": "scored"}]
    (found,) = fetch_thumbnails(rows, (str(tmp_path / "photos"),), anonymous=False, audited_at=None)
    assert found == Thumbnail(None, "outside the audit's allowed roots")
    (unknown,) = fetch_thumbnails(rows, None, anonymous=False, audited_at=None)
    assert unknown.source is not None
    assert fetch_thumbnails(rows, (), anonymous=False, audited_at=None) == [found], "where none is allowed"


def test_a_photo_that_was_replaced_since_the_audit_is_not_shown_beside_its_count(tmp_path: Path) -> None:
    Image.new("RGB", (90, 30), "red").save(tmp_path / "photo.png")
    write_nights(tmp_path, [TONIGHT], num_bins=60, photos=[str(tmp_path / "photo.png")])
    for hours, is_shown in ((1, True), (-1, False)):
        ended = datetime.now(UTC) + timedelta(hours=hours)
        _set_run(tmp_path, outcome={"finished_at": ended.isoformat(timespec="seconds")})
        _write(tmp_path, tmp_path / "report")
        page = (tmp_path / "report" / "report.html").read_text()
        assert ("data:image/jpeg;base64," in page, "replaced since the audit" in page) == (is_shown, not is_shown)


def test_photos_are_read_as_the_try_that_committed_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def fetch(rows: list[dict[str, Any]], _: tuple[str, ...], *, anonymous: bool, **__: object) -> list[Thumbnail]:
        asked.append(anonymous)
        return [Thumbnail(None, "not asked for")] * len(rows)

    monkeypatch.setattr("jobs.reporting.files.fetch_thumbnails", fetch)
    write_nights(tmp_path, [TONIGHT], num_bins=60)
    began = {"config": {"anonymous": False, "objective": "probability"}}
    _set_run(tmp_path, **began, outcome={"config": {"anonymous": True}})
    _write(tmp_path, tmp_path / "report")
    # that try died before it could say so, or was of before it was written
    _set_run(tmp_path, **began, outcome={})
    _write(tmp_path, tmp_path / "report")
    assert asked == [True, False]


def test_a_photo_whose_store_can_not_be_opened_says_why_and_ends_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    locate, asked = storage.locate, []
    monkeypatch.setattr(storage, "locate", lambda uri, **flags: asked.append(uri) or locate(uri, **flags))
    uris = ["s3://no-keys-here/a.jpg", "s3://no-keys-here/b.jpg", "gs://elsewhere/c.jpg"]
    first, second, third = fetch_thumbnails(
        [{"image_uri": uri, "status": "scored"} for uri in uris],
        ("s3://no-keys-here",),
        anonymous=False,
        audited_at=None,
    )
    assert first == second == Thumbnail(None, "s3://no-keys-here: no AWS credentials found")
    assert third == Thumbnail(None, "outside the audit's allowed roots")
    assert asked == [uris[0]]


def test_photos_beyond_the_page_s_size_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(photo)
    monkeypatch.setattr("jobs.reporting.photos.MAX_PHOTO_BYTES", 150_000)
    rows = [{"image_uri": str(photo), "status": "scored"}] * 30
    found = fetch_thumbnails(rows, (str(tmp_path),), anonymous=False, audited_at=None)
    assert found[0].source is not None
    assert found[-1] == type(found[0])(None, "left out to keep the page small")
    assert sum(len(thumbnail.source or "") for thumbnail in found) <= 150_000


def test_a_photo_that_can_not_be_had_says_so_also_where_the_page_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (90, 30), "red").save(tmp_path / "photo.png")
    monkeypatch.setattr("jobs.reporting.photos.MAX_PHOTO_BYTES", 100)
    rows = [{"image_uri": str(tmp_path / name), "status": "scored"} for name in ("photo.png", "gone.jpg")]
    rejected = {"image_uri": str(tmp_path / "photo.png"), "status": "image_rejected"}
    found = fetch_thumbnails([*rows, rejected], (str(tmp_path),), anonymous=False, audited_at=None)
    assert [thumbnail.problem for thumbnail in found] == [
        "left out to keep the page small",
        "no longer there",
        "image rejected",
    ]


UPLOAD = """
import os, sys
from pathlib import Path
from jobs.platform import storage

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

folder = Path(sys.argv[1]) / "from"
folder.mkdir()
(folder / "discrepancies.csv").touch()
os.truncate(folder / "discrepancies.csv", 250 << 20)
(folder / "empty").touch()
before = peak()
storage.upload_folder(folder, sys.argv[2], last="empty")
print((peak() - before) // 1024)
"""


@pytest.fixture
def target(place: str) -> str:
    return f"{place}/to"


def test_a_large_file_goes_part_by_part(target: str, tmp_path: Path) -> None:
    command, root = [sys.executable, "-c", UPLOAD, str(tmp_path), target], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150  # MiB
    sizes = {entry.uri: entry.num_bytes for entry in storage.list_objects(target)}
    assert sizes == {f"{target}/discrepancies.csv": 250 << 20, f"{target}/empty": 0}


@pytest.mark.parametrize("size", [10, 20 << 20])
def test_a_folder_that_can_not_be_copied_says_where_and_why(tmp_path: Path, size: int) -> None:
    source, file = tmp_path / "from", tmp_path / "file"
    source.mkdir()
    (source / "page.html").write_bytes(b"x" * size)
    file.touch()
    with pytest.raises(InputError, match=r"file/page.html: can't be written .*; check the place"):
        storage.upload_folder(source, str(file), last="page.html")


def test_a_full_disk_is_said_to_be_the_storage_s_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullStore:
        def put(self, key: str, file: Path, **options: object) -> None:
            raise GenericError("Generic LocalFileSystem error: Unable to copy data to file: No space left on device")

    (tmp_path / "page.html").touch()
    monkeypatch.setattr(storage, "locate", lambda uri: (FullStore(), uri))
    with pytest.raises(GateError, match=r"report/page.html: can't be written .*No space left.*when storage is back"):
        storage.upload_folder(tmp_path, "report", last="page.html")


@pytest.mark.s3
def test_a_report_is_written_from_s3_to_s3(bucket: str, tmp_path: Path) -> None:
    write_nights(tmp_path, DATES[:2], num_bins=80, recount_budget=30)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/audits/{path.relative_to(tmp_path)}", path.read_bytes())
    config = ReportConfig(output_uri=f"{bucket}/audits", audit_date=DATES[1], report_uri=f"{bucket}/report")
    write_report(config)
    assert b"Stock audit" in storage.read_bytes(f"{bucket}/report/report.html")
    assert storage.exists(f"{bucket}/report/report.json")


def test_results_of_an_older_schema_are_read_with_nulls(nights: Path, tmp_path: Path) -> None:
    output = tmp_path / "audits"
    shutil.copytree(nights, output)
    for part in (output / "results" / f"audit_date={TONIGHT}").glob("*.parquet"):
        pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["likely_qty"]), part)
    rows = pa.concat_tables(read_results(read_night(str(output), TONIGHT)))
    assert rows["likely_qty"].null_count == 1200


def test_the_printed_list_has_every_bin_at_its_stop() -> None:
    places = [("Z2", "b-9"), ("Z2", "b-10"), ("Z10", "a")]
    sheet = openpyxl.load_workbook(io.BytesIO(recount_xlsx(places, TONIGHT))).active
    assert sheet is not None
    rows = [tuple(cell.value for cell in row[:3]) for row in sheet.iter_rows(min_row=5)]
    assert rows == [(stop, *place) for stop, place in enumerate(places, start=1)]


def test_a_mismatch_of_the_night_itself_stands_in_its_second_counts(tmp_path: Path) -> None:
    write_nights(tmp_path, [TONIGHT], num_bins=60)
    planned = read_plan(str(tmp_path), read_night(str(tmp_path), TONIGHT).run_id).to_pylist()[0]
    name, recorded = planned["bin_id"], planned["expected_qty"]
    take_in(tmp_path, _counted(name, recorded + 1, "ann", TONIGHT, expected_qty=recorded))
    _write(tmp_path, tmp_path / "report")
    text = (tmp_path / "report" / "second_counts.csv").read_text(encoding="utf-8-sig")
    assert [(row["bin_id"], row["audit_date"]) for row in csv.DictReader(text.splitlines())] == [(name, TONIGHT)]
    assert "1 planned bin was counted otherwise than recorded" in (tmp_path / "report" / "report.html").read_text()


def test_a_bin_that_waits_for_several_nights_is_one_bin_on_the_page(tmp_path: Path) -> None:
    for night in DATES[:2]:
        commit_night(str(tmp_path), night, [plan_row("a"), plan_row("b")])
        take_in(tmp_path, _counted("a", 2, "kim", night))
    _write(tmp_path, tmp_path / "report", DATES[1])
    text = (tmp_path / "report" / "second_counts.csv").read_text(encoding="utf-8-sig")
    assert [row["audit_date"] for row in csv.DictReader(text.splitlines())] == DATES[:2]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<p>2 counts of several nights at 1 planned bin differ from the record: <code>second_counts.csv" in page
    assert "bins were counted otherwise" not in page


def test_the_page_says_of_each_bin_and_of_the_list_what_the_results_say(report: Path, nights: Path) -> None:
    page, night = (report / "report.html").read_text(), read_night(str(nights), TONIGHT)
    rows = [row for part in read_results(night) for row in part.to_pylist()]
    results = {visible_text(row["bin_id"]): row for row in rows}
    named = {"expected": "expected_qty", "camera": "camera_qty", "low": "qty_low", "high": "qty_high"}
    named |= {"likely": "likely_qty", "wrong": "p_record_wrong", "short": "p_short", "over": "p_over"}
    named |= {"risk": "value_at_risk", "verdict": "verdict", "reason": "reason", "certifiedAt": "certified_at"}
    directions = set()
    for row in _list(page):
        found = results[row["bin"]]
        for name, column in named.items():
            value = found[column]
            assert row[name] == (pytest.approx(value, abs=6e-3) if isinstance(value, float) else value), column
        if row["direction"] is not None:
            directions.add(row["direction"])
            assert (row["direction"] == "short") == (found["p_short"] >= found["p_over"])
    assert directions == {"short", "over"}
    at_risk = sum(row["value_at_risk"] for row in rows if row["recount"] == "priority")
    assert f"EUR {at_risk:,.0f} at risk" in page
    assert f"<dd>EUR {night.whole['shortage_value']:,.0f} short</dd>" in page
    assert f"EUR {night.whole['overage_value']:,.0f} over, expected" in page


def test_the_second_counts_of_an_earlier_night_s_report_are_of_its_window_alone(tmp_path: Path) -> None:
    uri = str(tmp_path)
    for night in DATES[:2]:
        commit_night(uri, night, [plan_row(f"of {night}")])
        take_in(uri, _counted(f"of {night}", 1, "ann", night))
    found = _list_second_counts(read_night(uri, DATES[0]), read_history(uri, DATES[1]))
    assert found == [(None, f"of {DATES[0]}", DATES[0])]


def test_a_night_s_second_counts_are_those_of_thirty_nights(tmp_path: Path) -> None:
    uri, tonight = str(tmp_path), date.fromisoformat(TONIGHT)
    first, before, later = ((tonight + timedelta(days=days)).isoformat() for days in (-29, -30, 1))
    for night in (before, first, TONIGHT, later):
        commit_night(uri, night, [plan_row(f"of {night}")])
        take_in(uri, _counted(f"of {night}", 1, "ann", night))
    found = _list_second_counts(read_night(uri, TONIGHT), read_history(uri, later))
    assert sorted(night for _, _, night in found) == [first, TONIGHT]


def test_a_report_that_is_made_anew_says_what_the_counts_tell_by_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, plan = str(tmp_path), [plan_row(f"r{place}") for place in range(20)]
    for night in DATES[:2]:
        commit_night(uri, night, plan, num_assessed=100)
    with caplog.at_level(logging.INFO):
        _write(tmp_path, tmp_path / "report", DATES[0])
        before = (tmp_path / "report" / "report.html").read_text()
        take_in(uri, *(_counted(f"r{place}", 3, "ann") for place in range(20)))
        _write(tmp_path, tmp_path / "report", DATES[0])
        assert "is replaced" not in caplog.text
        page = (tmp_path / "report" / "report.html").read_text()
        _write(tmp_path, tmp_path / "report", DATES[1])
    assert f"the report of {DATES[0]} there is replaced" in caplog.text
    assert "No night has 90 % of its random bins resolved yet" in before and "by now" not in before
    assert "by the counts that are in by now accuracy is 100.0\N{NO-BREAK SPACE}% (95 %: 8" in page
    assert "resolved yet" not in page and "Count the random bins" not in page


def test_of_the_bins_that_were_not_assessed_the_first_few_are_examples(nights: Path) -> None:
    night = read_night(str(nights), TONIGHT)
    bins: dict[str, list[str]] = {}
    for row in (row for rows in read_results(night) for row in rows.to_pylist() if row["verdict"] == "not_assessed"):
        bins.setdefault(row["reason"], []).append(row["bin_id"])
    assert max(map(len, bins.values())) > 2 * EXAMPLES
    overview = survey_night(night)
    assert overview.examples == {reason: names[:EXAMPLES] for reason, names in bins.items()}
    assert {row["status"] for row in overview.unreadable} == {"unreadable_image", "image_rejected"}


def test_an_audit_ends_with_its_accuracy_from_the_low_end_to_the_high_one(
    nights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night = read_night(str(nights), TONIGHT)
    night.whole.update({"ira": 0.9, "error_rate": 0.1, "error_rate_low": 0.05, "error_rate_high": 0.2})
    close_night(night, None)
    assert "record accuracy: 90.0% (95 %: 80.0% to 95.0%; " in capsys.readouterr().out


def test_an_accuracy_s_interval_is_drawn_from_its_low_end_to_its_high_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], list[float]]] = []
    monkeypatch.setattr(Axes, "fill_between", lambda axes, days, low, high, **_: drawn.append((low, high)))
    night = {"audit_date": TONIGHT, "ira": 0.9, "error_rate_low": 0.05, "error_rate_high": 0.2}
    assert pictures.accuracy_picture([night, night | {"ira": None}]) is not None
    assert drawn == [([0.8], [0.95])]


def test_of_many_nights_the_last_ones_are_shown(tmp_path: Path) -> None:
    for night in DATES:
        commit_night(str(tmp_path), night, [plan_row("a")])
    assert [night.audit_date for night in read_nights(str(tmp_path), DATES[2], 2)] == DATES[1:3]


def test_of_bins_that_are_as_doubtful_the_top_holds_the_first_by_name(tmp_path: Path) -> None:
    commit_night(str(tmp_path), TONIGHT, [], other_bins=[plan_row(name, recount=None) for name in "dcba"])
    (rows,) = read_results(read_night(str(tmp_path), TONIGHT))
    top = top_rows((rows.slice(start, 2) for start in (0, 2)), 2)
    assert top["bin_id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("currencies", "claimed"), [(("EUR", "EUR"), 2.0), (("EUR", "USD"), None), (("EUR", None), None)]
)
def test_a_list_s_value_is_compared_in_one_currency_only(
    tmp_path: Path, currencies: tuple[str | None, str | None], claimed: float | None
) -> None:
    given = {"unit_value": 10.0, "expected_abs_variance_qty": 0.1}
    plan = [priority_row(name, 1, currency=each, **given) for name, each in zip("ab", currencies, strict=True)]
    commit_night(
        str(tmp_path), DATES[0], [*plan, priority_row("unpriced", 1), plan_row("drawn", currency="EUR", **given)]
    )
    take_in(tmp_path, *(_counted(name, 3, "ann") for name in ("a", "b", "unpriced", "drawn")))
    promise = _promise(tmp_path)
    assert promise.num_compared == 3, "the list's alone"
    assert promise.claimed_value == (None if claimed is None else pytest.approx(claimed))
