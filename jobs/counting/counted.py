"""The table `counted`: append-only, one object per call of jobs.recount, named by what it holds."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from jobs.platform import storage
from jobs.platform.layout import COUNTED
from jobs.platform.parquet import DamagedParquet, parquet_bytes, read_table
from jobs.platform.uris import absolute, join
from schemas.arrow import conform, schema_problems
from schemas.errors import InputError
from schemas.recount import COUNTED_SCHEMA, COUNTS_SCHEMA


def read_counted(output_uri: str, columns: list[str] | None = None) -> pa.Table:
    """All counts ever taken in, in the order of the objects' names. Raises InputError for a foreign file."""
    names = columns or COUNTED_SCHEMA.names
    schema = pa.schema([COUNTED_SCHEMA.field(name) for name in names])
    folder = join(output_uri, COUNTED)
    uris = sorted(
        entry.uri
        for entry in storage.list_objects(folder)
        if entry.uri.endswith(".parquet") and "/" not in entry.uri.removeprefix(folder + "/")
    )
    with ThreadPoolExecutor(16) as pool:  # small objects, so it is their latency that counts
        tables = list(pool.map(lambda uri: _read_counts(uri, schema), uris))
    return pa.concat_tables([schema.empty_table(), *tables])


def _read_counts(uri: str, schema: pa.Schema) -> pa.Table:
    try:
        found = read_table(uri)
        problems = schema_problems(found.schema, COUNTED_SCHEMA) or [
            f"column {field.name}: expected a value in every row, found none in some"
            for field in COUNTED_SCHEMA
            if not field.nullable and found[field.name].null_count
        ]
        if not problems:
            return conform(found, schema)
    except DamagedParquet as error:
        raise InputError(f"{error}; delete it, and give the counts of that time to jobs.recount again") from error
    except pa.ArrowException as error:
        problems = [str(error)]
    raise InputError(
        f"{uri}: expected counts that jobs.recount took in, found another table ({'; '.join(problems)}); move it away, and "
        "give jobs.recount the counts that it holds"
    )


def has_counts(output_uri: str, audit_date: str) -> bool:
    """Whether counts against any plan of the night, one that was replaced included, have come in."""
    counted = read_counted(absolute(output_uri), ["audit_date"])
    return bool(pc.any(pc.equal(counted["audit_date"], audit_date)).as_py())


def explain_counted(output_uri: str, audit_date: str) -> str:
    """Why a night with such counts is not replaced, and what to do."""
    return (
        f"{output_uri}: counts against a plan of {audit_date} have come in; nothing was committed; pass --replace-counted as "
        "well to make a new plan (the counts are kept), and another --seed if records were corrected by them"
    )


def add_counted(output_uri: str, rows: pa.Table) -> str:
    """Adds one object of COUNTED_SCHEMA rows and returns its URI; the same rows twice are one object."""
    rows = rows.sort_by([(name, "ascending") for name in ("audit_date", "bin_id", "counted_at", "counted_qty")])
    about = rows.select([*COUNTS_SCHEMA.names, "run_id"]).to_pylist()
    digest = hashlib.sha256(json.dumps(about, default=str, sort_keys=True).encode()).hexdigest()
    uri = join(output_uri, COUNTED, f"{digest[:32]}.parquet")
    storage.create_bytes(uri, parquet_bytes(rows))
    storage.settle(uri)  # somebody walked for them
    return uri
