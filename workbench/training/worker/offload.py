"""Layers' inputs on the host between the forward and the backward pass. Worker only (needs torch).

With gradient checkpointing they are all that a layer keeps: rows × tokens × hidden size each. They are copied to pinned memory
and back on the stream that computes, so that nothing has to wait for another. Gradients are the same bits. Not
yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class HiddenOnHost:
    """A pair of hooks for saved tensors: those on ``device`` with the ``shape`` of a batch's hidden states are moved."""

    device: str = "cuda"
    shape: tuple[int, ...] = ()
    """(rows, tokens, hidden size) of the batch that comes."""
    moved: int = 0
    """Bytes moved so far, one way."""

    def of(self, model: Any, rows: int, tokens: int) -> None:
        """Takes the shape of the batch that comes."""
        self.shape = rows, tokens, int(model.config.get_text_config().hidden_size)

    def pack(self, tensor: torch.Tensor) -> Any:
        """What is kept of a tensor: itself, or its copy on the host and where it was."""
        if tensor.device.type != self.device or tuple(tensor.shape) != self.shape or not tensor.is_floating_point():
            return tensor
        self.moved += tensor.nbytes
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held.copy_(tensor.detach(), non_blocking=True), tensor.device

    def unpack(self, kept: Any) -> torch.Tensor:
        """The tensor again."""
        if isinstance(kept, torch.Tensor):
            return kept
        held, device = kept
        back: torch.Tensor = held.to(device, non_blocking=True)
        return back
