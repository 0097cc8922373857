"""An audit on a cluster that says it has a GPU, in which the network computes on the processor: everything of the way to
a GPU but CUDA itself.

    python -m tests.gpu_cluster --manifest-uri M --bundle-uri B --output-uri O --precision fp32
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from jobs.platform.bundles import ScorerPlan
from jobs.stages import score
from tests.hooked_audit import run_hooked_audit


def compute_on_processor() -> None:
    """Ray calls it in each worker before its first task."""
    load = score.ShardScorer.__init__

    def load_on_processor(self: score.ShardScorer, plan: ScorerPlan) -> None:
        assert plan.device == "cuda"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0", "Ray gave the scorer the GPU"
        load(self, replace(plan, device="cpu"))

    score.ShardScorer.__init__ = load_on_processor  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(run_hooked_audit("tests.gpu_cluster.compute_on_processor", sys.argv[1:], num_cpus=4, num_gpus=1))
