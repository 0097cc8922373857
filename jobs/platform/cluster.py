"""Joining the cluster: the one that a submitted job runs in, or a local one started for this command."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import (
    AuthenticationError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from schemas.errors import GateError, InputError

logger = logging.getLogger(__name__)

CHECK_CPUS = 0.25
"""Of each task that reads or copies a file of a manifest: a job that waits for its turn has checked it before."""
OWN_CLUSTER = {
    # Ray's own daemons would interrupt the network, whose threads wait for each other, at every turn.
    "RAY_worker_niceness": "0",
    # More workers than CPUs, as tasks ask for parts of one, it would end after an idle second and start again, at a
    # second of a core each.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Ten times a second it would look for new lines in every log of the machine.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
}
"""Set for a cluster that a command starts for itself, unless they are set already."""

TOKENS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}

LOSSES = (
    *(WorkerCrashedError, NodeDiedError, LocalRayletDiedError, TaskUnschedulableError),
    *(OutOfMemoryError, OutOfDiskError, ObjectLostError),
)
"""What Ray says where it can't repeat on another worker what one did, or has nowhere to keep it."""

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
    # Ray computes in a thread, whose own arena could hold no block above 64 MB
    "MALLOC_ARENA_MAX": "1",
}
"""The environment of a process whose network computes on CPUs: glibc would give every activation back to the kernel and
fault it in again, at a tenth of a ResNet50's time. Read when a process starts."""


def network_environment(threads: int) -> dict[str, str]:
    """For a worker whose network computes on CPUs, in `threads` threads: Ray would give it one per logical CPU that it
    holds. Read when the process starts, or when torch is first imported."""
    return {**KEEP_MEMORY, "OMP_NUM_THREADS": str(threads)}


WAIT_SECONDS, LOOK_SECONDS, TELL_SECONDS = 600.0, 0.5, 15.0
"""How long a job waits for others to let go of what it needs, how often it looks, and after how long it says so where a
new worker must start before anything runs."""


@contextmanager
def connect(*, quiet: str | None = None, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (`ray job submit` sets it), else starts a local one.

    A cluster that this process already joined is used and left as it is (tests, notebooks). Of the logger `quiet` only
    errors are shown by the workers of a local cluster; `environment` is set for it beside OWN_CLUSTER. Raises InputError or
    GateError where there is no joining it, GateError where no local one comes up and for what the cluster loses meanwhile.
    """
    if ray.is_initialized():
        _configure_data()
        with _losses_named():
            yield
        return
    options: dict = {"log_to_driver": True, "logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        # "local", as Ray would first look for a cluster that ran on this machine once, and wait for one that died
        options |= {"address": "local", "include_dashboard": False}
        for name, value in {**OWN_CLUSTER, **(environment or {})}.items():
            os.environ.setdefault(name, value)
        if TOKENS.isdisjoint(os.environ):
            # else Ray makes one and leaves it in the home folder, which a container may not have, or not let it write
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        if quiet:

            def keep_quiet() -> None:  # nested, so that it travels by value: a worker runs it before it can import ours
                logging.getLogger(quiet).setLevel(logging.ERROR)

            options |= {"runtime_env": {"worker_process_setup_hook": keep_quiet}}
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(**options)
    except Exception as error:  # of a node that does not come up Ray raises no narrower one
        if not address:
            raise GateError(
                f"Ray: no cluster came up on this machine ({' '.join(str(error).split())}); look for what holds its memory or "
                "its disk (Ray keeps its logs in /tmp/ray/session_latest/logs), and run the same command again"
            ) from error
        if not isinstance(error, ConnectionError | RuntimeError | ValueError | AuthenticationError):
            raise
        if "://" in address and not address.startswith("ray://"):
            raise InputError(
                f"RAY_ADDRESS: expected a cluster's HOST:PORT (such as :6379), found {address}, which is for `ray job "
                "submit`; unset it to run on this machine"
            ) from error
        raise GateError(
            f"RAY_ADDRESS: the cluster at {address} can't be joined ({' '.join(str(error).split())}); start it, join it "
            "with the same versions, or unset RAY_ADDRESS to run on this machine"
        ) from error
    _configure_data()
    try:
        with _losses_named():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _losses_named() -> Iterator[None]:
    """Ray Data gives up what makes no progress for half an hour, and Ray what it can't repeat on another worker."""
    try:
        yield
    except LOSSES as error:
        kind = type(error).__name__
        raise GateError(f"the cluster lost a worker or what it made ({kind}); run the same command again") from error
    except ExecutionTimeoutError as error:
        minutes = ray.data.DataContext.get_current().execution_no_progress_timeout_s / 60
        raise GateError(
            f"the cluster: nothing has made progress for {minutes:.0f} minutes, as where other jobs hold its CPUs or a node "
            "that scored has died and none of its size is free (`ray status` tells); run the same command again"
        ) from error


def await_free(needed: Mapping[str, float]) -> None:
    """Returns when the cluster has so many CPUs and GPUs free (`{"CPU": 1.5, "GPU": 1}`).

    A job plans from all that a cluster has. What another job holds (`jobs.serve` keeps its GPUs) Ray would wait for
    without a word, for half an hour; this says so, and raises GateError after WAIT_SECONDS.
    """
    began, told = time.monotonic(), False
    while True:
        free = ray.available_resources()
        short = {name: amount for name, amount in needed.items() if free.get(name, 0.0) < amount - 1e-6}
        if not short:
            return
        waited = time.monotonic() - began
        wanted = ", ".join(f"{name} {amount:g} (free: {free.get(name, 0.0):g})" for name, amount in short.items())
        if waited > WAIT_SECONDS:
            raise GateError(
                f"the cluster: expected to have free, within {WAIT_SECONDS:.0f} seconds: {wanted}; other jobs hold the "
                "rest (`ray status` lists it): stop them, or add nodes, and run the same command again"
            )
        if waited > 5 and not told:
            logger.info("waiting for what other jobs hold: %s", wanted)
            told = True
        time.sleep(LOOK_SECONDS)


def await_slot(num_cpus: float) -> None:
    """Returns when the cluster runs a task of so many CPUs: at once, or when it has grown (a task that waits is what an
    autoscaler adds nodes for) or others have let go. Raises GateError after WAIT_SECONDS."""
    probe = ray.remote(num_cpus=num_cpus)(_answer).remote()
    for seconds in (TELL_SECONDS, WAIT_SECONDS - TELL_SECONDS):
        if ray.wait([probe], timeout=seconds)[0]:
            return
        logger.info(
            "waiting for a CPU slot of %g: other jobs hold them, or the first worker is still starting", num_cpus
        )
    ray.cancel(probe)
    raise GateError(
        f"the cluster: expected a free slot of {num_cpus:g} CPUs within {WAIT_SECONDS:.0f} seconds, found none; other jobs "
        "hold them, or there are none (`ray status` tells): stop them, or add nodes, and run the same command again"
    )


def _answer() -> None:
    """What a probe does."""


def _is_news(record: logging.LogRecord) -> bool:
    """A scorer's share of a CPU beside its GPU is planned (`jobs.stages.resources`); Ray asks to report any issues with it."""
    return "both num_cpus and num_gpus" not in record.getMessage()


def quiet_data() -> None:
    """Our own progress lines say images, rate and remaining time; Ray Data's would stand between them. In the driver and in
    whatever worker runs data sets of its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that there are no bars


def _configure_data() -> None:
    quiet_data()
    context = ray.data.DataContext.get_current()
    # Else Ray replaces what a function raises by a UserCodeException, and what it was stays in the text only.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data._internal.execution.operators.map_operator").addFilter(_is_news)
    # It calls every such error one of Ray's own and shows Ray's stack; run_command says what it was.
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
