"""Fetches shards in tasks and scores them on a pool of actors: one bundle load each, batches padded to one shape."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from jobs.platform.bundles import ScorerPlan
from jobs.platform.cluster import network_environment
from jobs.stages.images import FETCHED_SCHEMA, pixels_of
from jobs.stages.resources import Resources
from jobs.stages.worklist import Shard, shard_dataset
from schemas.errors import GateError, InputError

SCORED_SCHEMA = pa.schema(
    [
        *(field for field in FETCHED_SCHEMA if field.name != "pixels"),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("fresh", pa.bool_(), nullable=False),
    ]
)
"""Manifest columns, what became of the photo, the calibrated probabilities. `fresh`: tried in this try of the run,
so the row's shard has to be staged (again)."""
FETCHED_SHARD_SCHEMA = pa.schema(
    [*FETCHED_SCHEMA, *(SCORED_SCHEMA.field(name) for name in ("probabilities", "shard", "fresh"))]
)
"""What the scorers are given: rows with pixels, which they score, and rows without."""
TASKS_AHEAD = 8
"""Shards that may be on their way to one scorer."""
GPU_FETCH_CLAIM = 0.25
"""Part of its CPUs that a fetch beside GPUs asks for; their number is limited already. Ray Data keeps a third of what is
free for each stage, so that with whole claims it began 8 of 14 planned fetches."""
GPU_FETCH_SURPLUS = 1.5
"""Fetches beside GPUs for each planned one: the driver takes its time to follow one that ended with the next."""
GPU_FETCH_NICENESS = 10
"""Of fetches beside GPUs, which take every core: who feeds the GPU, hands out work and answers requests needs one or two,
and must not wait for them."""
SHARDS_AT_ONCE = 2
"""Shards in threads of one scorer: beside its GPU one is taken in or handed on while the GPU computes another. On CPUs each
has half of the cores, so that whoever interrupts one half does not hold up the other: the threads of one network wait for
each other at every layer."""
SHARING_SHARDS = 8
"""Of a scorer on CPUs, from which on it computes some at once: the last one alone has half of the cores, which costs a small
night more than it gains."""


class ShardScorer:
    """A Ray Data actor that holds one network; called with blocks of fetched rows that may already have answers."""

    def __init__(self, plan: ScorerPlan):
        if plan.device == "cpu":
            os.environ["OMP_NUM_THREADS"] = str(plan.num_threads())  # read when torch is first imported
            import torch

            torch.set_num_threads(plan.num_threads())
        self._precision = plan.precision
        self._refusal: InputError | GateError | None = None
        self._is_on_gpu = plan.device == "cuda"
        try:
            with self._gpu_named():
                self._scorer = plan.load()
        except (InputError, GateError) as error:
            # raised by the first call: what an actor's constructor raises reaches the driver as text of another error
            self._refusal = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._refusal is not None:
            raise self._refusal
        pixels = pixels_of(rows, self._scorer.info.preprocessing)
        if not len(pixels):
            return rows.select(SCORED_SCHEMA.names)
        with self._gpu_named():
            probabilities = self._scorer.score(pixels)
        check_answers(rows, probabilities, self._precision)
        return with_probabilities(rows, probabilities)

    @contextmanager
    def _gpu_named(self) -> Iterator[None]:
        """Raises GateError for what CUDA refuses: no driver or one too old, or memory that others hold."""
        try:
            yield
        except (RuntimeError, AssertionError) as error:  # the second: a torch without CUDA
            reason = str(error).partition("\n")[0]
            if not self._is_on_gpu or not re.search("CUDA|NVIDIA|cuDNN|find an engine", reason):
                raise
            raise GateError(
                f"the GPU of node {platform.node()}: expected one that torch can use, found: {reason}; free it, mend its driver, "
                "or leave it out (CUDA_VISIBLE_DEVICES= where Ray starts), and run the same command again"
            ) from error


def check_answers(rows: pa.Table, probabilities: np.ndarray, precision: str) -> None:
    """Raises GateError for an answer (n, K + 1) that is no number: it can't be ranked, and staged it would stay for good."""
    broken = ~np.isfinite(probabilities).all(axis=1)
    if broken.any():
        bin_id = rows["bin_id"].filter(pc.is_valid(rows["pixels"]))[int(broken.argmax())]
        raise GateError(f"bin {bin_id}: {not_a_number(precision)}")


def not_a_number(precision: str) -> str:
    """What is wrong with such an answer, and what to do."""
    advice = "use --precision bf16 or fp32" if precision == "fp16" else "train the bundle again or use another one"
    return f"the network's answer is not a number in {precision}; {advice}"


def with_probabilities(rows: pa.Table, probabilities: np.ndarray) -> pa.Table:
    """Puts (n, K + 1) `probabilities` into the n rows that have pixels; the other rows keep theirs, or null."""
    scored = pc.is_valid(rows["pixels"]).to_numpy()
    answers = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), probabilities.shape[1])
    # each row's place in the old column, with the new answers appended to it
    places = np.arange(rows.num_rows)
    places[scored] = rows.num_rows + np.arange(len(probabilities))
    both = pa.chunked_array([*rows["probabilities"].chunks, answers.cast(pa.list_(pa.float32()))])
    columns = {"probabilities": both.take(pa.array(places))}
    return pa.Table.from_arrays([columns.get(name, rows[name]) for name in SCORED_SCHEMA.names], schema=SCORED_SCHEMA)


def shard_table(rows: pa.Table, shard: int, *, fresh: bool) -> pa.Table:
    """FETCHED_SHARD_SCHEMA from fetched rows (no probabilities yet) or staged rows (no pixels any more)."""
    added = {
        "pixels": pa.nulls(rows.num_rows, pa.binary()),
        "probabilities": pa.nulls(rows.num_rows, pa.list_(pa.float32())),
        "shard": pa.repeat(pa.scalar(shard, pa.int32()), rows.num_rows),
        "fresh": pa.repeat(pa.scalar(fresh), rows.num_rows),
    }
    columns = [rows[name] if name in rows.column_names else added[name] for name in FETCHED_SHARD_SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=FETCHED_SHARD_SCHEMA)


def _step_back(items: pa.Table, fetch: Callable[..., Iterator[pa.Table]], **fetch_kwargs: Any) -> Iterator[pa.Table]:
    """`fetch` in a thread that lets others go first, and those that it starts; for good, as none may take its place back."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), GPU_FETCH_NICENESS))
    yield from fetch(items, **fetch_kwargs)


def score_shards(
    shards: list[Shard],
    fetch: Callable[..., Iterator[pa.Table]],
    fetch_kwargs: dict[str, Any],
    *,
    image_size: int,
    scorer: ScorerPlan,
    resources: Resources,
) -> ray.data.Dataset:
    """Scored shards, SCORED_SCHEMA, one block a shard, in the order of completion. `fetch`: from rows of `shard_dataset`
    to one `shard_table` each."""
    # A shard must stay one block: Ray would split it at the default of 128 MiB.
    block_bytes = 4 * max(shard.num_rows for shard in shards) * image_size**2 * 3
    ray.data.DataContext.get_current().target_max_block_size = max(1 << 28, block_bytes)
    on_gpus = resources.device == "cuda"
    num_scorers = min(resources.num_scorers, len(shards))
    is_even = resources.scorer_threads % SHARDS_AT_ONCE == 0
    shares = on_gpus or (is_even and len(shards) >= SHARING_SHARDS * num_scorers)
    at_once = SHARDS_AT_ONCE if shares else 1
    num_fetchers = int(resources.num_fetchers * (GPU_FETCH_SURPLUS if on_gpus else 1))
    fetched = shard_dataset(shards).map_batches(
        _step_back if on_gpus else fetch,  # type: ignore[arg-type]
        fn_kwargs={"fetch": fetch, **fetch_kwargs} if on_gpus else fetch_kwargs,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(num_fetchers, len(shards))),
        num_cpus=resources.fetcher_cpus * (GPU_FETCH_CLAIM if on_gpus else 1),
    )
    # `map_batches` itself refuses blocks as they are where there is a GPU, lest someone's batches be too small for it
    return fetched.map_batches_internal(
        ShardScorer,
        fn_constructor_kwargs={"plan": replace(scorer, calls=at_once)},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        # the driver hands out work a few times a second: a fast card must not wait for it
        compute=ray.data.ActorPoolStrategy(
            size=num_scorers,
            max_tasks_in_flight_per_actor=TASKS_AHEAD,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=shares,
        ),
        num_cpus=resources.scorer_cpus,
        num_gpus=resources.scorer_gpus or None,
        # for a worker of its own, in which nothing has imported torch before
        runtime_env=None if on_gpus else {"env_vars": network_environment(resources.scorer_threads // at_once)},
    )
