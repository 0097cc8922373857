"""The deployment that holds the network: photos in, calibrated probabilities out, in batches of the audit's shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ray.serve.metrics import Histogram

from jobs.platform.bundles import ScorerPlan
from jobs.serving.batching import Batcher
from jobs.stages.score import not_a_number
from schemas.errors import GateError


class Counter:
    """One network on one device."""

    def __init__(self, plan: ScorerPlan) -> None:
        """Raises InputError where the bundle is not the one that the front was built for."""
        import torch

        self._scorer = plan.load()
        # One thread of our own, so that Serve can probe the replica meanwhile; OpenMP keeps its width per thread.
        executor = ThreadPoolExecutor(1, "scorer")
        if plan.device == "cpu":
            executor.submit(torch.set_num_threads, plan.num_threads()).result()
        self._precision = plan.precision
        side = self._scorer.info.preprocessing.image_size
        # the first batch of a process is slow: no caller should wait for it
        executor.submit(self._scorer.score, np.zeros((1, side, side, 3), np.uint8)).result()
        self._batcher = Batcher(self._score, plan.batch_size, executor)
        self._sizes = Histogram(
            "stock_audit_batch_photos",
            description="Photos in each batch that the network scored.",
            boundaries=[1, 2, 4, 8, 16, 32, 64, 128, 256],
        )

    async def count(self, pixels: np.ndarray) -> np.ndarray:
        """A photo, (S, S, 3) uint8, in; its (K + 1,) float32 probabilities out. Raises GateError where they are no numbers."""
        probabilities = await self._batcher.submit(pixels)
        if not np.isfinite(probabilities).all():
            raise GateError(not_a_number(self._precision))
        return probabilities

    async def ping(self) -> None:
        """Comes back once a replica is there."""

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises RuntimeError: it can count no more."""
        if self._batcher.is_broken:
            raise RuntimeError("the batches' worker has ended")
        if self._batcher.has_failed:  # a device that has failed once (CUDA's context) fails for ever
            raise RuntimeError("the network failed on pixels that were checked: the device may be lost")

    def _score(self, pixels: np.ndarray) -> np.ndarray:
        self._sizes.observe(len(pixels))
        return self._scorer.score(pixels)
