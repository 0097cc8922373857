"""Is a training the same on two workers as on one, and after a kill as without? Beside it the spread of three seeds.

    python -m tests.benchmarks.reproducibility --manifest-uri M --num-bins 2000 --image-size 64 --epochs 3 [--json FILE]

Each run is a process with a cluster of its own: seeds 0, 1 and 2 on one worker, seed 0 on two, and seed 0 with SIGKILL
for the driver after its second epoch and the same command again. Batches of 64 in micro-batches of 32; all runs have one
split. Every worker has half the CPUs' threads, also the one that is alone: another number of threads adds up in another
order. Prints the losses of the first 20 steps on one worker and on two, and every run's last selection figures, with how
many of the three seeds' standard deviations they lie from the seeds' mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.config.train import TrainConfig
from jobs.platform.cluster import connect
from jobs.training.labelled_bins import check_photos, read_labelled_bins
from jobs.training.splits import split_bins
from jobs.training.start import read_start
from jobs.training.trainer import train_network

FIGURES = ("selection_nll", "selection_exact", "selection_mae")
RUNS = {"seed 0": (0, 1), "seed 1": (1, 1), "seed 2": (2, 1), "two workers": (0, 2), "killed and continued": (0, 1)}
NUM_LOSSES = 20


def train(options: argparse.Namespace) -> None:
    """One training, in a process of its own; its step losses and history are the last line of its output."""
    config = TrainConfig(
        manifest_uri=options.manifest_uri,
        bundle_uri="none",
        architecture="resnet18",
        image_size=options.image_size,
        progressive_resizing=False,
        max_epochs=options.epochs,
        batch_size=64,
        seed=options.seed,
        num_workers=options.num_workers,
    )
    with connect():
        start = read_start(config)
        bins = read_labelled_bins(config)
        bins = check_photos(replace(bins, table=bins.table.slice(0, options.num_bins)), config)
        outcome = train_network(
            split_bins(bins, config, start.seen).table,
            config,
            start,
            options.place,
            num_runs=2 // options.num_workers,
            conclude=(),
        ).outcome
    print(json.dumps({"step_losses": outcome["step_losses"], "history": outcome["history"]}))


def run(name: str, flags: list[str], place: Path) -> dict[str, Any]:
    """Starts one of RUNS, kills it where it is to be killed, and gives what it printed."""
    seed, num_workers = RUNS[name]
    command = [sys.executable, "-m", "tests.benchmarks.reproducibility", *flags, "--place", str(place)]
    command += ["--seed", str(seed), "--num-workers", str(num_workers)]
    if "killed" in name:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
            assert driver.stdout is not None
            seen = next((line for line in driver.stdout if "epoch 2/" in line), None)
            assert seen is not None, "the training ended before its second epoch"
            driver.kill()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stdout[-3000:]}")
    if "killed" in name:
        assert "continues after epoch" in done.stdout, "it began anew"
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--manifest-uri", required=True)
    parser.add_argument("--num-bins", type=int, default=2000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--num-workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.place:
        train(options)
        return
    given = {"manifest-uri": options.manifest_uri, "num-bins": options.num_bins}
    given |= {"image-size": options.image_size, "epochs": options.epochs}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(name, flags, Path(folder) / name.replace(" ", "-")) for name in RUNS}
    one, two = (found[name]["step_losses"][:NUM_LOSSES] for name in ("seed 0", "two workers"))
    print("step  one worker  two workers  difference")
    for step, (first, second) in enumerate(zip(one, two, strict=True), 1):
        print(f"{step:4}  {first:10.4f}  {second:11.4f}  {second / first - 1:+.2%}")
    print("".join(f"{title:>22}" for title in ("", *FIGURES)))
    last = {name: outcome["history"][-1] for name, outcome in found.items()}
    seeds = {figure: [last[name][figure] for name in RUNS if name.startswith("seed")] for figure in FIGURES}
    for name, figures in last.items():
        away = {
            figure: (figures[figure] - statistics.mean(values)) / statistics.stdev(values)
            for figure, values in seeds.items()
        }
        print(f"{name:>22}" + "".join(f"{figures[figure]:14.4f} ({away[figure]:+.2f})" for figure in FIGURES))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
