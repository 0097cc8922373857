"""What a counted photo is answered with, by the very functions that make the audit's columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from jobs.serving.problems import ProblemDetails
from jobs.stages.images import explain_poor, measure_contrast
from model.posterior import Assessor, camera_columns
from schemas.results import Reason

EXAMPLE: JsonDict = {
    "count": 3,
    "is_top_class": False,
    "probabilities": [0.001, 0.012, 0.157, 0.62, 0.178, 0.027, 0.005],
    "qty_low": 2,
    "qty_high": 4,
    "p_record_wrong": 0.021,
    "reason": None,
    "record_model": "assumed",
    "bundle_id": "3f9c2a77d0e1",
}


class Answer(BaseModel):
    """The camera's count of one photo, and what it says about the record."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"examples": [EXAMPLE]})

    count: int
    """The most probable count; of the top class it means that many or more."""
    is_top_class: bool
    """Whether `count` is the top class."""
    probabilities: list[float]
    """Calibrated probability of each count 0, 1, …, top class."""
    qty_low: int
    """Smallest count of the camera's 90 % set: those of a probability of 1 - prediction_set_threshold (in `/v1/bundle`) or
    more, and `count`. Counts between may be left out."""
    qty_high: int
    """Largest count of the camera's 90 % set."""
    p_record_wrong: float | None = None
    """P(the true quantity differs from expected_qty | photo, record); null without a record, or with a reason. For a
    record at the top class or above: P(fewer than the top class are there), a lower bound."""
    reason: Literal["poor_photo", "training_photo"] | None = None
    """Why nothing is said about the record, as in the audit's results."""
    record_model: Literal["assumed", "learned"]
    """Whether p_record_wrong rests on assumed error rates or on recounts."""
    bundle_id: str
    """The bundle that counted."""


class BatchItem(BaseModel):
    """One photo of a batch: its answer, or what was wrong with it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file: str | None = Field(description="The file name that the caller gave.")
    answer: Answer | None = None
    problem: ProblemDetails | None = None


class BatchAnswer(BaseModel):
    """One item per file, in their order."""

    items: list[BatchItem]


@dataclass(frozen=True)
class Judge:
    """From calibrated probabilities to an answer."""

    assessor: Assessor
    prediction_set_threshold: float
    record_model: Literal["assumed", "learned"]
    bundle_id: str

    def answer(
        self, probabilities: np.ndarray, expected_qty: int | None, pixels: np.ndarray, *, seen_in_training: bool
    ) -> Answer:
        """`probabilities` (K + 1,) float32, `pixels` (S, S, 3) as the network saw them."""
        row = probabilities[None, :]
        record = np.array([expected_qty or 0])
        camera = camera_columns(row, record, self.prediction_set_threshold)
        reason: Reason | None = None
        if seen_in_training:
            reason = Reason.TRAINING_PHOTO
        elif explain_poor(measure_contrast(pixels)) is not None:
            reason = Reason.POOR_PHOTO
        wrong = None
        if expected_qty is not None and reason is None:
            wrong = float(self.assessor.assess(row, record)["p_record_wrong"][0])
        return Answer(
            count=int(camera["camera_qty"][0]),
            is_top_class=bool(camera["camera_is_top_class"][0]),
            probabilities=[float(value) for value in probabilities],
            qty_low=int(camera["qty_low"][0]),
            qty_high=int(camera["qty_high"][0]),
            p_record_wrong=wrong,
            reason=None if reason is None else str(reason),  # type: ignore[arg-type]
            record_model=self.record_model,
            bundle_id=self.bundle_id,
        )
