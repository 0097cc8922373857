"""One of the processes that train together: its device and precision, and what they agree on and add up."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from model.processor import gains_by_bfloat16
from model.scoring import normalisation, to_inputs
from schemas.bundle import Preprocessing


class TrainWorker:
    """`mixed`: whether the convolutions run in bfloat16. `preprocessing`: what the network's input is scaled by."""

    def __init__(
        self, device: torch.device, rank: int, num_workers: int, *, mixed: bool, preprocessing: Preprocessing
    ) -> None:
        self.device, self.rank, self.num_workers, self.mixed = device, rank, num_workers, mixed
        self._scale, self._shift = normalisation(preprocessing, device)

    def inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 (n, S, S, 3) as the network's input on the device."""
        return to_inputs(self.send(pixels), self._scale, self._shift)

    def send(self, values: np.ndarray) -> torch.Tensor:
        """`values`, which may be read-only, on the device; copied once, as beside a GPU the network waits for each copy, and
        there to pinned memory, as from any other its own copy blocks whatever was asked for."""
        dtype = getattr(torch, values.dtype.name)
        held = torch.empty(values.shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        held.numpy()[:] = values
        return held.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """bfloat16 where the convolutions run in it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed)

    def agreed(self, decision: bool) -> bool:
        """Rank 0's decision, so that all workers leave the loop together."""
        if self.num_workers == 1:
            return decision
        flag = torch.tensor([float(decision)], device=self.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` added up in place over all workers."""
        if self.num_workers > 1:
            dist.all_reduce(values)
        return values


def gains_in_bfloat16(device: torch.device) -> bool:
    """Whether the device is faster in bfloat16; where it is emulated (cards before Ampere), float32 is."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return gains_by_bfloat16()
