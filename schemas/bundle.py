"""What a bundle says about itself: `bundle.json`, the document beside the weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 1
"""The layout of a bundle. A reader refuses every other version."""

Architecture = Literal["resnet18", "resnet34", "resnet50"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Document(BaseModel):
    """A part of `bundle.json`: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Preprocessing(Document):
    """From the bytes of a photo to the network's input; the same in training, audit, evaluation and serving."""

    image_size: int = Field(ge=16, le=1024)
    """Side in pixels of the square that every photo is resized to (its aspect ratio is not kept)."""
    resampling: Literal["supersampled"] = "supersampled"
    """How it is resized: nearly as by OpenCV's INTER_AREA, in less than half of the time (`model.images.resize_image`)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted per channel (red, green, blue) after scaling pixels to 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divided by per channel."""


Method = Literal["none", "temperature", "vector", "matrix"]


class Calibration(Document):
    """Calibrated probabilities are softmax(weight @ logits + bias), fitted on held-out bins."""

    method: Method
    """The form of `weight`: identity (and no bias), one scale for all, one per class, or a full matrix."""
    weight: list[list[float]]
    """(classes, classes)."""
    bias: list[float]
    """(classes,)."""
    held_out_nll: dict[str, float] = Field(default_factory=dict)
    """Cross-fitted mean negative log likelihood of each method that was tried, with the held-out bins' own class mix; the
    lowest was taken."""

    @model_validator(mode="after")
    def _square(self) -> Calibration:
        size = len(self.bias)
        if len(self.weight) != size or any(len(row) != size for row in self.weight):
            raise ValueError(f"weight must be {size} x {size}, as bias has {size} entries")
        return self


class LabelNoise(Document):
    """How often a training label (a record) is wrong: recounts alone can tell, so until then it is assumed."""

    rate: float = Field(default=0.02, ge=0, lt=1)
    """Share of training records taken to be wrong."""
    assumed: bool = True
    """True while `rate` rests on no recounts."""


class BundleInfo(Document):
    """A trained network with everything needed to use it. `bundle_id` names exactly this content."""

    format_version: int = FORMAT_VERSION
    bundle_id: str
    """Its `content_id`: of all that changes a probability, a set or which bins are assessed."""
    architecture: Architecture
    """The torchvision network."""
    top_class: int = Field(ge=1)
    """K: the last class means "K or more"."""
    classes: list[str]
    """Names of the network's outputs: "0", "1", …, "K+"."""
    preprocessing: Preprocessing
    test_time_flip: bool = False
    """Whether logits are the mean over the photo and its mirror image."""
    calibration: Calibration
    prediction_set_threshold: float = Field(ge=0, le=1)
    """LAC threshold t of the 90 % set {k : p(k) >= 1 - t}, from held-out bins."""
    num_calibration: int = Field(ge=0)
    """Held-out bins that calibration and threshold rest on."""
    record_outside_set_share: float = Field(ge=0, le=1)
    """s0 of the drift meter: share of those bins whose record lies outside the 90 % set (cross-fitted)."""
    num_independent: int = Field(ge=1)
    """So many independent bins would tell that share as well (bins of a group are alike)."""
    label_histogram: list[int]
    """Training bins per class (classes of the record, top class included)."""
    label_noise: LabelNoise = LabelNoise()
    activation_ranges: dict[str, tuple[float, float]]
    """Between which values the network's activations lie on training photos, by layer: what int8 rounds by."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Metrics on bins that training has not seen, with 95 % intervals and the majority baseline."""
    training: dict[str, Any] = Field(default_factory=dict)
    """The resolved training settings."""
    data_fingerprint: str = ""
    """SHA-256 over the training manifest's bins, records and photos."""
    git_commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of Python and of the libraries that made the bundle."""
    weights_sha256: str
    training_images_sha256: str
    """Of the file that names the photos which training has seen."""

    @property
    def num_classes(self) -> int:
        return self.top_class + 1

    @property
    def design_effect(self) -> float:
        """So many bins of a warehouse tell as much of a share as one independent one (Kish): neighbours hold the same
        products."""
        return max(1.0, self.num_calibration / self.num_independent)

    @model_validator(mode="after")
    def _consistent(self) -> BundleInfo:
        num_classes = self.num_classes
        for name, size in (
            ("classes", len(self.classes)),
            ("label_histogram", len(self.label_histogram)),
            ("calibration.bias", len(self.calibration.bias)),
        ):
            if size != num_classes:
                raise ValueError(f"{name} has {size} entries, expected top_class + 1 = {num_classes}")
        return self


def class_names(top_class: int) -> list[str]:
    """Names of the classes 0..K; the last one means "K or more"."""
    return [*(str(count) for count in range(top_class)), f"{top_class}+"]


def content_id(fields: dict[str, Any]) -> str:
    """The `bundle_id` of a bundle with these fields: what changes a probability, a set or which bins are assessed changes
    the id."""
    covered = {
        name: fields[name]
        for name in (
            "format_version",
            "weights_sha256",
            "architecture",
            "top_class",
            "preprocessing",
            "test_time_flip",
            "calibration",
            "prediction_set_threshold",
            "num_calibration",
            "record_outside_set_share",
            "label_histogram",
            "label_noise",
            "activation_ranges",
            "num_independent",
            "training_images_sha256",
        )
    }
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
