"""The audit's throughput beside its hardware's roofs and beside what a user would pick instead, in one run.

    python -m tests.benchmarks.audit --photos-uri PHOTOS --bundle-uri BUNDLE --num-images 8192 --json figures.json
    python -m tests.benchmarks.audit --photos-uri PHOTOS --feeding --num-images 16384
    python -m tests.benchmarks.audit --growth 1000 10000 100000 1000000

Photos come from a real S3 server (SeaweedFS) on this machine; every measurement is a process of its own, and the repeats
are interleaved, so that a machine that slows down does so for all. Figures are medians, the spread is their range.

Steady state leaves start-up out: of ours it is what a whole night takes longer than one of a quarter of its bins
(SHORT_SHARE), so that each photo's fetching, decoding, scoring and writing is in it, whatever lay ready when a scorer had
started; of a peer that from its middle batch to its last, as its loader has few photos ahead. A share of the bound above 1.0
is a measuring error: exit code 1.

On a machine with a GPU, everything that has a network computes there, and the photos must be more (--num-images 65536): a
night's start takes it as long as thousands of photos.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from jobs.platform import storage
from jobs.platform.cluster import KEEP_MEMORY
from jobs.platform.parquet import read_table
from tests.benchmarks.audit_growth import measure_growth
from tests.benchmarks.audit_inputs import MANIFEST_URI, SHORT_MANIFEST_URI, make_bundle, serve_photos
from tests.benchmarks.audit_processes import Ended, run
from tests.dump import NIGHT

ON_GPU = torch.cuda.is_available()
CORES = os.cpu_count() or 1
OUR_SETTINGS = {} if ON_GPU else KEEP_MEMORY
"""What the processes of our scorers start with: for the roofs and for the tuned peer too."""
ROOFS = ("fetch", "decode", "network")
PEERS = {
    "ray_documentation": ("tests.benchmarks.audit_peers.ray_documentation",),
    "data_loader": ("tests.benchmarks.audit_peers.data_loader", "--kind", "plain"),
    **{
        f"data_loader_tuned_{workers}": (
            "tests.benchmarks.audit_peers.data_loader",
            *("--kind", "tuned", "--workers", str(workers)),
        )
        for workers in ((CORES // 2, CORES) if ON_GPU else sorted({0, CORES // 2, CORES}))
    },
    "daft": ("tests.benchmarks.audit_peers.daft_query",),
    "single_requests": ("tests.benchmarks.audit_peers.single_requests",),
}
UNIT = 8192
"""Of photos: the short night's shards are then even in number and enough to be computed as the whole night's are
(SHARING_SHARDS)."""
LEAST_SECONDS = 10.0
"""That the whole night takes longer: the start of two differs by a second or two."""
TUNED_IMAGES = 2048
PEER_IMAGES = 224
"""Photos that a peer scores: its rate per image is constant, and some peers are slow; the tuned loader is fast."""
GPU_PEER_IMAGES = {"single_requests": 512, "ray_documentation": 8192, "data_loader": 16384, "daft": 8192}
"""The same beside a GPU, where a loader's workers have thousands of photos ready when its first batch is through."""


def num_photos(peer: str, num_images: int) -> int:
    if ON_GPU:
        wanted = next(number for name, number in GPU_PEER_IMAGES.items() if peer.startswith(name))
    else:
        wanted = TUNED_IMAGES if "tuned" in peer else PEER_IMAGES
    return min(wanted, num_images)


def measure(
    bundle: Path, folder: Path, uris: list[str], repeats: int, skip: list[str], precision: str
) -> dict[str, list[dict]]:
    """One figure per repeat for each roof, for ours and for each peer; of the tuned loader only its best number of
    workers is repeated."""
    everything = folder / "uris.json"
    everything.write_text(json.dumps(uris))
    peers = {name: command for name, command in PEERS.items() if not name.startswith(tuple(skip) or "-")}
    for name in peers:
        (folder / f"{name}.json").write_text(json.dumps(uris[: num_photos(name, len(uris))]))
    found: dict[str, list[dict]] = defaultdict(list)

    def note(name: str, ended: Ended, rate: float, **more: float) -> None:
        figures = {"images_per_second": rate, "driver_mb": ended.driver_mb, "workers_mb": ended.workers_mb, **more}
        found[name].append(figures)
        print(f"{name:24}" + "".join(f"  {key} {value:9.2f}" for key, value in figures.items()), flush=True)

    for repeat in range(repeats):
        for part in ROOFS:
            asked = ("--precision", precision) if part == "network" else ()
            command = ("--uris", str(everything), "--bundle", str(bundle), *asked)
            ended = run("tests.benchmarks.audit_roofs", part, *command, environment=OUR_SETTINGS)
            note(part, ended, ended.answer["images_per_second"])
        given = ("--bundle-uri", str(bundle), "--precision", precision)
        ended, rate, seconds = time_nights(f"s3://bench/audits-{repeat}", "jobs.audit", *given)
        note("ours", ended, rate, seconds=seconds, start_and_end_seconds=seconds - len(uris) / rate)
        for name, (module, *flags) in peers.items():
            flags += ["--precision", precision] if "tuned" in name else []
            settings = OUR_SETTINGS if "tuned" in name else None
            ended = run(
                module, "--uris", str(folder / f"{name}.json"), "--bundle", str(bundle), *flags, environment=settings
            )
            note(name, ended, steady_rate(ended.answer["marks"], num_photos(name, len(uris))))
        tuned = [name for name in peers if "tuned" in name]
        best = max(tuned, key=lambda name: found[name][0]["images_per_second"], default=None)
        for name in tuned:
            if name != best:
                del peers[name]
                if name in found:
                    print(f"{name}: slower than {best}, dropped")
                    del found[name]
    return dict(found)


def measure_feeding(bundle: Path, folder: Path, uris: list[str], repeats: int) -> dict:
    """How fast photos come to a network that costs nothing, as beside a fast GPU, and what fetch and decode allow."""
    everything = folder / "uris.json"
    everything.write_text(json.dumps(uris))
    found: dict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats):
        for part in ("fetch", "decode"):
            ended = run("tests.benchmarks.audit_roofs", part, "--uris", str(everything), "--bundle", str(bundle))
            found[part].append(ended.answer["images_per_second"])
        given = ("network", "--bundle-uri", str(bundle), "--precision", "fp32")
        found["fed"].append(time_nights(f"s3://bench/fed-{repeat}", "tests.benchmarks.audit_stand_in", *given)[1])
        print("  ".join(f"{name} {rates[-1]:.1f}" for name, rates in found.items()), flush=True)
    rates = {name: statistics.median(values) for name, values in found.items()}
    bound = 1 / (1 / rates["fetch"] + 1 / rates["decode"])
    print(
        f"fed: {rates['fed']:.1f} photos a second, {rates['fed'] / bound:.1%} of the {bound:.1f} that fetch and decode allow"
    )
    return {"feeding": {**rates, "bound": bound, "share_of_bound": rates["fed"] / bound, "all": dict(found)}}


def steady_rate(marks: list[tuple[float, int]], expected: int) -> float:
    """Photos per second from the middle batch on, of marks (when, how many were done)."""
    (middle_at, middle), (last_at, last) = marks[(len(marks) - 1) // 2], marks[-1]
    assert last == expected, f"{last} of {expected} photos were answered"
    assert len(marks) > 1, "more than one batch is needed to tell a rate"
    return (last - middle) / (last_at - middle_at)


def time_nights(output_uri: str, *command: str) -> tuple[Ended, float, float]:
    """Runs the audit of `command` over the short and the whole manifest. Returns how the second ended, images per second of
    what it has more, and its seconds."""
    nights = []
    for name, manifest_uri in (("short", SHORT_MANIFEST_URI), ("whole", MANIFEST_URI)):
        place = f"{output_uri}/{name}"
        ended = run(*command, "--manifest-uri", manifest_uri, "--output-uri", place)
        summary = read_table(f"{place}/summary/audit_date={NIGHT}/summary.parquet").to_pylist()[0]
        assert summary["num_scored"] == summary["num_bins"], "every photo of the benchmark can be scored"
        record = json.loads(storage.read_bytes(f"{place}/runs/{summary['run_id']}/run.json"))
        nights.append((summary["num_bins"], record["outcome"]["seconds"]))
    (few, short), (many, whole) = nights
    assert whole - short >= LEAST_SECONDS, f"{short} and {whole} seconds: take more --num-images"
    return ended, (many - few) / (whole - short), whole


def conclude(found: dict[str, list[dict]]) -> dict:
    """The document that --json writes: medians, and what follows from them."""
    rates = {name: [figures["images_per_second"] for figures in repeats] for name, repeats in found.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    roofs = {name: median[name] for name in ROOFS}
    preparing = 1 / roofs["fetch"] + 1 / roofs["decode"]
    # where one set of cores does everything, the costs add up
    bound = min(1 / preparing, roofs["network"]) if ON_GPU else 1 / (preparing + 1 / roofs["network"])
    peers = {name: rate for name, rate in median.items() if name not in (*ROOFS, "ours")}
    ours = {key: statistics.median(figures[key] for figures in found["ours"]) for key in found["ours"][0]}
    return {
        "roofs": roofs,
        "bound": bound,
        "ours": ours,
        "share_of_bound": median["ours"] / bound,
        "peers": peers,
        "ratios": {name: median["ours"] / rate for name, rate in peers.items()},
        "spread": {name: [min(values), max(values)] for name, values in rates.items()},
    }


def table(figures: dict) -> str:
    """The document as text."""
    rows = [("", "images/s", "from", "to", "ours is")]
    listed = {
        **{f"roof: {name} alone": (name, rate) for name, rate in figures["roofs"].items()},
        "ours": ("ours", figures["ours"]["images_per_second"]),
        **{name: (name, rate) for name, rate in figures["peers"].items()},
    }
    for title, (name, rate) in listed.items():
        low, high = figures["spread"][name]
        ratio = f"{figures['ratios'][name]:.2f} x" if name in figures["ratios"] else ""
        rows.append((title, f"{rate:.2f}", f"{low:.2f}", f"{high:.2f}", ratio))
    rows.insert(
        4, ("bound of the pipeline", f"{figures['bound']:.2f}", "", "", f"{figures['share_of_bound']:.1%} of it")
    )
    ours = figures["ours"]
    return "\n".join(f"{title:32}{rate:>10}{low:>10}{high:>10}   {ratio}" for title, rate, low, high, ratio in rows) + (
        f"\nours: {ours['seconds']:.0f} s in all, of which {ours['start_and_end_seconds']:.0f} s start and end; "
        f"driver {ours['driver_mb']:.0f} MB, its workers and Ray's own processes {ours['workers_mb']:.0f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos-uri", help="folder of .jpg files; by default generated photos")
    parser.add_argument("--bundle-uri", type=Path, help="folder; by default a ResNet50 at 224 with random weights")
    parser.add_argument("--num-images", type=int, default=UNIT, help="photos of a night; peers score some of them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="of the network alone, of ours and of the tuned loader's")
    parser.add_argument("--skip-peer", nargs="*", default=[], help=f"names, or how they begin: {', '.join(PEERS)}")
    parser.add_argument(
        "--feeding", action="store_true", help="instead: how fast photos come to a network without cost"
    )
    parser.add_argument("--growth", type=int, nargs="+", help="instead: nights of so many bins with a scoring stand-in")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.num_images % UNIT:
        parser.error(f"--num-images: expected a multiple of {UNIT}, as the rate is told by two nights of whole shards")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.growth:
            figures = {"growth": [measure_growth(num_bins, folder) for num_bins in options.growth]}
        else:
            bundle = options.bundle_uri or make_bundle(folder / "bundle")
            (folder / "s3").mkdir()
            with serve_photos(options.photos_uri, options.num_images, folder / "s3") as uris:
                if options.feeding:
                    figures = measure_feeding(bundle, folder, uris, options.repeats)
                else:
                    print(f"{len(uris)} photos: {options.photos_uri or 'generated ones, not real'}")
                    found = measure(bundle, folder, uris, options.repeats, options.skip_peer, options.precision)
                    figures = conclude(found)
                    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return check_share({**figures, **figures.get("feeding", {})}.get("share_of_bound", 0))


def check_share(share_of_bound: float) -> int:
    """The exit code: nothing is faster than what bounds it."""
    if share_of_bound > 1:
        print("a share of the bound above 1.0 is a measuring error: more --num-images", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
