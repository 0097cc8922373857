"""Settings of `jobs.train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.config.base import JobConfig, Seed
from model.recipe import Recipe


class TrainConfig(Recipe, JobConfig):
    """Train a counter and write its bundle."""

    manifest_uri: str
    """The bins to learn from: a manifest with their records, photos and groups."""
    bundle_uri: str
    """Where the bundle is written; one that is there is replaced. Checkpoints lie in `<bundle-uri>.training` until it is
    complete."""
    num_workers: int = Field(default=1, ge=1)
    """Training processes (DDP): one per GPU, or shares of the cluster's CPUs. Each needs a micro-batch of its own in
    every batch: 4 workers need --batch-size 128, or --micro-batch-size 8."""
    selection_share: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the bins, in whole groups, that choose the best epoch and fit the calibration."""
    test_share: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of the bins, in whole groups, that only the final figures see."""
    split_seed: Seed = 0
    """Draws which groups train, select and test. `--seed` does not: trainings of several seeds see the same test bins."""
    allowed_root: tuple[str, ...] = ()
    """Photos are only read below these URIs; by default below the manifest's images_uri."""
    anonymous: bool = False
    """Read photos from a public bucket without credentials."""
    max_unusable_share: float = Field(default=0.05, ge=0, le=1)
    """Nothing is trained where more than this share of the photos are missing, damaged or not to be read. Fewer are left
    out, and the bundle and its report say how many."""
    on_unhealthy: Literal["stop", "warn"] = "warn"
    """What to do when a health rule fires: stop without a bundle (exit 1; `jobs.train` goes on from there when it is told
    to warn), or say so in the report. With `stop`, class imbalance and training that waits for photos are said too and stop
    nothing, and overfitting alone ends a training with the bundle of its best epoch."""
    max_failures: int = Field(default=2, ge=0)
    """Worker failures after which training gives up; each one continues from the last checkpoint."""
    trace_steps: int = Field(default=0, ge=0, le=50)
    """Steps of the first epoch to record with the torch profiler; the trace is `trace.json.gz` in the bundle's folder."""

    def recipe(self) -> Recipe:
        """The settings that decide the weights, without places and resources."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})
