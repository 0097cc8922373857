"""The DDL and the README's column tables name every column of the published tables."""

from __future__ import annotations

import re
from collections.abc import Callable

import duckdb
import pytest

from schemas.arrow import describe
from schemas.ddl import TABLES, athena_ddl, main, readme_tables, spark_ddl


@pytest.mark.parametrize("ddl", [athena_ddl, spark_ddl], ids=["athena", "spark"])
def test_every_column_of_every_table_has_a_type_and_a_comment(ddl) -> None:  # type: ignore[no-untyped-def]
    text = ddl("s3://stock/audits/")
    for table in TABLES:
        found = re.search(rf"CREATE (?:EXTERNAL )?TABLE files_{table.name} \((.*?)\n\)", text, re.DOTALL)
        assert found is not None
        columns = re.findall(r"^  `(\w+)` ([\w<>:,]+) COMMENT '([^']+)'", found.group(1), re.MULTILINE)
        names = [name for name, _, _ in columns]
        assert names[: len(table.schema)] == table.schema.names
        assert f"LOCATION 's3://stock/audits/{table.name}/'" in text


@pytest.mark.parametrize("ddl", [athena_ddl, spark_ddl], ids=["athena", "spark"])
def test_a_partitioned_table_has_its_night_once(ddl) -> None:  # type: ignore[no-untyped-def]
    statements = ddl("s3://stock/audits").split(";")
    (statement,) = [found for found in statements if "TABLE files_results" in found and "CREATE" in found]
    assert len(re.findall(r"audit_date`? string", statement)) == 1
    assert "PARTITIONED BY (audit_date" in statement


@pytest.mark.parametrize("ddl", [athena_ddl, spark_ddl], ids=["athena", "spark"])
def test_views_leave_out_runs_that_were_replaced_but_no_counts(ddl: Callable[[str], str]) -> None:
    views = "".join(re.findall(r"CREATE OR REPLACE VIEW.*?;", ddl("s3://stock/audits"), re.DOTALL))
    columns = {
        "summary": "audit_date, run_id, scope",
        "results": "audit_date, run_id, bin_id",
        "recount_plan": "audit_date, run_id, bin_id",
        "counted": "audit_date, run_id, bin_id",
    }
    with duckdb.connect() as connection:
        for table, names in columns.items():
            values = "('2026-03-02', 'old', 'b'), ('2026-03-02', 'new', 'b')"
            values = "('2026-03-02', 'new', 'all'), ('2026-03-02', 'new', 'zone')" if table == "summary" else values
            connection.execute(f"CREATE TABLE files_{table} AS SELECT * FROM (VALUES {values}) AS t ({names})")
        connection.execute(views)
        runs = {
            table: sorted(run for (run,) in connection.sql(f"SELECT run_id FROM {table}").fetchall())
            for table in columns
        }
    # a row for each bin, however many scopes the summary has
    assert runs == {"summary": ["new"] * 2, "results": ["new"], "recount_plan": ["new"], "counted": ["new", "old"]}


def test_nested_columns_keep_their_structure() -> None:
    text = athena_ddl("s3://stock/audits")
    assert "`skus` array<struct<sku:string,name:string,quantity:int>>" in text
    assert "`probabilities` array<float>" in text


def test_the_readme_describes_every_column_in_the_schema_s_own_words() -> None:
    text = readme_tables()
    for table in TABLES:
        for field in table.schema:
            assert describe(field), field.name
            assert f"| `{field.name}` |" in text
    assert "| `p_record_wrong` | float32? |" in text
    assert "| `num_bins` | int64 |" in text


def test_the_command_prints_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spark", "--location", "s3://a/b"]) == 0
    assert "LOCATION 's3://a/b/results/'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("location", "found"),
    [("", "an empty text"), ("s3://o'brien/a", "found '"), ("s3://a;b/c", "found ;"), (r"\\server\audits", "found \\")],
)
def test_a_location_that_would_be_written_otherwise_is_refused(
    location: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["athena", "--location", location])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "argument --location: expected a place" in said.err and found in said.err and not said.out
