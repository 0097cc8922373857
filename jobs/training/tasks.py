"""What the tasks that read photos beside a training may take of the cluster."""

from __future__ import annotations

import ray
import ray.data

TASK_CPUS = 0.25
"""Of a task that reads photos: a part, so that some run beside a training that holds the rest of a small machine."""
LEAST_TASKS = 4
"""On few CPUs, as reading also waits."""


def task_pool(num_blocks: int, num_readers: int = 1) -> ray.data.TaskPoolStrategy:
    """For so many blocks of photos to read: no more tasks at once than the cluster has CPUs (LEAST_TASKS on few), whatever
    part of one each asks for, as every further one is a process more to start on the same cores. Of `num_readers` that read
    at the same time each has its part."""
    most = max(LEAST_TASKS, int(ray.cluster_resources().get("CPU", 0)) // num_readers)
    return ray.data.TaskPoolStrategy(size=min(most, num_blocks))
