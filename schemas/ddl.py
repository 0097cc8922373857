"""The tables for those who don't read Parquet themselves: DDL for Athena and Spark, and the README's column tables.

    python -m schemas.ddl athena --location s3://stock/audits
    python -m schemas.ddl spark --location s3://stock/audits
    python -m schemas.ddl readme

Prints; writes nothing. Everything comes from the Arrow schemas, descriptions included.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas.arrow import describe
from schemas.manifest import MANIFEST_SCHEMA
from schemas.recount import COUNTED_SCHEMA, RECOUNT_PLAN_SCHEMA
from schemas.results import RESULTS_SCHEMA
from schemas.summary import SUMMARY_SCHEMA


@dataclass(frozen=True)
class PublishedTable:
    """A folder below the audit's `--output-uri`. `partitioned` tables have one `audit_date=D` folder a night."""

    name: str
    schema: pa.Schema
    partitioned: bool


TABLES = [
    PublishedTable("results", RESULTS_SCHEMA, True),
    PublishedTable("recount_plan", RECOUNT_PLAN_SCHEMA, True),
    PublishedTable("summary", SUMMARY_SCHEMA, True),
    PublishedTable("counted", COUNTED_SCHEMA, False),
]

PARTITION = "The night, YYYY-MM-DD."

_README = {
    "manifest": MANIFEST_SCHEMA,
    **{table.name: table.schema for table in TABLES},
    # what it has of the manifest stands there, in the same words
    "results": pa.schema([field for field in RESULTS_SCHEMA if field.name not in MANIFEST_SCHEMA.names]),
}

_SQL_TYPES = [
    (pa.types.is_string, "string"),
    (pa.types.is_int32, "int"),
    (pa.types.is_int64, "bigint"),
    (pa.types.is_float32, "float"),
    (pa.types.is_float64, "double"),
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_timestamp, "timestamp"),
]


def athena_ddl(location: str) -> str:
    """External tables over the files, and the views of committed nights over them, for Athena (Hive DDL, engine 3).

    New nights need `MSCK REPAIR TABLE files_…`, which stands at the end.
    """
    statements = []
    for table in TABLES:
        partition = f"\nPARTITIONED BY (audit_date string COMMENT '{_quoted(PARTITION)}')" if table.partitioned else ""
        statements.append(
            f"CREATE EXTERNAL TABLE files_{table.name} (\n{_columns(table.schema)}\n){partition}\n"
            f"STORED AS PARQUET\nLOCATION '{_folder(location, table)}';"
        )
    statements += [f"MSCK REPAIR TABLE files_{table.name};" for table in TABLES if table.partitioned]
    return "\n\n".join([*statements, *_views()]) + "\n"


def spark_ddl(location: str) -> str:
    """The same for Spark SQL (data source tables)."""
    statements = []
    for table in TABLES:
        columns, partition = _columns(table.schema), ""
        if table.partitioned:
            columns += f",\n  `audit_date` string COMMENT '{_quoted(PARTITION)}'"
            partition = "\nPARTITIONED BY (audit_date)"
        statements.append(
            f"CREATE TABLE files_{table.name} (\n{columns}\n)\nUSING PARQUET{partition}\n"
            f"LOCATION '{_folder(location, table)}';"
        )
    statements += [f"MSCK REPAIR TABLE files_{table.name};" for table in TABLES if table.partitioned]
    return "\n\n".join([*statements, *_views()]) + "\n"


def column_table(schema: pa.Schema) -> str:
    """A Markdown table of the columns; `?` marks those that may be null."""
    rows = [f"| `{field.name}` | {_plain_type(field)} | {describe(field).replace('|', '&#124;')} |" for field in schema]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def readme_tables() -> str:
    """The README's column tables: the manifest and everything that an audit publishes."""
    return "\n\n".join(f"### {name}\n\n{column_table(schema)}" for name, schema in _README.items()) + "\n"


def _views() -> list[str]:
    """What views.sql defines for DuckDB: only the nights and runs that a summary commits, and all that was counted."""
    committed = "SELECT audit_date, run_id FROM summary WHERE scope = 'all'"
    joined = [
        f"CREATE OR REPLACE VIEW {name} AS\nSELECT t.* FROM files_{name} AS t\n"
        f"JOIN ({committed}) AS c ON t.audit_date = c.audit_date AND t.run_id = c.run_id;"
        for name in ("results", "recount_plan")
    ]
    # counts hold for their bin and night, whichever plan asked for them: also for one that was replaced
    whole = [f"CREATE OR REPLACE VIEW {name} AS\nSELECT * FROM files_{name};" for name in ("summary", "counted")]
    return [*whole, *joined]


def _columns(schema: pa.Schema) -> str:
    lines = [f"  `{field.name}` {_sql_type(field.type)} COMMENT '{_quoted(describe(field))}'" for field in schema]
    return ",\n".join(lines)


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"array<{_sql_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{','.join(f'{field.name}:{_sql_type(field.type)}' for field in kind)}>"
    for fits, name in _SQL_TYPES:
        if fits(kind):
            return name
    raise TypeError(f"no SQL type for {kind}")


def _plain_type(field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_list(kind):
        inner = kind.value_type
        lines = ", ".join(part.name for part in inner) if pa.types.is_struct(inner) else str(inner)
        name = f"list of struct ({lines})" if pa.types.is_struct(inner) else f"list of {lines}"
    else:
        name = {"float": "float32", "double": "float64", "bool": "boolean"}.get(str(kind), str(kind))
    return name + ("?" if field.nullable else "")


def _quoted(text: str) -> str:
    """A comment between quotation marks."""
    # Hive and Spark escape with a backslash, Trino doubles the sign: a typographic one needs neither; and some clients
    # cut a script at every semicolon
    return text.replace("'", "’").replace("\\", "/").replace(";", ",")


def _location(text: str) -> str:
    """A `--location` that stands between quotation marks as it is, in every dialect and client (see `_quoted`)."""
    found = next((sign for sign in "'\\;" if sign in text), None)
    if found or not text:
        raise argparse.ArgumentTypeError(
            f"expected a place without the signs ' \\ and ; found {found or 'an empty text (an unset variable?)'}"
        )
    return text


def _folder(location: str, table: PublishedTable) -> str:
    return f"{location.rstrip('/')}/{table.name}/"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m schemas.ddl", description="Prints DDL or the README's columns.")
    parser.add_argument("what", choices=["athena", "spark", "readme"])
    parser.add_argument("--location", type=_location, default="s3://BUCKET/audits", help="the audit's --output-uri")
    arguments = parser.parse_args(argv)
    if arguments.what == "readme":
        print(readme_tables(), end="")
    else:
        print((athena_ddl if arguments.what == "athena" else spark_ddl)(arguments.location), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
