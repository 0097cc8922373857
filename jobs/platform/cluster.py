"""Joining the cluster: the one that a submitted job runs in, or a local one started for this command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
import ray.data

OWN_CLUSTER = {
    # Ray's own daemons would interrupt the network, whose threads wait for each other, at every turn.
    "RAY_worker_niceness": "0",
    # Ten times a second it would look for new lines in every log of the machine.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "5",
}
"""Set for a cluster that a command starts for itself, unless they are set already."""


@contextmanager
def connect(*, quiet: str | None = None, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (`ray job submit` sets it), else starts a local one.

    A cluster that this process already joined is used and left as it is (tests, notebooks). Of the logger `quiet` only
    errors are shown by the workers of a local cluster; `environment` is set for it beside OWN_CLUSTER.
    """
    if ray.is_initialized():
        _configure_data()
        yield
        return
    options: dict = {"log_to_driver": True, "logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        # "local", as Ray would first look for a cluster that ran on this machine once, and wait for one that died
        options |= {"address": "local", "include_dashboard": False}
        for name, value in {**OWN_CLUSTER, **(environment or {})}.items():
            os.environ.setdefault(name, value)
        if quiet:

            def keep_quiet() -> None:  # nested, so that it travels by value: a worker runs it before it can import ours
                logging.getLogger(quiet).setLevel(logging.ERROR)

            options |= {"runtime_env": {"worker_process_setup_hook": keep_quiet}}
    ray.init(**options)
    _configure_data()
    try:
        yield
    finally:
        ray.shutdown()


def _configure_data() -> None:
    context = ray.data.DataContext.get_current()
    # Our own progress lines say images, rate and remaining time; Ray's bars would overwrite them.
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Else Ray replaces what a function raises by a UserCodeException, and what it was stays in the text only.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It calls every such error one of Ray's own and shows Ray's stack; run_command says what it was.
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
