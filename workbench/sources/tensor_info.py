"""``TensorInfo``: one tensor of a checkpoint, and what a QLoRA load makes of it.

Does not decide that: ``rule.py`` does by name, ``exact.py`` by asking transformers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, and what a QLoRA load makes of it."""

    name: str
    """Its name in the checkpoint."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: ``BF16``, ``F32``, ``F8_E4M3`` …"""
    numel: int
    nbytes: int
    """Bytes in the checkpoint."""
    quantizable: bool
    """Whether transformers + bitsandbytes hold it in 4 bits."""
    reason: str
    """Why, or why not."""
    layout: str
    """How bitsandbytes sees it: ``as stored``, ``transposed`` before quantization, or on loading ``fused`` with others or
    ``split`` into several (which only the exact answer tells)."""
