"""Batches that form while the one before is scored.

Not `@serve.batch`: it closes a batch a few milliseconds after its first photo even while the network is busy (Ray 2.60,
`_BatchQueue._process_batches`), so under load batches of one photo queue up, and each costs a whole padded batch here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

GAP_SHARE, WAIT_SHARE = 0.5, 1.0
"""A batch waits for company while photos keep coming, with gaps up to the first share of the time that the last batch
took, and never beyond the second: who is left behind waits as long for the batch to end. With a tenth and a half, 32
clients on two cores fell into two groups that took turns, and 61 photos a second were counted instead of 88."""


@dataclass(frozen=True)
class _Waiting:
    pixels: np.ndarray
    answer: asyncio.Future[np.ndarray]


class Batcher:
    """Hands photos to `score` in batches of up to `batch_size`, one batch at a time, in `executor`."""

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], batch_size: int, executor: Executor) -> None:
        self._score = score
        self._batch_size = batch_size
        self._executor = executor
        self.has_failed = False
        """Whether `score` has ever raised."""
        self._queue: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._seconds = 0.0
        self._scoring = 0
        self._most = 1
        """Most photos that were about at once, waiting or being scored, since the last batch was closed."""

    async def submit(self, pixels: np.ndarray) -> np.ndarray:
        """One photo in, its row of `score` out. Raises what `score` raises."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        waiting = _Waiting(pixels, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._most = max(self._most, self._scoring + len(self._queue))
        self._arrived.set()
        return await waiting.answer

    @property
    def is_broken(self) -> bool:
        return self._worker is not None and self._worker.done()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            started = loop.time()
            scoring = loop.run_in_executor(self._executor, self._score, np.stack([each.pixels for each in batch]))
            await asyncio.wait([scoring])
            self._seconds, self._scoring = loop.time() - started, 0
            error = scoring.exception()
            self.has_failed |= error is not None
            for place, each in enumerate(batch):
                if each.answer.done():
                    continue  # its caller has gone
                if error is not None:
                    each.answer.set_exception(error)
                else:
                    each.answer.set_result(scoring.result()[place])

    async def _collect(self) -> list[_Waiting]:
        """The next photos, oldest first: as many as were about lately, or those that came while it waited."""
        batch: list[_Waiting] = []
        while not batch:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            # clients that had an answer just now are about to ask again: without a wait they would split into two
            # groups that take turns, each with half a batch
            await self._await_company(min(self._batch_size, self._most))
            self._queue = [each for each in self._queue if not each.answer.done()]
            batch, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
            self._scoring, self._most = len(batch), len(batch) + len(self._queue)
        return batch

    async def _await_company(self, expected: int) -> None:
        loop = asyncio.get_running_loop()
        latest = loop.time() + WAIT_SHARE * self._seconds
        while len(self._queue) < expected:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(min(latest, loop.time() + GAP_SHARE * self._seconds)):
                    await self._arrived.wait()
            except TimeoutError:
                return
