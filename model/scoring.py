"""Scoring: from pixels to calibrated probabilities, the same in the audit, the endpoint and the evaluation."""

from __future__ import annotations

import threading

import numpy as np
import torch

from model.bundle import Bundle
from model.calibration import apply_calibration
from model.inference import prepare_network
from model.processor import Precision, check_int8, multiplies_int8
from model.quantisation import quantise_network
from schemas.bundle import Preprocessing
from schemas.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
"""Of the network's input; int8 is between its convolutions."""


class Scorer:
    """Holds a bundle's network on a device. Batches are padded to one fixed shape, so a photo's row is
    bit-identical alone and in any company (same hardware, precision and batch size). Threads may share one."""

    def __init__(self, bundle: Bundle, *, device: str, precision: Precision, batch_size: int) -> None:
        """Raises InputError for fp16 on a CPU (its convolutions are emulated and lose precision), and for int8 where the
        processor isn't made for it."""
        if precision == "fp16" and torch.device(device).type == "cpu":
            raise InputError("precision: expected fp32 or bf16 on a CPU, found fp16")
        self.info = bundle.info
        self.batch_size = batch_size
        self._device = torch.device(device)
        if precision == "fp32":
            keep_float32()
        if self._device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # else the same photo may get other last bits
        self._dtype = DTYPES[precision]
        if precision == "int8":
            check_int8(self._device.type, multiplies_int8())
            self._network = quantise_network(bundle.network, bundle.info.activation_ranges)
        else:
            self._network = prepare_network(bundle.network, self._device, self._dtype)
        self._scale, self._shift = normalisation(bundle.info.preprocessing, self._device)
        self._kept = threading.local()

    def score(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float32 (n, K + 1), of photos, uint8 (n, S, S, 3) RGB."""
        return apply_calibration(self.logits(pixels), self.info.calibration).astype(np.float32)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Uncalibrated logits, float32 (n, K + 1): the mean over photo and mirror image if the bundle says so. Raises
        ValueError for other pixels than `score` takes."""
        side = self.info.preprocessing.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels: expected uint8 (n, {side}, {side}, 3), found {pixels.dtype} {pixels.shape}")
        if not len(pixels):
            return np.empty((0, self.info.num_classes), np.float32)
        with torch.inference_mode():
            rows = [
                self._padded_logits(pixels[start : start + self.batch_size])
                for start in range(0, len(pixels), self.batch_size)
            ]
            return torch.cat(rows).cpu().numpy()

    def _padded_logits(self, pixels: np.ndarray) -> torch.Tensor:
        if not hasattr(self._kept, "batch"):
            # each of a thread's batches is copied here: memory of its own would be faulted in anew, at a percent of the
            # network's time, and a GPU fetches from pinned memory itself
            shape, pinned = (self.batch_size, *pixels.shape[1:]), self._device.type == "cuda"
            self._kept.batch = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
        batch = self._kept.batch.numpy()
        batch[: len(pixels)] = pixels
        batch[len(pixels) :] = 0
        # comes back when the photos have arrived, so that the next ones may take their place
        return self._batch_logits(self._kept.batch.to(self._device))[: len(pixels)]

    def _batch_logits(self, photos: torch.Tensor) -> torch.Tensor:
        inputs = to_inputs(photos, self._scale, self._shift).to(self._dtype)
        logits = self._network(inputs)
        if self.info.test_time_flip:
            logits = (logits + self._network(inputs.flip(3))) / 2
        return logits


def keep_float32() -> None:
    """In this process: else cuDNN rounds the factors of a convolution to 10 bits (TF32, torch's default on a GPU) and
    calls it float32."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def normalisation(preprocessing: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`scale` and `shift`, (1, 3, 1, 1), so that the network's input is pixels * scale - shift."""
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
    return 1 / (255 * std), mean / std


def to_inputs(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """uint8 (n, S, S, 3) to normalised float32 (n, 3, S, S) in channels_last layout, without a copy of the layout."""
    return pixels.permute(0, 3, 1, 2).float() * scale - shift
