"""The night's manifest, checked whole before anything is scored."""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from jobs.platform import storage
from jobs.platform.cluster import CHECK_CPUS, await_slot
from jobs.platform.parquet import parquet_files
from jobs.stages.duplicates import find_duplicates
from schemas.arrow import DAMAGED_PARQUET, conform, file_metadata, outside_calendar, schema_problems
from schemas.errors import InputError
from schemas.manifest import FORMAT_VERSION, MANIFEST_SCHEMA, MAX_UNIT_VALUE, NIGHT_YEARS

MOST_TOLD = 50
"""Quantities above it are told as one: no bundle counts further."""
MAX_PROBLEMS = 10
"""So many problems are listed in one message; the rest are counted."""


@dataclass(frozen=True)
class Manifest:
    """What the whole run must know of a checked manifest."""

    uri: str
    files: list[str]
    rows_per_file: list[int]
    audit_date: str
    images_uri: str | None
    fingerprint: str
    """SHA-256 over the files' contents, in the order of their names."""
    sha256_per_file: list[str]
    has_all_unit_values: bool
    has_photo_ages: bool
    """Whether some row says both when its photo was taken and when its record was read."""
    currencies: list[str | None]
    """Of the unit values, None for those that name none: they are in another currency than those that name one."""
    records: NDArray[np.int64]
    """How many records say 0, 1, 2, … pieces; the last number is of MOST_TOLD or more."""

    @property
    def num_rows(self) -> int:
        return sum(self.rows_per_file)

    def class_histogram(self, top_class: int) -> NDArray[np.int64]:
        """How many records say each class 0..K, (K + 1,)."""
        return np.append(self.records[:top_class], self.records[top_class:].sum())


def settle_roots(uri: str, images_uri: str | None, allowed_root: tuple[str, ...]) -> tuple[str, ...]:
    """Below these URIs photos may be read: --allowed-root, else the `images_uri` of the manifest at `uri`.

    Raises InputError where neither is given.
    """
    if allowed_root:
        return tuple(storage.absolute(root) for root in allowed_root)
    if images_uri is None:
        raise InputError(
            f"{uri}: no images_uri in the file metadata; say with --allowed-root where photos may be read from"
        )
    return (storage.absolute(images_uri),)


def check_unchanged(uri: str, listed: list[storage.StoredObject]) -> None:
    """Raises InputError where the manifest's files are not those that were listed before it was read: one that was written
    anew meanwhile may hold files that were never listed, whose bins would be lost."""
    if [entry.version for entry in parquet_files(uri)] != [entry.version for entry in listed]:
        raise InputError(
            f"{uri}: was written anew while it was read; leave the manifest alone while a job reads it, and run the same "
            "command again"
        )


def check_manifest(uri: str, audit_date: date | None, *, needs_night: bool = True) -> Manifest:
    """Reads every row once. Raises InputError with all kinds of problems that it found, by file, row and field, and
    GateError where other jobs hold every CPU.

    Without `needs_night` a manifest may name none (its `audit_date` is then empty).
    """
    uri = storage.absolute(uri)
    parquet_files(uri)  # what is not there is said at once
    await_slot(CHECK_CPUS)
    listed = parquet_files(uri)
    files = [entry.uri for entry in listed]
    found = ray.data.from_items([{"uri": file} for file in files], override_num_blocks=len(files)).map(
        _check_file, num_cpus=CHECK_CPUS
    )
    reports = sorted((json.loads(row["report"]) for row in found.iter_rows()), key=lambda report: str(report["uri"]))
    problems = problems_of_files(reports, uri)
    metadata = [report["metadata"] for report in reports]
    night = _agreed("audit_date", metadata, uri, problems)
    images_uri = _agreed("images_uri", metadata, uri, problems)
    if night is not None and not _is_night(night):
        years = f"{NIGHT_YEARS[0]} to {NIGHT_YEARS[-1]}"
        problems.append(f"{uri}: file metadata audit_date: expected YYYY-MM-DD of the years {years}, found {night!r}")
    if night is None and audit_date is None and needs_night:
        problems.append(f"{uri}: no audit_date in the file metadata; give the night with --audit-date")
    if night is not None and audit_date is not None and night != audit_date.isoformat():
        problems.append(
            f"{uri}: the manifest is of {night}, --audit-date says {audit_date}; drop the flag or re-ingest"
        )
    if not problems:
        problems = [
            f"{uri}: bin_id {bin_id!r} stands in {count} rows; every bin must stand in exactly one"
            for bin_id, count in find_duplicates(files, "bin_id", limit=MAX_PROBLEMS)
        ]
    check_unchanged(uri, listed)
    refuse(problems)
    digest = hashlib.sha256()
    for report in reports:
        digest.update(report["sha256"].encode())
    return Manifest(
        uri=uri,
        files=files,
        rows_per_file=[report["num_rows"] for report in reports],
        audit_date=night or (audit_date.isoformat() if audit_date else ""),
        images_uri=images_uri,
        fingerprint=digest.hexdigest(),
        sha256_per_file=[report["sha256"] for report in reports],
        has_all_unit_values=all(report["has_all_unit_values"] for report in reports),
        has_photo_ages=any(report["has_photo_ages"] for report in reports),
        currencies=_sort_currencies({currency for report in reports for currency in report["currencies"]}),
        records=np.sum([report["records"] for report in reports], axis=0),
    )


def _is_night(text: str) -> bool:
    """Whether it is YYYY-MM-DD, by which nights are named and sorted; Python also reads other forms of ISO 8601."""
    try:
        return date.fromisoformat(text).isoformat() == text and int(text[:4]) in NIGHT_YEARS
    except ValueError:
        return False


def _check_file(row: dict) -> dict:
    try:
        data = storage.read_bytes(row["uri"])
    except FileNotFoundError as error:
        raise InputError(
            f"{row['uri']}: it was there a moment ago; leave the manifest alone while a job reads it"
        ) from error
    return {"report": json.dumps(report_file(row["uri"], data))}


def problems_of_files(reports: Sequence[dict], uri: str) -> list[str]:
    """What is wrong with the files of a manifest, by their reports."""
    problems = [problem for report in reports for problem in report["problems"]]
    if not problems and not sum(report["num_rows"] for report in reports):
        problems = [f"{uri}: expected at least one bin, found no rows"]
    version = _agreed("format_version", [report["metadata"] for report in reports], uri, problems)
    if version not in (None, FORMAT_VERSION):
        problems.append(f"{uri}: expected manifest format_version {FORMAT_VERSION}, found {version}")
    return problems


def refuse(problems: Sequence[str]) -> None:
    """Raises InputError with the first of the problems, where there are any."""
    if problems:
        rest = len(problems) - MAX_PROBLEMS
        raise InputError(
            "\n  ".join(["the manifest can't be used:", *problems[:MAX_PROBLEMS]])
            + (f"\n  and {rest} more problems" if rest > 0 else "")
        )


def report_file(uri: str, data: bytes) -> dict:
    """What one file of a manifest, read already, holds and what is wrong with it."""
    report: dict = {
        "uri": uri,
        "num_rows": 0,
        "problems": [],
        "metadata": {},
        "sha256": hashlib.sha256(data).hexdigest(),
        "has_all_unit_values": True,
        "has_photo_ages": False,
        "currencies": [],
        "records": [0] * (MOST_TOLD + 1),
    }
    try:
        _check_rows(pq.ParquetFile(io.BytesIO(data)), uri, report)
    except DAMAGED_PARQUET as error:
        # Arrow finds damage where it stands: in the footer, or only in some page of some column
        report["problems"].append(f"{uri}: expected a Parquet file, found something else or a damaged one ({error})")
    return report


def _check_rows(parquet: pq.ParquetFile, uri: str, report: dict) -> None:
    schema = parquet.schema_arrow
    report["metadata"] = file_metadata(schema)
    report["problems"] = [f"{uri}: {problem}" for problem in schema_problems(schema, MANIFEST_SCHEMA)]
    if report["problems"]:
        return
    currencies: set[str | None] = set()
    records = np.zeros(MOST_TOLD + 1, np.int64)
    present = [field.name for field in MANIFEST_SCHEMA if field.name in schema.names]
    for batch in parquet.iter_batches(batch_size=65536, columns=present):
        misfits = [misfit for name in present if (misfit := _find_misfit(batch, MANIFEST_SCHEMA.field(name)))]
        if misfits:
            report["problems"] += [
                f"{uri}: row {report['num_rows'] + 1 + row}: {name}: expected {MANIFEST_SCHEMA.field(name).type}, found another "
                f"value ({error})"
                for row, name, error in misfits
            ]
            return
        table = conform(pa.Table.from_batches([batch]), MANIFEST_SCHEMA)
        report["problems"] += list(row_problems(table, uri, report["num_rows"] + 1))
        report["num_rows"] += table.num_rows
        told = table["expected_qty"].drop_null().to_numpy().clip(0, MOST_TOLD)
        records += np.bincount(told, minlength=MOST_TOLD + 1)
        report["has_all_unit_values"] &= table["unit_value"].null_count == 0
        aged = pc.and_(pc.is_valid(table["photo_at"]), pc.is_valid(table["expected_as_of"]))
        report["has_photo_ages"] |= bool(pc.any(aged).as_py())
        currencies.update(pc.unique(table["currency"].filter(pc.is_valid(table["unit_value"]))).to_pylist())
        if len(report["problems"]) > MAX_PROBLEMS:
            break
    report["currencies"] = _sort_currencies(currencies)[:MAX_PROBLEMS]
    report["records"] = records.tolist()


def _find_misfit(batch: pa.RecordBatch, field: pa.Field) -> tuple[int, str, str] | None:
    """Row, column and what is wrong of the first value that the column can't hold: a number out of its range, a text that is
    no UTF-8."""
    values = batch.column(field.name)

    def misfit(rows: pa.Array) -> str | None:
        try:
            rows.cast(field.type).validate(full=True)
        except pa.ArrowInvalid as error:
            return str(error)
        return None

    if misfit(values) is None:
        return None
    row = bisect_left(range(len(values)), True, key=lambda last: misfit(values.slice(0, last + 1)) is not None)
    return row, field.name, misfit(values.slice(row, 1)) or ""


def _sort_currencies(currencies: set[str | None]) -> list[str | None]:
    return sorted(currencies, key=lambda currency: (currency is not None, currency or ""))


def row_problems(table: pa.Table, uri: str, first_row: int) -> Iterable[str]:
    """What is wrong with rows of MANIFEST_SCHEMA, by column; `first_row` is the number of the first one in its file, from 1."""
    checks = [
        (field.name, pc.is_null(table[field.name]), "a value", "none")
        for field in MANIFEST_SCHEMA
        if not field.nullable
    ]
    checks += [
        (name, pc.equal(pc.utf8_length(table[name]), 0), "a text", "an empty one") for name in ("bin_id", "image_uri")
    ]
    checks += [(name, pc.less(table[name], 0), "0 or more", "a negative one") for name in ("expected_qty", "num_skus")]
    price = table["unit_value"]
    in_range = pc.and_(pc.greater_equal(price, 0), pc.less_equal(price, MAX_UNIT_VALUE))  # false for NaN too
    checks += [("unit_value", pc.invert(in_range), f"a value from 0 to {MAX_UNIT_VALUE:g}", "another one")]
    for name, mask, expected, found in checks:
        rows = np.flatnonzero(pc.fill_null(mask, False).to_numpy())
        if rows.size:
            value = table[name][int(rows[0])].as_py()
            yield _row_problem(uri, first_row, rows, name, expected, found if value in (None, "") else repr(value))
    for name in ("photo_at", "expected_as_of"):
        rows = np.flatnonzero(outside_calendar(table[name]).to_numpy())
        if rows.size:
            found = f"{table[name].cast(pa.int64())[int(rows[0])]} microseconds since 1970"
            yield _row_problem(uri, first_row, rows, name, "a time of the years 2 to 9998", found)
    lines = table["skus"].combine_chunks()
    parents, line = pc.list_parent_indices(lines).to_numpy(), pc.list_flatten(lines)
    for name, expected in (("sku", "a value"), ("quantity", "0 or more")):
        values = pc.struct_field(line, name)
        wrong = pc.is_null(values) if name == "sku" else pc.fill_null(pc.less(values, 0), True)
        places = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
        if places.size:
            value = values[int(places[0])].as_py()
            shown = "none" if value is None else repr(value)
            yield _row_problem(uri, first_row, np.unique(parents[places]), f"skus[].{name}", expected, shown)


def _row_problem(uri: str, first_row: int, rows: np.ndarray, name: str, expected: str, found: str) -> str:
    more = f" (and {rows.size - 1} rows more)" if rows.size > 1 else ""
    return f"{uri}: row {first_row + int(rows[0])}: {name}: expected {expected}, found {found}{more}"


def _agreed(key: str, metadata: list[dict[str, str]], uri: str, problems: list[str]) -> str | None:
    values = sorted({found[key] for found in metadata if key in found})
    if len(values) > 1:
        problems.append(f"{uri}: the files disagree on {key}: {', '.join(values[:3])}; ingest into an empty place")
    return values[0] if values else None
