"""The deployment that holds the network: photos in, calibrated probabilities out, in batches of the audit's shape."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ray import serve

from jobs.bundles import local_bundle
from schemas.errors import InputError


class Counter:
    """One network on one device. A batch forms while the one before it is scored."""

    def __init__(
        self,
        bundle_uri: str,
        bundle_id: str,
        device: str,
        precision: str,
        batch_size: int,
        batch_wait_s: float,
        threads: int,
    ) -> None:
        """Raises InputError where the bundle is not the one that the front was built for."""
        import torch

        from model.bundle import load_bundle
        from model.scoring import Scorer

        with local_bundle(bundle_uri) as folder:
            bundle = load_bundle(folder)
        if bundle.info.bundle_id != bundle_id:
            raise InputError(f"{bundle_uri}: deployed with bundle {bundle_id}, found {bundle.info.bundle_id}")
        self._scorer = Scorer(bundle, device=device, precision=precision, batch_size=batch_size)  # type: ignore[arg-type]
        # One thread of our own, so that Serve can probe the replica meanwhile; OpenMP keeps its width per thread.
        width = max(1, min(threads, os.cpu_count() or 1))
        self._thread = ThreadPoolExecutor(1, "scorer")
        if device == "cpu":
            self._thread.submit(torch.set_num_threads, width).result()
        side = bundle.info.preprocessing.image_size
        # the first batch of a process is slow: no caller should wait for it
        self._thread.submit(self._scorer.score, np.zeros((1, side, side, 3), np.uint8)).result()
        self.count.set_max_batch_size(batch_size)  # type: ignore[attr-defined]
        self.count.set_batch_wait_timeout_s(batch_wait_s)  # type: ignore[attr-defined]

    @serve.batch
    async def count(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        """Photos (S, S, 3) uint8 in, (K + 1,) float32 probabilities out, one each."""
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._thread, self._scorer.score, np.stack(pixels)))

    async def ping(self) -> None:
        """Comes back once a replica is there."""
