"""Bundles at a `-uri`: a local folder as it is, one on S3 fetched for the length of a block; and the networks in them, as
workers load them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from jobs.platform import storage
from jobs.platform.uris import absolute, is_s3
from model.bundle_files import read_bundle_info, read_training_images, read_weights
from model.processor import Precision
from schemas.bundle import BundleInfo
from schemas.errors import InputError

if TYPE_CHECKING:  # drivers read bundles without torch
    from model.scoring import Scorer


@contextmanager
def local_bundle(uri: str) -> Iterator[Path]:
    """A folder with the bundle's files. Raises InputError where there is none; its messages name the URI."""
    if not is_s3(uri):
        yield Path(absolute(uri))
        return
    uri = absolute(uri)
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        try:
            storage.download_folder(uri, Path(folder))
            yield Path(folder)
        except FileNotFoundError as error:
            raise InputError(f"{uri}: expected a bundle (as jobs.train writes it), found nothing there") from error
        except InputError as error:
            raise InputError(str(error).replace(folder, uri)) from error


@dataclass(frozen=True)
class ScorerPlan:
    """The network that a worker loads, and how it computes there."""

    bundle_uri: str
    bundle_id: str
    """Of the bundle that the job began with, by whose figures the answers are judged."""
    device: Literal["cuda", "cpu"]
    precision: Precision
    batch_size: int
    threads: int
    """On a CPU, at most the machine's cores: Ray would give a worker as many as logical CPUs that it asked for."""
    calls: int = 1
    """At once, which share them."""

    def num_threads(self) -> int:
        """Of a call on this machine."""
        return math.ceil(min(self.threads, os.cpu_count() or 1) / self.calls)

    def load(self) -> Scorer:
        """The network, ready to score. Raises InputError where another bundle lies there by now."""
        from model.bundle import load_bundle
        from model.scoring import Scorer

        with local_bundle(self.bundle_uri) as folder:
            bundle = load_bundle(folder)
        if bundle.info.bundle_id != self.bundle_id:
            raise InputError(
                f"{self.bundle_uri}: expected bundle {self.bundle_id}, with which the job began, found "
                f"{bundle.info.bundle_id}"
            )
        return Scorer(bundle, device=self.device, precision=self.precision, batch_size=self.batch_size)


def read_bundle(uri: str) -> tuple[BundleInfo, pa.Table]:
    """What a bundle says of itself, and every photo that its training has seen, once its files are found complete and
    undamaged. Whether the weights fit their network is for whoever loads them to find. Raises InputError."""
    with local_bundle(uri) as folder:
        info = read_bundle_info(folder)
        read_weights(folder, info)
        return info, read_training_images(folder, info)
