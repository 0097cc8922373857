"""One audit over many bins, with the memory and the file handles of its processes watched.

    python -m tests.benchmarks.load --manifest-uri M --bundle-uri B --output-uri EMPTY --num-bins 100000 --json FILE --plot FILE

The manifest's bins are repeated under new names until there are so many; their photos are fetched and scored each time.
Memory is what a process has for itself (resident less shared). Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from jobs.platform import storage
from schemas.arrow import conform
from schemas.manifest import MANIFEST_SCHEMA

ROWS_PER_FILE = 250_000
KINDS = {"ShardScorer": "scorers", "ray::": "other workers", "gcs_server": "Ray itself", "raylet": "Ray itself"}


def write_manifest(source_uri: str, target_uri: str, num_bins: int) -> None:
    """`num_bins` rows in files of ROWS_PER_FILE; the photos of `source_uri` in turn."""
    tables = [storage.read_table(entry.uri) for entry in storage.parquet_files(source_uri)]
    source = pa.concat_tables([conform(table, MANIFEST_SCHEMA) for table in tables]).combine_chunks()
    for start in range(0, num_bins, ROWS_PER_FILE):
        number = np.arange(start, min(start + ROWS_PER_FILE, num_bins))
        rows = source.take(pa.array(number % source.num_rows))
        copy = pa.array(np.char.add("-", (number // source.num_rows).astype(str)).tolist())
        names = pc.binary_join_element_wise(rows["bin_id"], copy, "")
        rows = rows.set_column(0, MANIFEST_SCHEMA.field(0), names).replace_schema_metadata(tables[0].schema.metadata)
        storage.write_table(storage.join(target_uri, f"part-{start:09d}.parquet"), rows)


def watch(process: subprocess.Popen[bytes], seconds: float) -> list[dict[str, float]]:
    """A sample every so many seconds until the process ends: time, and MB and handles per kind of process."""
    samples, started = [], time.monotonic()
    while process.poll() is None:
        sample: dict[str, float] = defaultdict(float, seconds=round(time.monotonic() - started, 1))
        for found in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                title = " ".join(found.cmdline())
                memory, handles = found.memory_info(), found.num_fds()
            except psutil.Error:
                continue
            kind = "driver" if found.pid == process.pid else "Ray itself"
            kind = next((name for sign, name in KINDS.items() if sign in title and found.pid != process.pid), kind)
            sample[f"{kind}, MB"] += (memory.rss - memory.shared) / 2**20
            sample[f"{kind}, handles"] += handles
        samples.append({name: round(value, 1) for name, value in sample.items()})
        time.sleep(seconds)
    return samples


def draw(samples: list[dict[str, float]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    for axis, unit in zip(axes, ("MB", "handles"), strict=True):
        for name in sorted({name for sample in samples for name in sample if name.endswith(unit)}):
            axis.plot(minutes, [sample.get(name, 0) for sample in samples], label=name.split(",")[0])
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    axes[1].set_xlabel("minutes")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("manifest-uri", "bundle-uri", "output-uri"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num-bins", type=int, required=True)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    manifest_uri, output_uri = (f"{storage.absolute(arguments.output_uri)}/{name}" for name in ("manifest", "audits"))
    write_manifest(storage.absolute(arguments.manifest_uri), manifest_uri, arguments.num_bins)
    command = [sys.executable, "-m", "jobs.audit", "--manifest-uri", manifest_uri, "--output-uri", output_uri]
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen([*command, "--bundle-uri", arguments.bundle_uri], env=environment)
    samples = watch(process, arguments.every)
    minutes = (time.monotonic() - started) / 60
    names = sorted({name for sample in samples for name in sample} - {"seconds"})
    figures = {
        "num_bins": arguments.num_bins,
        "exit_code": process.returncode,
        "minutes": round(minutes, 2),
        "num_files": sum(1 for _ in storage.list_objects(output_uri)),
        "peak": {name: max(sample.get(name, 0) for sample in samples) for name in names},
    }
    print(json.dumps(figures, indent=1))
    arguments.json.write_text(json.dumps({**figures, "samples": samples}))
    if arguments.plot:
        draw(samples, arguments.plot)
    raise SystemExit(process.returncode)


if __name__ == "__main__":
    main()
