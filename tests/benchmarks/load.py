"""One audit over many bins, with the memory and the file handles of its processes watched.

    python -m tests.benchmarks.load --manifest-uri M --bundle-uri B --output-uri EMPTY --minutes 120 --json FILE --plot FILE

The manifest's bins are repeated under new names until there are so many; their photos are fetched and scored each time.
With --minutes there are as many as the rate of a pilot night fills that time with. Memory is what a process has for
itself (resident less shared); the object store, which processes share, is what /dev/shm holds. Samples are appended to
FILE.samples as they come. Linux only.
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
from jobs.platform.parquet import parquet_files, read_table, write_table
from jobs.platform.uris import absolute, join
from schemas.arrow import conform
from schemas.manifest import MANIFEST_SCHEMA

ROWS_PER_FILE = 250_000
PILOT_BINS = 2_000
SCORING_SHARE = 0.9
"""Of a run's time; the rest is starting, concluding and publishing."""
KINDS = {"ShardScorer": "scorers", "ray::": "other workers", "gcs_server": "Ray itself", "raylet": "Ray itself"}


def write_manifest(source_uri: str, target_uri: str, num_bins: int) -> None:
    """`num_bins` rows in files of ROWS_PER_FILE; the photos of `source_uri` in turn."""
    tables = [read_table(entry.uri) for entry in parquet_files(source_uri)]
    source = pa.concat_tables([conform(table, MANIFEST_SCHEMA) for table in tables]).combine_chunks()
    for start in range(0, num_bins, ROWS_PER_FILE):
        number = np.arange(start, min(start + ROWS_PER_FILE, num_bins))
        rows = source.take(pa.array(number % source.num_rows))
        copy = pa.array(np.char.add("-", (number // source.num_rows).astype(str)).tolist())
        names = pc.binary_join_element_wise(rows["bin_id"], copy, "")
        rows = rows.set_column(0, MANIFEST_SCHEMA.field(0), names).replace_schema_metadata(tables[0].schema.metadata)
        write_table(join(target_uri, f"part-{start:09d}.parquet"), rows)


def audit(manifest_uri: str, bundle_uri: str, output_uri: str, precision: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.audit", "--manifest-uri", manifest_uri, "--output-uri", output_uri]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen([*command, "--bundle-uri", bundle_uri, "--precision", precision], env=environment)


def bins_for(minutes: float, source_uri: str, bundle_uri: str, precision: str, place: str) -> int:
    """How many bins a run of so many minutes scores, by the rate of a pilot night of PILOT_BINS."""
    write_manifest(source_uri, f"{place}/manifest", PILOT_BINS)
    assert audit(f"{place}/manifest", bundle_uri, f"{place}/audits", precision).wait() == 0
    (summary,) = parquet_files(f"{place}/audits/summary")
    rate = read_table(summary.uri, ["images_per_second"])["images_per_second"].drop_null()[0].as_py()
    return round(SCORING_SHARE * rate * 60 * minutes)


def watch(process: subprocess.Popen[bytes], seconds: float, path: Path) -> list[dict[str, float]]:
    """A sample every so many seconds until the process ends: time, and MB and handles per kind of process. Each is
    appended to `path` at once: what a machine that gives up saw last is what one wants to know."""
    samples, started = [], time.monotonic()
    with path.open("a") as lines:
        while process.poll() is None:
            sample: dict[str, float] = defaultdict(float, seconds=round(time.monotonic() - started, 1))
            sample["object store, MB"] = psutil.disk_usage("/dev/shm").used / 2**20
            for found in family(process.pid):
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
            print(json.dumps(samples[-1]), file=lines, flush=True)
            time.sleep(seconds)
    return samples


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []  # it ended just now


def draw(samples: list[dict[str, float]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    columns = sorted({name for sample in samples for name in sample} - {"seconds"})
    colours = {kind: f"C{number}" for number, kind in enumerate(sorted({name.split(",")[0] for name in columns}))}
    for axis, unit in zip(axes, ("MB", "handles"), strict=True):
        for name in [name for name in columns if name.endswith(unit)]:
            kind = name.split(",")[0]
            axis.plot(minutes, [sample.get(name, 0) for sample in samples], label=kind, color=colours[kind])
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
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--num-bins", type=int)
    size.add_argument(
        "--minutes",
        type=float,
        help="as many bins as are scored in this time, or fewer: the pilot's rate has its start in it",
    )
    parser.add_argument("--precision", default="auto", help="of the audit")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    source_uri, place = absolute(arguments.manifest_uri), absolute(arguments.output_uri)
    bundle_uri, precision = arguments.bundle_uri, arguments.precision
    num_bins = arguments.num_bins or bins_for(arguments.minutes, source_uri, bundle_uri, precision, f"{place}/pilot")
    write_manifest(source_uri, f"{place}/manifest", num_bins)
    started = time.monotonic()
    process = audit(f"{place}/manifest", bundle_uri, f"{place}/audits", precision)
    samples = watch(process, arguments.every, Path(f"{arguments.json}.samples"))
    minutes = (time.monotonic() - started) / 60
    names = sorted({name for sample in samples for name in sample} - {"seconds"})
    figures = {
        "num_bins": num_bins,
        "exit_code": process.returncode,
        "minutes": round(minutes, 2),
        "num_files": sum(1 for _ in storage.list_objects(f"{place}/audits")),
        "peak": {name: max(sample.get(name, 0) for sample in samples) for name in names},
    }
    print(json.dumps(figures, indent=1))
    arguments.json.write_text(json.dumps({**figures, "samples": samples}))
    if arguments.plot:
        draw(samples, arguments.plot)
    raise SystemExit(process.returncode)


if __name__ == "__main__":
    main()
