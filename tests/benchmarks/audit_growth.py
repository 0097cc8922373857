"""Nights from a thousand to a million bins: seconds, the driver's memory, files written. Fetch and network are replaced
by stand-ins in the workers; everything else, from the manifest's check to the commit, is the audit as it is.

    python -m tests.benchmarks.audit --growth 1000 10000 100000 1000000
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.platform.parquet import write_table
from jobs.platform.uris import join
from schemas.arrow import conform
from schemas.manifest import FORMAT_VERSION, MANIFEST_SCHEMA
from tests.benchmarks.audit_processes import run
from tests.dump import NIGHT, write_bundle

ROWS_PER_FILE = 100_000


def measure_growth(num_bins: int, folder: Path) -> dict[str, float]:
    """One night of `num_bins`, in a process of its own. Prints and returns its figures."""
    place = folder / f"night-{num_bins}"
    write_manifest(place, num_bins)
    write_bundle(place / "bundle")
    given = (
        "--manifest-uri",
        f"{place}/manifest",
        "--bundle-uri",
        f"{place}/bundle",
        "--output-uri",
        f"{place}/audits",
    )
    ended = run("tests.benchmarks.audit_stand_in", "network_and_photos", *given)
    files = list((place / "audits" / "results").rglob("*.parquet"))
    figures = {
        "bins": num_bins,
        **ended.answer,
        "driver_mb": round(ended.driver_mb),
        "workers_mb": round(ended.workers_mb),
        "result_files": len(files),
        "result_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "all_files": sum(path.is_file() for path in (place / "audits").rglob("*")),
    }
    print("  ".join(f"{name} {value:,}" for name, value in figures.items()), flush=True)
    return figures


def write_manifest(place: Path, num_bins: int) -> None:
    metadata = {"audit_date": NIGHT, "images_uri": str(place / "bin-images"), "format_version": FORMAT_VERSION}
    for start in range(0, num_bins, ROWS_PER_FILE):
        numbers = np.arange(start, min(start + ROWS_PER_FILE, num_bins))
        names = pa.array(np.char.zfill(numbers.astype(str), 8))
        quantities = pa.array((numbers % 8).astype(np.int32))
        lines = pa.StructArray.from_arrays(
            [names, pa.repeat("a thing in a box", len(numbers)), quantities], names=["sku", "name", "quantity"]
        )
        table = pa.table(
            {
                "bin_id": names,
                "image_uri": pa.array([f"{place}/bin-images/{name}.jpg" for name in names.to_pylist()]),
                "expected_qty": quantities,
                "num_skus": pa.array(np.ones(len(numbers), np.int32)),
                "skus": pa.ListArray.from_arrays(pa.array(np.arange(len(numbers) + 1, dtype=np.int32)), lines),
                "zone": pa.array(np.char.add("zone ", (numbers % 20).astype(str))),
                "record_inconsistent": pa.repeat(False, len(numbers)),
            }
        )
        uri = join(str(place), "manifest", f"part-{start:09d}.parquet")
        write_table(uri, conform(table, MANIFEST_SCHEMA).replace_schema_metadata(metadata))
