"""What the README shows is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from schemas.ddl import readme_tables
from tests.night import write_nights

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_column_tables_are_the_schemas() -> None:
    assert readme_tables().strip() in README, "run: python -m schemas.ddl readme, and paste it below its comment"


def test_a_planners_three_questions_are_answered_in_one_statement_each(tmp_path: Path) -> None:
    write_nights(tmp_path, ["2026-03-01", "2026-03-02", "2026-03-03"], num_bins=400)
    found = re.search(r"### Three questions of a planner.*?```sql\n(.*?)```", README, re.DOTALL)
    assert found is not None
    statements = [statement for statement in found.group(1).split(";") if statement.strip()]
    assert len(statements) == 3
    with duckdb.connect() as connection:
        connection.execute((ROOT / "jobs" / "views.sql").read_text().replace("{output_uri}", str(tmp_path)))
        worth, offenders, trend = (connection.sql(statement).fetchall() for statement in statements)
        (planned,) = connection.sql(
            "SELECT sum(p_record_wrong) FROM (SELECT p_record_wrong FROM results WHERE audit_date = '2026-03-03' "
            "AND verdict <> 'not_assessed' ORDER BY p_record_wrong DESC LIMIT 50)"
        ).fetchall()[0]
    assert [budget for budget, _, _ in worth] == [25, 50, 100, 200]
    assert abs(worth[1][1] - planned) < 0.06
    assert offenders
    assert [str(row[0]) for row in trend] == ["2026-03-01", "2026-03-02", "2026-03-03"]
