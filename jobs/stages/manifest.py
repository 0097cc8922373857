"""The night's manifest, checked whole before anything is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np
import ray.data
from numpy.typing import NDArray

from jobs.platform import storage
from jobs.platform.cluster import CHECK_CPUS, await_slot
from jobs.platform.parquet import parquet_files
from jobs.platform.reports import read_reports, report_row
from jobs.platform.uris import absolute
from jobs.stages.duplicates import MOST_PLACES, Place, find_duplicates, find_places
from jobs.stages.manifest_file import MAX_PROBLEMS, FileReport, report_file, sort_currencies
from schemas.errors import InputError
from schemas.manifest import FORMAT_VERSION, NIGHT_YEARS, is_night


class ManifestFile(NamedTuple):
    """A file of a checked manifest."""

    uri: str
    num_rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the whole run must know of a checked manifest."""

    uri: str
    files: list[ManifestFile]
    audit_date: str
    images_uri: str | None
    fingerprint: str
    """SHA-256 over the files' contents, in the order of their names."""
    has_all_unit_values: bool
    has_photo_ages: bool
    """Whether some row says both when its photo was taken and when its record was read."""
    currencies: list[str | None]
    """Of the unit values, None for those that name none: they are in another currency than those that name one."""
    records: NDArray[np.int64]
    """How many records say 0, 1, 2, … pieces; the last number is of MOST_TOLD or more."""

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    def class_histogram(self, top_class: int) -> NDArray[np.int64]:
        """How many records say each class 0..K, (K + 1,)."""
        return np.append(self.records[:top_class], self.records[top_class:].sum())


def settle_roots(uri: str, images_uri: str | None, allowed_root: tuple[str, ...]) -> tuple[str, ...]:
    """Below these URIs photos may be read: --allowed-root, else the `images_uri` of the manifest at `uri`.

    Raises InputError where neither is given.
    """
    if allowed_root:
        return tuple(absolute(root) for root in allowed_root)
    if images_uri is None:
        raise InputError(
            f"{uri}: no images_uri in the file metadata; say with --allowed-root where photos may be read from"
        )
    return (absolute(images_uri),)


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
    uri = absolute(uri)
    parquet_files(uri)  # what is not there is said at once
    await_slot(CHECK_CPUS)
    listed = parquet_files(uri)
    files = [entry.uri for entry in listed]
    found = ray.data.from_items([{"uri": file} for file in files], override_num_blocks=len(files)).map(
        _check_file, num_cpus=CHECK_CPUS
    )
    reports: list[FileReport] = sorted(read_reports(found), key=lambda report: report.uri)
    problems = problems_of_files(reports, uri)
    metadata = [report.metadata for report in reports]
    night = _agreed("audit_date", metadata, uri, problems)
    images_uri = _agreed("images_uri", metadata, uri, problems)
    if night is not None and not is_night(night):
        years = f"{NIGHT_YEARS[0]} to {NIGHT_YEARS[-1]}"
        problems.append(f"{uri}: file metadata audit_date: expected YYYY-MM-DD of the years {years}, found {night!r}")
    if night is None and audit_date is None and needs_night:
        problems.append(f"{uri}: no audit_date in the file metadata; give the night with --audit-date")
    if night is not None and audit_date is not None and night != audit_date.isoformat():
        problems.append(
            f"{uri}: the manifest is of {night}, --audit-date says {audit_date}; drop the flag or re-ingest"
        )
    if not problems:
        counts = dict(find_duplicates(files, "bin_id", limit=MAX_PROBLEMS))
        places = find_places(files, "bin_id", list(counts)) if counts else {}
        problems = [explain_duplicate(uri, bin_id, count, places[bin_id]) for bin_id, count in counts.items()]
    check_unchanged(uri, listed)
    refuse(problems)
    digest = hashlib.sha256()
    for report in reports:
        digest.update(report.sha256.encode())
    return Manifest(
        uri=uri,
        files=[ManifestFile(report.uri, report.num_rows, report.sha256) for report in reports],
        audit_date=night or (audit_date.isoformat() if audit_date else ""),
        images_uri=images_uri,
        fingerprint=digest.hexdigest(),
        has_all_unit_values=all(report.has_all_unit_values for report in reports),
        has_photo_ages=any(report.has_photo_ages for report in reports),
        currencies=sort_currencies({currency for report in reports for currency in report.currencies}),
        records=np.sum([report.records for report in reports], axis=0),
    )


def _check_file(row: dict[str, str]) -> dict[str, bytes]:
    try:
        data = storage.read_bytes(row["uri"])
    except FileNotFoundError as error:
        raise InputError(
            f"{row['uri']}: it was there a moment ago; leave the manifest alone while a job reads it"
        ) from error
    return report_row(report_file(row["uri"], data))


def problems_of_files(reports: Sequence[FileReport], uri: str) -> list[str]:
    """What is wrong with the files of a manifest, by their reports."""
    problems = [problem for report in reports for problem in report.problems]
    if not problems and not sum(report.num_rows for report in reports):
        problems = [f"{uri}: expected at least one bin, found no rows"]
    version = _agreed("format_version", [report.metadata for report in reports], uri, problems)
    if version not in (None, FORMAT_VERSION):
        problems.append(f"{uri}: expected manifest format_version {FORMAT_VERSION}, found {version}")
    return problems


def explain_duplicate(uri: str, bin_id: str, count: int, places: Sequence[Place]) -> str:
    """Names the first `places` of a bin that stands in `count` rows of the manifest at `uri`."""
    named = ", ".join(f"{file.removeprefix(uri + '/')} row {row}" for file, row in places[:MOST_PLACES])
    return (
        f"{uri}: bin_id {bin_id!r} stands in {count} rows ({named}{', …' if count > MOST_PLACES else ''}); every bin must stand in "
        "exactly one: keep one of them, with all that the bin holds"
    )


def refuse(problems: Sequence[str]) -> None:
    """Raises InputError with the first of the problems, where there are any."""
    if problems:
        rest = len(problems) - MAX_PROBLEMS
        raise InputError(
            "\n  ".join(["the manifest can't be used:", *problems[:MAX_PROBLEMS]])
            + (f"\n  and {rest} more problems" if rest > 0 else "")
        )


def _agreed(key: str, metadata: list[dict[str, str]], uri: str, problems: list[str]) -> str | None:
    values = sorted({found[key] for found in metadata if key in found})
    if len(values) > 1:
        problems.append(f"{uri}: the files disagree on {key}: {', '.join(values[:3])}; ingest into an empty place")
    return values[0] if values else None
