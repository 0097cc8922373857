"""Settings of `jobs.tune`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.config.base import Seed
from jobs.config.train import TrainConfig

BATCH_SIZES = (16, 32, 64)
"""Of `--space seed`."""

SEARCHED = {
    "seed": ("learning_rate", "batch_size"),
    "wide": ("learning_rate", "weight_decay", "augmentation", "targets"),
}
"""Settings that a trial draws. Beside them max_epochs (seed) and image_size (wide) are drawn up to the flag's value,
and the wide space draws unfreeze where there are weights to keep."""


class TuneConfig(TrainConfig):
    """Search the settings of a training. The flags of `jobs.train` hold for every trial, but for what is searched."""

    bundle_uri: str
    """Where the best trial's bundle is written; one that is there is replaced."""
    seed: Seed = 0
    """Of the initial weights, the order of the photos and their augmentation in every trial, and of what is proposed."""
    max_epochs: int = Field(default=6, ge=2)
    """Most epochs of a trial: `--space seed` draws 2 to 6 up to it, `--space wide` trains for exactly so many."""
    num_trials: int = Field(default=8, ge=1)
    """Trials in all, failed ones included. The same command with more of them continues the search."""
    max_concurrent: int = Field(default=1, ge=1)
    """Trials at the same time; they share the cluster's CPUs equally, or have `--num-workers` GPUs each."""
    space: Literal["seed", "wide"] = "seed"
    """`seed`: learning rate 0.001 to 0.1 (log-uniform), batches of 16, 32 or 64, 2 to 6 epochs. `wide`: learning rate
    1e-5 to 1e-1, weight decay 1e-4 to 0.3 (both log-uniform), augmentation 0 to 1, ordinal targets or classes, half,
    three quarters or all of `--image-size`, and, given `--weights`, what is unfrozen."""
    early_stopping: bool = True
    """ASHA: a trial stops after a quarter or half of its epochs if its selection NLL is above the median of those that
    were there before it (with `--space seed` from scratch after three fifths, when all are on photos of the whole size).
    (NLL, since the audit works with the probabilities; and a few hundred bins tell NLLs apart
    sooner than shares of exact counts.)"""
    output_uri: str | None = None
    """Where trials.parquet, search.html and what a restart needs are kept. By default `<bundle-uri>.search`: beside the
    bundle, whose folder holds only what an audit loads."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those that the trials draw from, the smallest first."""
        return BATCH_SIZES if self.space == "seed" else (self.batch_size,)

    @model_validator(mode="after")
    def _micro_batches_fill_every_batch(self) -> TuneConfig:
        for size in self.batch_sizes:
            if size % min(self.micro_batch_size, size):
                raise ValueError(
                    f"--micro-batch-size: expected a divisor of every batch size that is searched {self.batch_sizes}, "
                    f"found {self.micro_batch_size}"
                )
        return self

    @model_validator(mode="after")
    def _what_is_searched_is_not_set(self) -> TuneConfig:
        searched = SEARCHED[self.space]
        if self.space == "wide" and not self.from_scratch:
            searched += ("unfreeze",)
        for name in (*searched, "trace_steps"):
            default, found = type(self).model_fields[name].default, getattr(self, name)
            if found != default:
                whose = "is for jobs.train" if name == "trace_steps" else f"is searched in --space {self.space}"
                raise ValueError(f"--{name.replace('_', '-')}: {whose}: expected it to be left out, found {found}")
        return self
