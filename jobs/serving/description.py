"""What the API's description shows: the bodies that are taken, and an example of each answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.serving.answers import EXAMPLE
from jobs.serving.problems import CAUSES, MEDIA_TYPE, Problem, ProblemDetails
from jobs.serving.uploads import MAX_PHOTOS
from schemas.arrow import MAX_QUANTITY
from schemas.bundle import BundleInfo, Calibration, Preprocessing, class_names

PHOTO = {"type": "string", "format": "binary", "description": "A JPEG, PNG or WebP photo of one bin."}
QUANTITY = {"type": "integer", "minimum": 0, "maximum": MAX_QUANTITY, "description": "The recorded quantity."}
PHOTO_EXAMPLE = "<the bytes of bin.jpg>"
COUNT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": PHOTO, "example": PHOTO_EXAMPLE},
            "application/octet-stream": {"schema": PHOTO, "example": PHOTO_EXAMPLE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": PHOTO, "expected_qty": QUANTITY},
                },
                "example": {"file": PHOTO_EXAMPLE, "expected_qty": 3},
            },
        },
    },
    "x-example": "curl --data-binary @bin.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/v1/count?expected_qty=3'",
}
BATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": PHOTO, "minItems": 1, "maxItems": MAX_PHOTOS},
                        "expected_qty": {"type": "array", "items": QUANTITY, "description": "One per file, or none."},
                    },
                },
                "example": {"file": [PHOTO_EXAMPLE, PHOTO_EXAMPLE], "expected_qty": [3, 0]},
            }
        },
    },
    "x-example": "curl -F file=@a.jpg -F file=@b.jpg -F expected_qty=3 -F expected_qty=0 http://127.0.0.1:8000/v1/count/batch",
}
REQUEST_ID = "a2c7…"
BATCH_EXAMPLE = {
    "items": [
        {"file": "a.jpg", "answer": EXAMPLE, "problem": None},
        {
            "file": "b.jpg",
            "answer": None,
            "problem": Problem("unreadable_image", "empty file").details(REQUEST_ID).model_dump(),
        },
    ]
}
BUNDLE_EXAMPLE = BundleInfo(
    bundle_id=str(EXAMPLE["bundle_id"]),
    architecture="resnet18",
    top_class=6,
    classes=class_names(6),
    preprocessing=Preprocessing(image_size=112),
    calibration=Calibration(method="none", weight=np.eye(7).tolist(), bias=[0.0] * 7),
    prediction_set_threshold=0.93,
    num_calibration=650,
    record_outside_set_share=0.1,
    num_independent=210,
    label_histogram=[97, 612, 874, 902, 781, 590, 1545],
    activation_ranges={"conv1": (-4.1, 4.6)},
    weights_sha256="5c0e…",
    training_images_sha256="91b7…",
).model_dump(mode="json")
METRICS_EXAMPLE = (
    '# TYPE ray_stock_audit_photos_total counter\nray_stock_audit_photos_total{outcome="counted"} 1041.0\n'
)


def ok(example: Any, media_type: str = "application/json") -> dict[int | str, dict[str, Any]]:
    """The OpenAPI response of status 200."""
    return {200: {"content": {media_type: {"example": example}}}}


def problems(*causes: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of these causes, those of one status together."""
    schema = ProblemDetails.model_json_schema()
    of_status: dict[int, dict[str, Any]] = {}
    for cause in causes:
        status, title = CAUSES[cause]
        value = Problem(cause, "…").details(REQUEST_ID).model_dump(exclude_none=True)
        of_status.setdefault(status, {})[cause] = {"summary": title, "value": value}
    return {
        status: {
            "description": "; ".join(f"{cause}: {example['summary']}" for cause, example in examples.items()),
            "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
        }
        for status, examples in of_status.items()
    }


def without_places(info: BundleInfo) -> BundleInfo:
    """The bundle as whoever reaches the endpoint may read it: without the paths and buckets that its training read."""
    places = ("manifest_uri", "bundle_uri", "allowed_root", "weights")
    return info.model_copy(update={"training": {k: v for k, v in info.training.items() if k not in places}})
