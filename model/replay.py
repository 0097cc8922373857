"""A computation on a GPU recorded once and replayed: one launch for its hundreds of kernels, and the transfer of a batch
beside the computation of the batch before.

CUDA graphs (docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs") and not torch.compile: the kernels stay those
that ran while it was recorded, in a second and without a compiler, where a night is over in less than a compilation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

WARM_UPS = 3
"""Runs before the recording, in which the libraries choose their kernels and take their workspaces."""


class Replay:
    """May be called from several threads at once, whose current stream is the same: what they hand over is computed in
    turns. Whatever `compute` reads besides must live as long as this."""

    @torch.inference_mode()
    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> None:
        """`compute`: does the same to every tensor of the shape, type and GPU of `inputs`, whatever is in it. `inputs`
        is overwritten from now on."""
        self._inputs = inputs
        self._lock = threading.Lock()
        self._transfers = torch.cuda.Stream(inputs.device)
        aside = torch.cuda.Stream(inputs.device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                compute(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = compute(inputs)

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """The outputs, on the GPU, of a batch in pinned memory. Comes back before they are computed."""
        with torch.cuda.stream(self._transfers):
            arrived = batch.to(self._inputs.device, non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._transfers)
        arrived.record_stream(computing)  # else its memory were free for the next batch before it is read
        with self._lock:
            self._inputs.copy_(arrived)
            self._graph.replay()
            return self._outputs.clone()
