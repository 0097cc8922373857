"""Generates bin photos that look like ABID's, records in its shape, a share of them wrong, and the truth beside them.

    python -m jobs.sample --output-uri demo/night --num-bins 400 --seed 2 --record-error-rate 0.05

    ray job submit --working-dir . -- python -m jobs.sample --output-uri s3://stock/sample --num-bins 100000 --seed 2

Writes below --output-uri: bin-images/NNNNN.jpg, metadata/NNNNN.json, truth.parquet (bin_id, true_qty: what is really
there) and sample.json (the settings). The same command again writes the same files, so that one cut short is completed
by it; into a folder that holds anything else it refuses to write. For demonstrations and tests, and to learn from before
real photos where no pretrained weights can be had (see the README): no figure measured on it says anything about real
bins. Exit codes: 0 written, 1 not complete, 2 bad arguments or a folder that holds something else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jobs.config.sample import SampleConfig
from jobs.platform import storage
from jobs.platform.cluster import await_slot, connect
from jobs.platform.command import run_command
from jobs.platform.line_timer import LineTimer
from jobs.platform.parquet import write_table
from jobs.platform.provenance import provenance
from jobs.platform.uris import absolute, join
from jobs.sampling.dump import name_bin, write_all_bins
from schemas.errors import InputError

logger = logging.getLogger("jobs.sample")


def run_sample(config: SampleConfig) -> None:
    """The whole job. Raises InputError where the output holds something else or can't be written."""
    output_uri = absolute(config.output_uri)
    settings = config.model_dump(mode="json", exclude={"output_uri"})
    _claim_output(output_uri, settings)
    started, timer = time.monotonic(), LineTimer(5.0)
    # One byte a bin: all that the driver keeps.
    true_qty = np.zeros(config.num_bins, np.int8)
    num_done = num_wrong = 0
    with connect():
        await_slot(1.0)  # of one task; Ray would wait for it without a word
        for first, quantities, wrong in write_all_bins(
            output_uri, config.num_bins, config.seed, config.record_error_rate
        ):
            true_qty[first - 1 : first - 1 + len(quantities)] = quantities
            num_done += len(quantities)
            num_wrong += wrong
            if timer.is_due():
                rate = num_done / (time.monotonic() - started)
                left = (config.num_bins - num_done) / rate
                logger.info(
                    "%s of %s bins, %.0f photos/s, %.0f s left", f"{num_done:,}", f"{config.num_bins:,}", rate, left
                )
    truth = pa.table(
        {
            "bin_id": pa.array((name_bin(number) for number in range(1, config.num_bins + 1)), pa.string()),
            "true_qty": pa.array(true_qty, pa.int32()),
        }
    )
    write_table(join(output_uri, "truth.parquet"), truth)
    seconds = time.monotonic() - started
    print(
        f"{config.num_bins:,} photos and records written to {output_uri} in {seconds:.0f} s "
        f"({config.num_bins / seconds:.0f} photos/s); {num_wrong:,} records are wrong, truth.parquet says which"
    )


def _claim_output(output_uri: str, settings: dict) -> None:
    """Writes the settings into an empty output. Raises InputError where another sample or anything else is."""
    settings_uri = join(output_uri, "sample.json")
    try:
        found = storage.read_json(settings_uri)["settings"]
    except FileNotFoundError:
        other = next(storage.list_objects(output_uri), None)
        if other is not None:
            raise InputError(
                f"{output_uri}: expected an empty place for the sample, found {other.uri}; choose another --output-uri"
            ) from None
        storage.write_json(settings_uri, {"settings": settings, **provenance()})
        return
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{settings_uri}: expected the settings of a sample, found something else; choose another --output-uri"
        ) from error
    if found != settings:
        raise InputError(
            f"{output_uri}: holds a sample of {found}, asked for {settings}; choose another --output-uri or delete it"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(SampleConfig, run_sample, job="sample", argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
