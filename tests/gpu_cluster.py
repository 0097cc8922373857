"""An audit on a cluster that says it has a GPU, in which the network computes on the processor: everything of the way to
a GPU but CUDA itself.

    python -m tests.gpu_cluster --manifest-uri M --bundle-uri B --output-uri O --precision fp32
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray

from jobs import audit
from jobs.stages import score


def compute_on_processor() -> None:
    """Ray calls it in each worker before its first task."""
    load = score.ShardScorer._load

    def load_on_processor(self: score.ShardScorer, bundle_uri: str, bundle_id: str, device: str, *given: Any) -> None:
        assert device == "cuda"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0", "Ray gave the scorer the GPU"
        load(self, bundle_uri, bundle_id, "cpu", *given)

    score.ShardScorer._load = load_on_processor  # type: ignore[method-assign]


def main(argv: list[str]) -> int:
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    hook = {"worker_process_setup_hook": "tests.gpu_cluster.compute_on_processor", "env_vars": environment}
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    code = audit.main(argv)
    ray.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
