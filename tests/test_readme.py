"""What the README shows is what the code does."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from jobs.platform.cluster import WAIT_SECONDS
from jobs.platform.command import run_command
from jobs.platform.fetching import OUTAGE_FAILURES
from jobs.stages.night_lock import EXPIRY_SECONDS
from model.images import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from schemas.ddl import readme_tables
from tests.night import write_nights
from tests.planned_night import commit_night, plan_row, priority_row, take_in

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "tests/benchmarks/README.md")}
README = PAGES["README.md"]


def test_the_column_tables_are_the_schemas() -> None:
    assert readme_tables().strip() in README, "run: python -m schemas.ddl readme, and paste it below its comment"


LINKS = [(page, target) for page, text in PAGES.items() for target in re.findall(r"\]\((?!http)([^)]+)\)", text)]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_every_link_leads_to_a_heading(page: str, target: str) -> None:
    file, _, heading = target.partition("#")
    linked = (ROOT / page).parent / file if file else ROOT / page
    words = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in words}
    assert not heading or heading in anchors


SHOWN = re.findall(r"python -m jobs\.(\w+)((?:\\\n|[^\n`])*)", README + (ROOT / "Makefile").read_text())


@pytest.mark.parametrize(("job", "flags"), SHOWN)
def test_every_command_that_is_shown_parses(job: str, flags: str) -> None:
    config = getattr(importlib.import_module(f"jobs.config.{job}"), f"{job.title()}Config")
    text = flags.replace("\\\n", " ").replace("$D", "2026-11-22").split("&&")[0]
    parsed = []
    assert run_command(config, parsed.append, job=job, argv=shlex.split(text, comments=True)) == 0
    assert len(parsed) == ("--help" not in text)


def create_views(connection: duckdb.DuckDBPyConnection, output: Path) -> None:
    connection.execute((ROOT / "jobs" / "views.sql").read_text().replace("{output_uri}", str(output)))


def list_with_polars(output: Path) -> pl.DataFrame:
    snippet = re.search(r"```python\n(import polars.*?)```", README, re.DOTALL)
    assert snippet is not None
    (output / "snippet.py").write_text(snippet[1].replace('"audits/', f'"{output}/'))
    return runpy.run_path(str(output / "snippet.py"))["listed"]


def test_the_last_night_s_list_is_read_the_same_in_duckdb_and_polars(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", "2026-03-02"], num_bins=200)
    listed = list_with_polars(tmp_path)
    assert listed["rank"].to_list() == list(range(1, 21))
    assert set(map(str, listed["audit_date"])) == {"2026-03-02"}
    statement = re.search(r"```sql\n(-- DuckDB's command line.*?)```", README, re.DOTALL)
    assert statement is not None
    with duckdb.connect() as connection:
        create_views(connection, tmp_path)
        assert connection.sql(statement[1]).pl()["bin_id"].to_list() == listed["bin_id"].to_list()
        counted, plan = connection.table("counted").pl(), connection.table("recount_plan").pl()
    assert counted.join(plan, on=["audit_date", "bin_id"]).height == counted.height > 0


def test_what_to_watch_is_a_statement_that_runs(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", "2026-03-02"], num_bins=200)
    statement = re.search(r"`(SELECT audit_date, num_bins, coverage[^`]*)`", README)
    assert statement is not None
    with duckdb.connect() as connection:
        create_views(connection, tmp_path)
        assert [str(row[0]) for row in connection.sql(statement[1]).fetchall()] == ["2026-03-02", "2026-03-01"]


SCRIPT = re.search(r"```sh\n(#!/bin/sh\n# /srv/stock-audit/night\.sh.*?)```", README, re.DOTALL)

RAY = """#!/bin/sh
case "$2" in
  submit) echo submit >> calls; exit 0 ;;
  status) head -n 1 states | sed "s/ID/$5/"; sed 1d states > rest; mv rest states ;;
  logs) echo "the log's end" ;;
esac
"""


@pytest.mark.parametrize(
    ("states", "code", "submitted"),
    [
        (["Status for job 'ID': RUNNING", "Job 'ID' succeeded"], 0, 1),
        (["Job 'ID' failed", "Job 'ID' was stopped", "Job 'ID' succeeded"], 0, 3),
        (["Job 'ID' failed"] * 3, 1, 3),
    ],
    ids=["runs, then done", "third try", "never"],
)
def test_the_nightly_script_goes_by_how_its_job_ended(
    tmp_path: Path, states: list[str], code: int, submitted: int
) -> None:
    assert SCRIPT is not None
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    # timeout is none of macOS's own
    for name, text in (("ray", RAY), ("python", "#!/bin/sh\n"), ("timeout", '#!/bin/sh\nshift; exec "$@"\n')):
        (tmp_path / ".venv" / "bin" / name).write_text(text)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    script = SCRIPT[1].replace("cd /srv/stock-audit", f"cd {tmp_path}")
    script = re.sub(r"\bsleep \d+", "sleep 0", script)
    done = subprocess.run(
        ["sh", "-c", script, "night.sh", "2026-03-01"],
        env={**os.environ, "PATH": f"{tmp_path / '.venv' / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "calls").read_text().count("submit") == submitted


def test_figures_of_the_prose_are_the_code_s() -> None:
    assert f"After {OUTAGE_FAILURES} photos in a row" in README
    assert f"after {EXPIRY_SECONDS:.0f} s without a sign of life" in README
    assert f"{MAX_IMAGE_BYTES // 2**20} MiB" in README
    assert f"{MAX_IMAGE_PIXELS // 10**6} megapixels" in README
    assert WAIT_SECONDS == 600 and "ten minutes at most for each step" in README


def test_polars_reads_nights_of_two_releases(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", "2026-03-02", "2026-03-03"], num_bins=200)
    for night, table, gone in (("01", "summary", "ece_window"), ("03", "results", "certificate_p")):
        for path in (tmp_path / table / f"audit_date=2026-03-{night}").iterdir():
            pq.write_table(pq.read_table(path, partitioning=None).drop_columns([gone]), path)
    listed = list_with_polars(tmp_path)
    assert listed["rank"].to_list() == list(range(1, 21))
    assert set(map(str, listed["audit_date"])) == {"2026-03-03"}


def ask_three_questions(connection: duckdb.DuckDBPyConnection, output: Path) -> list[list[tuple]]:
    found = re.search(r"### Three questions of a planner.*?```sql\n(.*?)```", README, re.DOTALL)
    assert found is not None
    statements = [statement for statement in found.group(1).split(";") if statement.strip()]
    assert len(statements) == 3
    create_views(connection, output)
    return [connection.sql(statement).fetchall() for statement in statements]


def test_a_planners_three_questions_are_answered_in_one_statement_each(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", "2026-03-02", "2026-03-03"], num_bins=400)
    with duckdb.connect() as connection:
        worth, offenders, trend = ask_three_questions(connection, tmp_path)
        (planned,) = connection.sql(
            "SELECT sum(p_record_wrong) FROM (SELECT p_record_wrong FROM results WHERE audit_date = '2026-03-03' "
            "AND verdict <> 'not_assessed' ORDER BY p_record_wrong DESC LIMIT 50)"
        ).fetchall()[0]
    assert [(budget, record_model) for budget, record_model, _, _ in worth] == [
        (budget, "learned") for budget in (25, 50, 100, 200)
    ]
    assert abs(worth[1][2] - planned) < 0.06
    assert all(value > 0 for _, _, _, value in worth)
    assert offenders
    assert [str(row[0]) for row in trend] == ["2026-03-01", "2026-03-02", "2026-03-03"]


def test_bins_counted_right_are_not_worth_a_visit_and_two_people_find_a_wrong_record(tmp_path: Path) -> None:
    output, night = str(tmp_path), "2026-03-01"
    kept_off = plan_row("counted", p_record_wrong=0.9, reason="counted", unit_value=1.0, currency="EUR")
    valued = [plan_row(name, unit_value=1.0, currency="EUR", value_at_risk=2.0) for name in "abcd"]
    commit_night(output, night, [priority_row(name, rank) for rank, name in enumerate("abcd", 1)])
    commit_night(output, "2026-03-02", [], other_bins=[*valued, kept_off])
    # a: two people found 2; b: one person twice, who took it back before another one found it; c: found wrong in two ways,
    # once by two people and once confirmed; d: right by a boss, on the day of the two people's count
    counts = [("a", 2, "kim", 3), ("a", 2, "lee", 3), ("b", 2, "kim", 3), ("b", 2, "kim", 3)]
    counts += [("b", 3, "kim", 3), ("b", 2, "lee", 3)]
    counts += [("c", 1, "kim", 3), ("c", 1, "lee", 3), ("c", 5, None, 4)]
    rows = [
        plan_row(name, expected)
        | {"audit_date": night, "run_id": f"{night}-replaced", "counted_qty": qty, "counter_id": counter}
        | {"counted_at": datetime(2026, 3, 2, 8 + hour, tzinfo=UTC), "confirmed": counter is None}
        for hour, (name, qty, counter, expected) in enumerate(counts)
    ]
    on_that_day = {"counted_at": datetime(2026, 3, 2, tzinfo=UTC), "expected_qty": 5}
    rows += [
        rows[0] | on_that_day | {"bin_id": "d", "counted_qty": qty, "counter_id": counter, "confirmed": counter is None}
        for qty, counter in ((4, "kim"), (5, None), (4, "lee"))
    ]
    take_in(output, *rows)
    with duckdb.connect() as connection:
        worth, offenders, _ = ask_three_questions(connection, tmp_path)
    assert [row[2:] for row in worth] == [(round(4 * 0.05, 1), 8)] * 4
    assert [(row[0], row[3]) for row in offenders] == [("c", 2), ("a", 1)]
