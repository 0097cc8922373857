"""The deployment that speaks HTTP: reads photos, decodes them, asks the network, answers."""

from __future__ import annotations

import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from jobs.counting.belief import Belief
from jobs.platform.bundles import local_bundle
from jobs.serving.answers import Answer, Judge
from jobs.serving.gate import Gate, Room
from jobs.serving.metrics import count_photos
from jobs.serving.problems import Problem, log_defect
from jobs.serving.routes import build_api
from jobs.serving.uploads import Upload
from model.bundle_files import digests, learned_from, read_bundle_info, read_training_images
from model.images import RejectedImage, UnreadableImage, decode_image
from model.posterior import build_assessor
from schemas.bundle import BundleInfo
from schemas.errors import InputError

LINGER_S = 1.0
"""After the last answer: it still has to pass Serve's proxy, which is killed, and who asks meanwhile is told 503."""

TRIES = 3
"""A photo whose replica died is given to another one: counting it twice changes nothing."""


@dataclass(frozen=True)
class FrontSettings:
    """What a front replica needs to know beside its bundle."""

    bundle_uri: str
    belief: Belief
    token_digest: bytes | None
    max_waiting: int
    max_body_bytes: int
    request_timeout_s: float


class Front:
    """One replica of the HTTP side. It holds no network; the photos wait in its handle for one."""

    def __init__(self, counter: DeploymentHandle, settings: FrontSettings) -> None:
        self._counter = counter
        self.settings = settings
        with local_bundle(settings.bundle_uri) as folder:
            self.bundle: BundleInfo = read_bundle_info(folder)
            images = read_training_images(folder, self.bundle)
        belief, built_for = settings.belief, settings.belief.bundle_id
        if self.bundle.bundle_id != built_for:
            # else the old network's counts would be judged by the new bundle's figures
            raise InputError(f"{settings.bundle_uri}: deployed with bundle {built_for}, found {self.bundle.bundle_id}")
        self._training_photos = frozenset(map(bytes, digests(learned_from(images))))
        self._judge = Judge(
            assessor=build_assessor(self.bundle.label_histogram, belief.noise_rate, belief.record_model),
            prediction_set_threshold=self.bundle.prediction_set_threshold,
            record_model=belief.state,
            bundle_id=self.bundle.bundle_id,
        )
        self.room = Room(settings.max_waiting)
        # bounds the memory of decoding: the dearest photo that is read takes 290 MB meanwhile (tests.model.hostile_photos)
        self._decoders = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), "decoder")
        self.photos = count_photos()

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = build_api(self)
        api.add_middleware(
            Gate,
            room=self.room,
            photos=self.photos,
            token_digest=self.settings.token_digest,
            max_body_bytes=self.settings.max_body_bytes,
        )
        return api

    async def count(self, upload: Upload) -> Answer:
        """Raises Problem, also for what nobody foresaw: the other photos of its batch get their answers all the same."""
        try:
            answer = await self._count(upload)
        except Problem as problem:
            self.photos.inc(tags={"outcome": problem.cause})
            raise
        except Exception as error:
            defect = log_defect(error)
            self.photos.inc(tags={"outcome": defect.cause})
            raise defect from error
        self.photos.inc(tags={"outcome": "counted"})
        return answer

    async def check_ready(self) -> None:
        """Raises Problem where no photo would be counted just now. A full queue is ready."""
        if self.room.draining:
            raise Problem("shutting_down", "no photo is taken any more", retry_after_s=5)
        try:
            await asyncio.wait_for(self._counter.ping.remote(), 5)
        except BackPressureError:
            return
        except (TimeoutError, RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            raise Problem("unavailable", "no replica of the network answers", retry_after_s=5) from error

    async def drain(self, timeout_s: float) -> int:
        """Called on every replica before the application is deleted; how many requests were not finished."""
        left = await self.room.drain(timeout_s)
        await asyncio.sleep(LINGER_S)
        return left

    async def _count(self, upload: Upload) -> Answer:
        timeout_s = self.settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                pixels, digest = await self._decode(upload.take())
                probabilities = await self._score(pixels)
        except TimeoutError as error:
            raise Problem("timed_out", f"not counted within {timeout_s:g} s", retry_after_s=5) from error
        return self._judge.answer(
            probabilities, upload.expected_qty, pixels, seen_in_training=digest in self._training_photos
        )

    async def _decode(self, data: bytes) -> tuple[np.ndarray, bytes]:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._decoders, self._read, data)
        except (UnreadableImage, RejectedImage) as error:
            raise Problem(str(error.status), str(error)) from error

    def _read(self, data: bytes) -> tuple[np.ndarray, bytes]:
        return decode_image(data, self.bundle.preprocessing), hashlib.sha256(data).digest()

    async def _score(self, pixels: np.ndarray) -> np.ndarray:
        for _ in range(TRIES):
            try:
                return await self._counter.count.remote(pixels)
            except BackPressureError as error:
                raise self.room.overloaded(f"{self.settings.max_waiting} photos are waiting") from error
            except (RayActorError, ReplicaUnavailableError):
                continue
            except DeploymentUnavailableError as error:
                raise Problem("unavailable", "the network failed to deploy", retry_after_s=30) from error
        raise Problem("unavailable", f"{TRIES} replicas of the network died with this photo", retry_after_s=30)
