"""Settings of the evaluation."""

from typing import Literal

from jobs.config.base import JobConfig, PrecisionChoice, Seed

Split = Literal["unseen", "test", "all"]


class EvaluateConfig(JobConfig):
    """Measures a bundle on labelled bins: counts with 95 % intervals beside the majority baseline, and calibration."""

    manifest_uri: str
    """The labelled bins: a manifest, as `jobs.ingest` writes it. The label is the record."""

    bundle_uri: str
    """The trained counter, as `jobs.train` writes it."""

    output_uri: str
    """Where metrics.json and index.html go; those of an earlier evaluation are replaced."""

    split: Split = "unseen"
    """Which bins: `unseen` leaves out photos that training learned from (its split `test` counts as unseen), `test`
    takes only training's own test photos, `all` takes everything and flatters."""

    precision: PrecisionChoice = "auto"
    """Arithmetic of the network; auto is bf16 where the hardware gains by it, else fp32. With int8 all is scored with auto
    too, and fewer than 99 % of the same counts are a failure (exit 1)."""

    allowed_root: tuple[str, ...] = ()
    """Photos are only read below these URIs; by default below the manifest's images_uri."""

    anonymous: bool = False
    """Read photos from a public bucket without credentials."""

    seed: Seed = 0
    """Of the resampling and of the records that are altered on trial."""
