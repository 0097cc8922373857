"""`jobs.audit` with something put into its Ray workers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from jobs import audit
from jobs.platform.cluster import OWN_CLUSTER


def run_hooked_audit(
    hook: str, argv: Sequence[str], *, environment: Mapping[str, str] | None = None, **ray_options: Any
) -> int:
    """The audit's exit code, on a local cluster as a command starts it. Ray calls `hook` ("module.function") in each worker
    before its first task; `environment` is set there."""
    for name, value in OWN_CLUSTER.items():
        os.environ.setdefault(name, value)
    # the hook runs before Ray hands on the driver's own path
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    runtime = {"worker_process_setup_hook": hook, "env_vars": {"PYTHONPATH": path, **(environment or {})}}
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env=runtime, **ray_options)
    code = audit.main(argv)
    ray.shutdown()
    return code
