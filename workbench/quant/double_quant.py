"""The scales' own quantization: QLoRA's double quantization of the block absmax values to 8 bits.

Covers ``double_quantize`` and its inverse, exact against bitsandbytes' CPU kernel. Does not cover what it saves in bytes
(``QuantSpec.storage``).

The absmax values a of a tensor are centred on their mean, cut into blocks of 256, divided by each block's absmax, and rounded
to bitsandbytes' 256 dynamic levels (8-bit Approximations for Parallelism in Deep Learning, arXiv 1511.04561):

    â = level[code] · absmax₂ + mean(a)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described, is_whole
from workbench.show import Shown, View
from workbench.text import amount, count

_STEPS = 65536
"""bitsandbytes' CPU kernel rounds through a table with this many entries over [−1, 1]; its CUDA kernel searches the levels
themselves, so that a code may differ by one where a value lies within 1/65,535 of a threshold."""


@dataclass(frozen=True, repr=False)
class NestedScales(Shown):
    """Double-quantized absmax values."""

    codes: NDArray[np.uint8]
    """uint8 (blocks,): the 8-bit code of each block's absmax."""
    absmax: NDArray[np.float32]
    """float32 (⌈blocks / block_size⌉,): the second-level scales."""
    offset: np.float32
    """The mean that was subtracted first."""
    block_size: int

    def dequantize(self) -> NDArray[np.float32]:
        """float32 (blocks,): the absmax values that the weights are dequantized with."""
        values = dynamic_levels()[self.codes]
        return values * np.repeat(self.absmax, self.block_size)[: self.codes.size] + self.offset

    def _show_(self) -> View:
        facts = {
            "codes": f"{count(self.codes.size)}, of 8 bits", "blocks of": f"{self.block_size}",
            "second-level scales": count(self.absmax.size), "offset": f"{float(self.offset):.6g}",
            "stored in": amount(self.codes.nbytes + self.absmax.nbytes + 4),
        }  # fmt: skip
        return View("Double-quantized scales", facts)


@cache
def dynamic_levels() -> NDArray[np.float32]:
    """float32 (256,): bitsandbytes' signed dynamic map, ascending.

    For each of seven decades the interval [0.1, 1] is cut into 1, 2, 4 … 64 parts; the levels are the parts' centres times the
    decade's power of ten, with both signs; 0 and 1 complete the 256.

    >>> levels = wb.dynamic_levels()
    >>> levels.size, levels[127].item(), levels[255].item()
    (256, 0.0, 1.0)
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        # torch.linspace(0.1, 1) in float32: forwards from the start for the first half, backwards from the end for the second
        count = 2**exponent + 1
        start, end = np.float32(0.1), np.float32(1)
        step = np.float32((end - start) / np.float32(count - 1))
        i = np.arange(count)
        forwards = (np.float64(start) + i * np.float64(step)).astype(np.float32)
        backwards = (np.float64(end) - (count - 1 - i) * np.float64(step)).astype(np.float32)
        bounds = np.where(i < count // 2, forwards, backwards)
        centres = (bounds[:-1] + bounds[1:]) / np.float32(2)
        positive = (np.float32(10.0 ** (exponent - 6)) * centres).astype(np.float32)
        values += [*positive.tolist(), *(-positive).tolist()]
    levels = np.array(sorted(values), np.float32)
    levels.setflags(write=False)
    return levels


@cache
def _code_of_step() -> NDArray[np.uint8]:
    """uint8 (65536,): the code of each step from −1 to 1: the count of level midpoints below it."""
    levels = dynamic_levels()
    midpoints = np.float32(0.5) * (levels[:-1] + levels[1:])
    steps = np.float32(-1) + (np.float32(2) * np.arange(_STEPS, dtype=np.float32)) / np.float32(_STEPS - 1)
    return np.searchsorted(midpoints, steps, side="left").astype(np.uint8)


def double_quantize(absmax: NDArray[np.float32], block_size: int = 256, offset: np.float32 | None = None) -> NestedScales:
    """Quantizes the absmax values of a tensor to 8 bits.

    A second-level block of zeros gets code 0 and absmax 0, as in bitsandbytes; values that are not finite are carried by their
    block's absmax (NaN in, NaN out).

    Args:
        absmax: The absmax values, (blocks,).
        block_size: Absmax values of a second-level block.
        offset: Their mean unless given. bitsandbytes' own mean changes in its last bits with the number of threads, so pass its
            offset to compare codes bit for bit.

    Returns:
        Codes, uint8 (blocks,), their second-level scales, float32 (⌈blocks / block_size⌉,), and the offset.

    Raises:
        FormatError: For values that are no floats, and blocks of less than 1.

    >>> scales = wb.double_quantize(np.ones(300, np.float32))
    >>> scales.dequantize().shape, scales.absmax.shape
    ((300,), (2,))
    """
    absmax = np.asarray(absmax)
    if absmax.dtype.name not in ("float64", "float32", "float16", "bfloat16") or not is_whole(block_size, 1):
        what = f"{described(absmax.dtype.name)} values in blocks of {block_size!r} cannot be quantized."
        raise FormatError(what, where="double_quantize", remedy="Give absmax values as floats, and a whole number from 1 on.")
    absmax = absmax.astype(np.float32, copy=False).reshape(-1)
    if offset is None:
        offset = np.float32(absmax.mean(dtype=np.float64)) if absmax.size else np.float32(0)
    with np.errstate(invalid="ignore"):  # ∞ − ∞: with an infinite weight the mean, and so every scale, is no number
        centred = absmax - offset
    blocks = -(-centred.size // block_size)
    padded = np.zeros(blocks * block_size, np.float32)
    padded[: centred.size] = centred
    grid = padded.reshape(blocks, block_size)
    largest = np.abs(grid).max(axis=1, initial=0).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = (np.float32(1) / largest)[:, None]
        scaled = np.nan_to_num(np.clip(grid * inverse, -1, 1), nan=0.0)
    step = ((scaled + np.float32(1)) * np.float32(0.5) * np.float32(_STEPS - 1) + np.float32(0.5)).astype(np.int32)
    codes = _code_of_step()[step]
    codes[largest == 0] = 0
    return NestedScales(codes.reshape(-1)[: centred.size], largest, offset, block_size)
