"""The DDL and the README's column tables name every column of the published tables."""

from __future__ import annotations

import re

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
    for statement in ddl("s3://stock/audits").split(";"):
        if "TABLE files_results" in statement and "CREATE" in statement:
            assert len(re.findall(r"audit_date`? string", statement)) == 1
            assert "PARTITIONED BY (audit_date" in statement


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
