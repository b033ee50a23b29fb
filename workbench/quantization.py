"""Quantizing an array: from a ``QuantSpec`` to codes, scales and packed bytes, bit for bit as bitsandbytes does on a CPU.

Covers the specification, its storage arithmetic, ``quantize`` and ``Quantized``. Does not cover error statistics
(``measurement.py``), which never materialise codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.double_quant import NestedScales, double_quantize
from workbench.errors import FormatError
from workbench.formats import BLOCK_SIZES, Format, find_format

_DIRECT = ("float32", "float16", "bfloat16")
_WIDENED = ("float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@dataclass(frozen=True)
class QuantSpec:
    """How an array is quantized. Raises FormatError on a format or block size that there is not."""

    format: str = "nf4"
    """A key of ``FORMATS``."""
    block_size: int = 64
    """Consecutive weights that share a scale."""
    scale_dtype: str | None = None
    """How a scale is stored; None: as the format stores it, which is float32 for every format here."""
    double_quant: bool = False
    """Whether the scales are quantized again, to 8 bits (bitsandbytes' ``compress_statistics``)."""
    nested_block_size: int = 256
    """Consecutive scales that share a second-level scale; bitsandbytes has 256."""

    def __post_init__(self) -> None:
        find_format(self.format)
        if self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise FormatError(f"A block size of {self.block_size!r} is not possible.", remedy=f"Choose one of: {sizes}.")
        if self.scale_dtype not in (None, "float32"):
            raise FormatError(
                f"{self.definition.title} stores its scales as float32, not {self.scale_dtype!r}.",
                remedy="Leave scale_dtype out.",
            )
        size = self.nested_block_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise FormatError(f"A nested block size of {size!r} is not possible.", remedy="Give a whole number from 1 on.")

    @property
    def definition(self) -> Format:
        """The format's levels and rules."""
        return find_format(self.format)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of a large tensor: 4 + 32/B, or 4 + 8/B + 32/(B·N) with double quantization."""
        if self.double_quant:
            return 4 + 8 / self.block_size + 32 / (self.block_size * self.nested_block_size)
        return 4 + 32 / self.block_size

    def storage(self, numel: int) -> dict[str, int]:
        """Bytes that a tensor of ``numel`` weights takes, by part; partial blocks count as whole ones.

        Parts: "codes" (two a byte), then "absmax" (float32 a block), or "absmax codes" (a byte a block), "nested absmax"
        (float32 a block of blocks) and "offset" (one float32).
        """
        blocks = -(-numel // self.block_size)
        if not self.double_quant:
            return {"codes": (numel + 1) // 2, "absmax": 4 * blocks}
        nested = -(-blocks // self.nested_block_size)
        return {"codes": (numel + 1) // 2, "absmax codes": blocks, "nested absmax": 4 * nested, "offset": 4}

    def nbytes(self, numel: int) -> int:
        """The sum of ``storage(numel)``."""
        return sum(self.storage(numel).values())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; ``QuantSpec(**d)`` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class Quantized:
    """A quantized array."""

    spec: QuantSpec
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The dtype of the array that was quantized."""
    codes: NDArray[np.uint8]
    """uint8 (numel,): the stored 4-bit code of each weight, as bitsandbytes numbers them."""
    absmax: NDArray[np.float32]
    """float32 (blocks,): each block's absmax before double quantization."""
    nested: NestedScales | None
    """The double-quantized absmax values, None without double quantization."""

    @property
    def packed(self) -> NDArray[np.uint8]:
        """uint8 (⌈numel/2⌉, 1): two codes a byte, the first in the high half, as bitsandbytes stores them."""
        codes = self.codes
        if codes.size % 2:
            codes = np.append(codes, self.spec.definition.code_of_rank[_rank_of_zero(self.spec.definition)])
        return np.asarray((codes[0::2] << 4) | codes[1::2], np.uint8)[:, None]

    @property
    def scales(self) -> NDArray[np.float32]:
        """float32 (blocks,): what the blocks are dequantized with, after double quantization if there is any."""
        return self.absmax if self.nested is None else self.nested.dequantize()

    @property
    def nbytes(self) -> int:
        """Bytes that codes and scales take when stored."""
        return self.spec.nbytes(self.codes.size)

    def dequantize(self, dtype: Any = np.float32) -> NDArray[Any]:
        """The weights that a matrix product sees: level · scale in float32, then rounded to ``dtype``, in the array's shape."""
        values = self.spec.definition.level_of_code[self.codes]
        with np.errstate(over="ignore", invalid="ignore"):
            values *= np.repeat(self.scales, self.spec.block_size)[: values.size]
        return values.astype(dtype, copy=False).reshape(self.shape)


def quantize(array: Any, spec: QuantSpec, cancelled: Callable[[], bool] | None = None) -> Quantized:
    """Quantizes an array of any shape, read in C order as one row of weights cut into blocks.

    Takes float32, float16 and bfloat16 (ml_dtypes) as they are, float64 and 8-bit floats rounded to float32, NumPy arrays or
    CPU torch tensors. Raises FormatError on other dtypes and on empty arrays.
    """
    from workbench import kernels, pool  # numba loads here
    from workbench.bits import as_bits

    weights = as_weights(array)
    form, block_size = spec.definition, spec.block_size
    bits = as_bits(weights)
    ranks = np.empty(bits.size, np.uint8)
    absmax = np.empty(-(-bits.size // block_size), np.float32)
    has_tail = bits.size % block_size != 0

    def rank(span: slice) -> None:
        blocks = slice(span.start // block_size, -(-span.stop // block_size))
        kernels.rank_span(bits[span], block_size, has_tail and span.stop == bits.size, form.edges, absmax[blocks], ranks[span])

    pool.run(rank, bits.size, cancelled)
    codes = ranks if form.codes == tuple(range(16)) else form.code_of_rank[ranks]
    nested = double_quantize(absmax, spec.nested_block_size) if spec.double_quant else None
    return Quantized(spec, weights.shape, weights.dtype, codes, absmax, nested)


def as_weights(array: Any) -> NDArray[Any]:
    """A C-contiguous float32, float16 or bfloat16 array of the same values; a torch tensor is read through its bits."""
    if hasattr(array, "detach"):  # a torch tensor; NumPy has no bfloat16 of its own
        tensor = array.detach().cpu().contiguous()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch  # loaded already: it made the tensor

            array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
    array = np.asarray(array)
    if array.dtype.name in _WIDENED:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.dtype.name not in _DIRECT:
        raise FormatError(
            f"An array of {array.dtype.name} is not a tensor of weights.", remedy="Give floats of 8, 16, 32 or 64 bits."
        )
    if array.size == 0:
        raise FormatError(f"An array of shape {array.shape} has no weights.", remedy="Give at least one weight.")
    return np.ascontiguousarray(array)


def _rank_of_zero(form: Format) -> int:
    """The rank that zero rounds to: the number of thresholds below it."""
    return int((form.edges < 0).sum())
