"""To bitsandbytes and back: quantized weights as its tensors, and whether its CPU kernels give them back right.

Covers ``Quantized.to_bnb`` and ``from_bnb`` and ``check_backend``. Imports torch and bitsandbytes only when called. Does not
cover checkpoints that bitsandbytes wrote (``sources/packed.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from workbench.errors import FormatError
from workbench.given import is_whole, several
from workbench.quant.double_quant import NestedScales
from workbench.quant.formats import FORMATS
from workbench.quant.quantize import Quantized, QuantSpec, quantize

_ROWS = 3


def to_bnb(q: Quantized, device: str = "cpu") -> tuple[Any, Any]:
    """(packed uint8 tensor (⌈numel/2⌉, 1), ``QuantState``), as ``bitsandbytes.functional.quantize_4bit`` returns them.

    Raises FormatError for formats that bitsandbytes does not hold.
    """
    import torch
    from bitsandbytes.functional import QuantState, create_dynamic_map, get_4bit_type

    if not q.spec.definition.trainable or q.spec.scale_dtype != "float32":
        held = " and ".join(name for name, form in FORMATS.items() if form.trainable)
        raise FormatError(
            f"bitsandbytes does not hold weights in {q.spec.title}.", remedy=f"Quantize to one of {held} with float32 scales."
        )
    state2 = offset = None
    absmax = torch.from_numpy(q.absmax.copy())
    if q.nested is not None:
        absmax, offset = torch.from_numpy(q.nested.codes.copy()), torch.tensor(float(q.nested.offset), device=device)
        state2 = QuantState(
            absmax=torch.from_numpy(q.nested.absmax.copy()).to(device), blocksize=q.nested.block_size,
            code=create_dynamic_map().to(device), dtype=torch.float32,
        )  # fmt: skip
    state = QuantState(
        absmax=absmax.to(device), shape=torch.Size(q.shape), code=get_4bit_type(q.spec.format, device=device),
        blocksize=q.spec.block_size, quant_type=q.spec.format, dtype=getattr(torch, q.dtype.name), offset=offset, state2=state2,
    )  # fmt: skip
    return torch.from_numpy(q.packed).to(device), state


def from_bnb(packed: Any, state: Any) -> Quantized:
    """Reads a packed weight and its ``QuantState``: those of ``quantize_4bit``, or a ``Params4bit`` and its ``quant_state``.

    The absmax values of a double-quantized weight are those it is dequantized with: the true ones are not in it. Raises
    FormatError on a state of another kind, and on one that does not fit the packed bytes.
    """
    if getattr(state, "quant_type", None) not in FORMATS or state.shape is None:
        raise FormatError("This is not the state of a 4-bit weight.", remedy="Give a Params4bit and its quant_state.")
    shape = tuple(state.shape)
    raw = packed.detach().cpu().contiguous().view(-1).numpy().view(np.uint8)
    codes = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[: prod(shape)]
    blocks = -(-prod(shape) // state.blocksize)
    if codes.size != prod(shape) or state.absmax.numel() != blocks:
        raise FormatError(
            f"{raw.size:,} bytes and {state.absmax.numel():,} scales do not make a weight of shape {shape}.",
            remedy="Give a weight and a state that belong together.",
        )
    stored = state.absmax.detach().cpu().numpy()
    nested = None
    if state.state2 is not None:
        nested = NestedScales(
            stored.astype(np.uint8), state.state2.absmax.detach().cpu().float().numpy(),
            np.float32(float(state.offset)), state.state2.blocksize,
        )  # fmt: skip
    scales = stored.astype(np.float32) if nested is None else nested.dequantize()
    spec = QuantSpec(
        state.quant_type,
        state.blocksize,
        double_quant=nested is not None,
        nested_block_size=nested.block_size if nested else 256,
    )
    name = str(state.dtype).removeprefix("torch.")
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return Quantized(spec, shape, dtype, codes, scales, scales, scales, nested=nested)


@dataclass(frozen=True)
class BackendCheck:
    """Whether bitsandbytes dequantizes weights of one shape and block size right on a CPU."""

    right: bool
    why: str
    """What was found, and how it is known."""
    remedy: str = ""
    """What to do where it is wrong."""


def check_backend(shape: Sequence[int], block_size: int = 64, capability: str | None = None) -> BackendCheck:
    """Whether a CPU run with 4-bit weights of this shape would compute with the weights that were stored.

    bitsandbytes' AVX-512 kernel takes wrong scales from the second row on when the last dimension is no multiple of the block
    size. Without ``capability`` this machine is asked: a small weight goes through ``dequantize_4bit`` and is compared. With
    one, as ``torch.backends.cpu.get_cpu_capability()`` names it ("AVX512", "AVX2" …), the answer follows from that rule.
    """
    sides = several(shape)
    if block_size not in FORMATS["nf4"].block_sizes or not sides or not all(is_whole(size, 1) for size in sides):
        raise FormatError(f"A shape of {sides} in blocks of {block_size} is not possible.", remedy="Give whole numbers.")
    shape = tuple(map(int, sides))
    rows, last = prod(shape[:-1]), shape[-1]
    if capability is not None:
        right = capability != "AVX512" or rows == 1 or last % 2 != 0 or last % block_size == 0 or block_size >= 2048
        how = f"by the rule for bitsandbytes' {capability} kernels, not run"
    else:
        right = _round_trip(min(rows, _ROWS), last, block_size)
        how = "found by dequantizing such a weight on this machine"
    if right:
        return BackendCheck(True, f"Weights of shape {tuple(shape)} in blocks of {block_size} come back right ({how}).")
    fitting = [size for size in FORMATS["nf4"].block_sizes if last % size == 0]
    change = f"a block size that divides {last} ({', '.join(map(str, fitting))})" if fitting else "a block size of 2048 or more"
    return BackendCheck(
        False,
        f"bitsandbytes dequantizes weights of shape {tuple(shape)} in blocks of {block_size} wrongly ({how}): "
        f"its AVX-512 kernel takes other blocks' scales where {last} is no multiple of {block_size}.",
        f"Choose {change}, set ATEN_CPU_CAPABILITY=avx2 before torch is imported, or run on a GPU.",
    )


def _round_trip(rows: int, last: int, block_size: int) -> bool:
    import torch
    from bitsandbytes.functional import dequantize_4bit

    x = np.linspace(-1, 1, rows * last, dtype=np.float32).reshape(rows, last)  # every block has another absmax
    q = quantize(x, QuantSpec("nf4", block_size))
    packed, state = to_bnb(q)
    with torch.no_grad():
        return bool(np.allclose(dequantize_4bit(packed, state).numpy(), q.dequantize(), rtol=1e-5, atol=1e-7))
