"""One weight that a checkpoint holds quantized: its true codes and scales, and what they stand for once dequantized.

Covers the arithmetic, whole or in chunks, in plain NumPy: a weight is

    level[code] · scale        (LLM.int8: code · scale · 1/127, in that order)

in float32, rounded to the dtype that the library which made it would give. For bitsandbytes that is ``dequantize_4bit`` (its
AVX-512 version reads wrong scales where the last dimension is no multiple of the block size; this is what the plain one gives).
Does not cover finding and checking the parts (``packed.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.progress import Cancelled, Progress
from workbench.quant.double_quant import NestedScales
from workbench.show import Shown, View
from workbench.sources.base import Source
from workbench.sources.header import DTYPES, shown
from workbench.sources.packed_names import Packing
from workbench.sources.rule import AS_STORED
from workbench.sources.tensor_info import Role, TensorInfo
from workbench.text import amount, count

if TYPE_CHECKING:
    from workbench.quant.quantize import Quantized

_STEP = 1 << 20
_OF_A_ROW = np.float32(1 / 127)


@dataclass(frozen=True, repr=False)
class PackedWeight(Shown):
    """One weight as its checkpoint holds it. Scales are in memory; codes are read when they are asked for."""

    name: str
    """The tensor that holds the codes."""
    title: str
    """What they are: "NF4, blocks of 64, double quantized"."""
    shape: tuple[int, ...]
    """The weight's own shape. MXFP4 experts are (experts, outputs, inputs), along whose inputs the blocks run; transformers
    turns the last two round on loading."""
    dtype: np.dtype[Any]
    """What it is dequantized to."""
    levels: NDArray[np.float32]
    """float32 (16,) or (256,): the level of each code."""
    scales: NDArray[Any]
    """(blocks,) or (…, rows of tiles, columns of tiles): as stored, or after bitsandbytes' second level."""
    tile: tuple[int, ...]
    """What shares a scale: (consecutive weights,), or (rows, columns)."""
    nbytes: int
    """Bytes in the checkpoint: codes, scales and the rest of the state."""
    packing: Packing
    nested: NestedScales | None
    """bitsandbytes' doubly quantized scales, None where there are none."""
    _source: Source

    @property
    def numel(self) -> int:
        """How many weights."""
        return math.prod(self.shape)

    @property
    def codes(self) -> NDArray[np.uint8]:
        """uint8 (numel,): the stored code of each weight, in the order of the shape."""
        return self._expand(self._source.read(self.name).reshape(-1).view(np.uint8))[: self.numel]

    @property
    def occupancy(self) -> NDArray[np.int64]:
        """int64 (levels,): how many weights have each code."""
        counts = np.zeros(self.levels.size, np.int64)
        for _, codes in self._code_chunks(_STEP):
            counts += np.bincount(codes, minlength=counts.size)
        return counts

    @property
    def info(self) -> TensorInfo:
        """The weight, with its own shape and dtype, in the place of the tensor that holds its codes."""
        dtype = next(d.name for d in DTYPES.values() if d.numpy == self.dtype)
        reason = Role.PACKED.sentence(f"{self.packing.bits} bits: {self.title}")
        return TensorInfo(self.name, self.shape, dtype, self.numel, self.nbytes, False, reason, AS_STORED, Role.PACKED)

    def dequantize(
        self, dtype: Any = None, *, progress: Progress | None = None, cancelled: Cancelled | None = None
    ) -> NDArray[Any]:
        """The weights in their shape, in ``dtype`` or else in their own; the rest as in ``Source.read``."""
        out = np.empty(self.numel, self.dtype if dtype is None else np.dtype(dtype))
        raw = self._source.read(self.name, progress=progress, cancelled=cancelled).reshape(-1).view(np.uint8)
        for start in range(0, out.size, _STEP):
            stop = min(start + _STEP, out.size)
            codes = self._expand(raw[start // self._per_byte : -(-stop // self._per_byte)])[: stop - start]
            out[start:stop] = self._values(codes, start, out.dtype)
        return out.reshape(self.shape)

    def chunks(self, count: int, dtype: Any = None, *, cancelled: Cancelled | None = None) -> Iterator[NDArray[Any]]:
        """The weights flat, ``count`` at a time (a multiple of 16), in ``dtype`` or else in their own; each chunk is new."""
        if count < 16 or count % 16:
            raise ModelError(
                f"A chunk of {count} weights is not possible.", where=shown(self.name), remedy="Take multiples of 16."
            )
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        for start, codes in self._code_chunks(count, cancelled):
            yield self._values(codes, start, wanted)

    def quantized(self) -> Quantized:
        """The weight as ``quantize`` would give it; ModelError where the format is not one of ``FORMATS``.

        Its ``absmax`` is that of the weights as they are stored: what they were before is not in the checkpoint.
        """
        from workbench.quant.quantize import Quantized
        from workbench.quant.spec import QuantSpec

        if len(self.tile) != 1:
            raise ModelError(f"{self.title} is not a block-wise format of the workbench's.", where=shown(self.name))
        nested_size = 256 if self.nested is None else self.nested.block_size
        spec = QuantSpec(self.packing.scheme, self.tile[0], None, self.nested is not None, nested_size)
        stored, codes = self.scales.reshape(-1), self.codes
        scales = absmax = stored.astype(np.float32)
        if self.packing.scheme == "mxfp4":
            with np.errstate(over="ignore", invalid="ignore"):
                absmax = np.abs(self.levels)[codes].reshape(-1, 32).max(axis=1) * scales
        return Quantized(spec, self.shape, self.dtype, codes, absmax, scales, stored, nested=self.nested)

    def _show_(self) -> View:
        facts = {
            "tensor": self.name, "shape": f"{self.shape}, {self.dtype.name} once dequantized", "weights": count(self.numel),
            "in the checkpoint": amount(self.nbytes), "scales": f"{count(self.scales.size)}, each for {self.tile} weights",
        }  # fmt: skip
        return View(f"Packed weight: {self.title}", facts)

    @property
    def _per_byte(self) -> int:
        return 8 // self.packing.bits

    def _code_chunks(self, count: int, cancelled: Cancelled | None = None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        stored = self._source.entries()[self.name][1].dtype
        start = 0
        size = count * 8 // self._per_byte // stored.bits
        for part in self._source.chunks(self.name, size, cancelled=cancelled):
            codes = self._expand(part.view(np.uint8))[: self.numel - start]
            yield start, codes
            start += codes.size

    def _expand(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes in bytes: bitsandbytes puts a pair's first in the high half, gpt-oss in the low one."""
        if self._per_byte == 1:
            return raw
        codes = np.empty((raw.size, 2), np.uint8)
        first = 1 if self.packing.scheme == "mxfp4" else 0
        codes[:, first], codes[:, 1 - first] = raw >> 4, raw & 15
        return codes.reshape(-1)

    def _values(self, codes: NDArray[np.uint8], start: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        values = self.levels[codes]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            values *= self._scale_of(start, start + codes.size)
            if self.packing.scheme == "llm.int8":
                values *= _OF_A_ROW
            return values.astype(dtype, copy=False)

    def _scale_of(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 (stop − start,): the scale of each weight."""
        width = self.tile[0] if len(self.tile) == 1 else self.shape[-1]
        first, last = start // width, -(-stop // width)
        if len(self.tile) == 1:
            rows = self.scales.reshape(-1)[first:last, None].astype(np.float32)
            return np.repeat(rows, width, axis=1).reshape(-1)[start - first * width : stop - first * width]
        row = np.arange(first, last)
        height, down = self.shape[-2], self.scales.shape[-2]
        bands = self.scales.reshape(-1, self.scales.shape[-1])[row // height * down + row % height // self.tile[0]]
        grid = np.repeat(bands.astype(np.float32), self.tile[1], axis=1)[:, :width]
        return np.ascontiguousarray(grid).reshape(-1)[start - first * width : stop - first * width]
