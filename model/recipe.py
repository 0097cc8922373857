"""How a counter is trained: the settings that decide its weights. `jobs.train` and `jobs.tune` share them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.bundle import Architecture

SETTLED_SHARE = 0.6
"""Of the epochs. From here on photos have their whole size, and the learning rate is on its way down."""


class Recipe(BaseModel):
    """The settings of one training; the docstring below a field is its `--help`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    architecture: Architecture = "resnet50"
    """The torchvision network."""
    weights: str = "none"
    """Where training starts: `none`, a torchvision name (IMAGENET1K_V2; of resnet18 and resnet34 IMAGENET1K_V1), or a
    .safetensors or .pth file, local or s3://, such as another bundle's."""
    initialisation: Literal["kaiming-normal", "kaiming-uniform", "xavier-normal", "orthogonal"] = "kaiming-normal"
    """Distribution of the initial convolution weights (only with --weights none)."""
    unfreeze: Literal["all", "layer2", "layer3", "layer4", "head"] = "all"
    """Train everything, or only this stage and what follows it; the rest stays as loaded."""
    # below, the last stage sees one pixel, where oneDNN's bfloat16 gradients of a 3 x 3 filter are noise (of 1e15; torch 2.14)
    image_size: int = Field(default=224, ge=32, le=1024)
    """Side in pixels of the square that photos are resized to."""
    progressive_resizing: bool = True
    """From scratch, train the first epochs on smaller photos: three tenths of them on half the side, as many on three
    quarters. Faster; given --weights train on the whole size from the start."""
    augmentation: float = Field(default=0.5, ge=0, le=1)
    """How far each training photo is flipped, moved, scaled, lit and blurred, anew in each epoch: 0 not at all, 1
    strongly. Few epochs want little of it."""
    top_class: int = Field(default=6, ge=1, le=50)
    """K: the last class means "K or more"."""
    targets: Literal["ordinal", "classes"] = "ordinal"
    """Soft targets that decay with the distance from the record's count, or plain cross-entropy."""
    auxiliary: bool = True
    """Also learn the record's exact quantity and its number of SKUs; these outputs are not in the bundle."""
    max_epochs: int = Field(default=30, ge=1)
    """Most passes over the training photos; the learning rate is planned for so many."""
    patience: int = Field(default=8, ge=1)
    """Stop after so many epochs without a better selection NLL, counted from three fifths of the epochs on (before that
    the learning rate is too high to tell; so 8 never stop a training of 20 epochs); the best epoch's weights are kept."""
    batch_size: int = Field(default=32, ge=2)
    """Photos per optimiser step, on all workers together."""
    micro_batch_size: int = Field(default=32, ge=2)
    """Photos per forward pass. It fixes the statistics that batch normalisation trains with, so that results hardly depend
    on the number of workers."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9, which wants another --learning-rate and --weight-decay than the defaults,
    such as 0.05 and 5e-4."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest learning rate of the schedule."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of weight matrices and filters; biases and normalisation have none."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """Warm-up over a quarter of all steps then cosine to zero, or a short warm-up then cosine."""
    averaging_epochs: float = Field(default=1.0, ge=0)
    """Time constant of the moving average of the weights, in epochs; 0 averages nothing."""
    test_time_flip: bool = True
    """The bundle averages its logits over the photo and its mirror image."""
    mixed_precision: bool = True
    """bfloat16 autocast where the worker's CUDA device or processor gains by it; else float32."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of the initial weights, the order of the photos and their augmentation."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Recipe:
        if self.batch_size % min(self.micro_batch_size, self.batch_size):
            raise ValueError(
                f"--batch-size: expected a multiple of --micro-batch-size {self.micro_batch_size}, found {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _what_stays_has_been_learned(self) -> Recipe:
        if self.from_scratch and self.unfreeze != "all":
            raise ValueError(
                f"--unfreeze: expected all with --weights none, found {self.unfreeze}: the rest would stay as drawn"
            )
        return self

    @model_validator(mode="after")
    def _what_is_loaded_is_not_drawn(self) -> Recipe:
        if not self.from_scratch and self.initialisation != "kaiming-normal":
            raise ValueError(
                f"--initialisation: expected none with --weights, found {self.initialisation}; drop one of them"
            )
        return self

    @property
    def micro_batch(self) -> int:
        """Photos per forward pass, never more than a batch."""
        return min(self.micro_batch_size, self.batch_size)

    @property
    def num_classes(self) -> int:
        return self.top_class + 1

    @property
    def from_scratch(self) -> bool:
        return self.weights == "none"

    @property
    def photos_grow(self) -> bool:
        """Whether the first epochs are on smaller photos."""
        return self.progressive_resizing and self.from_scratch and self.image_size >= 64

    def is_settled(self, epoch: int) -> bool:
        """Whether an epoch (from 0) is among the last four tenths."""
        return (epoch + 1) / self.max_epochs > SETTLED_SHARE

    def is_out_of_patience(self, best_epoch: int, epoch: int) -> bool:
        """Whether too many settled epochs have come since the best. Before, while the learning rate is high, loaded
        weights get worse and better again, and that says nothing of where they end."""
        if epoch + 1 >= self.max_epochs:  # nothing is left to stop
            return False
        return sum(self.is_settled(later) for later in range(best_epoch + 1, epoch + 1)) >= self.patience

    def image_size_of(self, epoch: int) -> int:
        """Side of the photos in an epoch (from 0): half, three quarters and, for the last four tenths, the whole size."""
        if not self.photos_grow or self.is_settled(epoch):
            return self.image_size
        done = (epoch + 1) / self.max_epochs
        return max(32, round(self.image_size * (0.5 if done <= 0.3 else 0.75) / 16) * 16)
