"""One block weight by weight: what each is divided by, its code, its level, what it becomes, and the arithmetic in numbers.

Covers every rule of ``Format``, and the block's scale before and after double quantization. Does not cover a tensor as a whole
(``quant/measure.py``); a block's scale is taken from there, so that both tell the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.kernels.sampling import evenly_spaced
from workbench.quant.double_quant import double_quantize, dynamic_levels
from workbench.quant.measure import ErrorStats
from workbench.quant.quantize import QuantSpec, as_weights, quantize
from workbench.quant.scales import Overview, Scales, find_scales

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NestedScale:
    """How double quantization stores the absmax of one block: â = level[code] · absmax₂ + offset."""

    code: int
    """0…255."""
    level: float
    absmax: float
    """absmax₂, that of the second-level block."""
    offset: float
    """The mean absmax of the tensor."""
    value: float
    """â."""


@dataclass(frozen=True)
class Block:
    """The weights of one block under one specification; arrays are (weights,) in their order."""

    spec: QuantSpec
    index: int
    """Which block of the tensor, in storage order."""
    weights: Floats
    normalised: Floats
    """x / divisor, plus the zero point where there is one: what is rounded to a level."""
    codes: NDArray[np.uint8]
    levels: Floats
    """The level that each code stands for."""
    restored: Floats
    """(level − zero point) · scale in float32."""
    absmax: float
    """The largest magnitude; a partial last block's is at least 1e-38."""
    divisor: float
    """What weights are divided by; infinite where all are 0."""
    scale: float
    """What levels are multiplied with."""
    stored: float
    """The scale as it is stored: for NVFP4 in units of ``tensor_scale``."""
    zero: float
    """The zero point, 0 where the format has none."""
    tensor_scale: float | None
    """The one float32 of the tensor that NVFP4 has."""
    nested: NestedScale | None
    """The scale's own quantization, None without it."""

    @cached_property
    def errors(self) -> Floats:
        """x − what it becomes."""
        with np.errstate(invalid="ignore"):
            return self.weights - self.restored

    @property
    def finite(self) -> bool:
        """Whether the block has a scale: one with a NaN or an infinity has none."""
        return bool(np.isfinite(self.absmax))

    @property
    def worst(self) -> int:
        """The weight with the largest error."""
        return int(np.argmax(np.nan_to_num(np.abs(self.errors), nan=-1.0)))

    def arithmetic(self, weight: int) -> tuple[str, ...]:
        """How one weight of the block is quantized, step by step with its numbers; FormatError where there is none such."""
        from workbench.quant.arithmetic import written_out

        if not 0 <= weight < self.weights.size:
            raise FormatError(f"The block has no weight {weight}.", remedy=f"Give a number from 0 to {self.weights.size - 1}.")
        return written_out(self, weight)

    def to_frame(self) -> pd.DataFrame:
        """A line for each weight: value, normalised value, code, level, what it becomes, error."""
        import pandas as pd

        return pd.DataFrame(
            {
                "value": self.weights, "normalised": self.normalised, "code": self.codes, "level": self.levels,
                "becomes": self.restored, "error": self.errors,
            }
        )  # fmt: skip


def inspect_block(array: Any, stats: ErrorStats, block: int) -> Block:
    """The ``block``-th block of ``array``, of which ``stats = measure(array, spec)`` was taken, the whole of it.

    FormatError for a block that there is not, and for statistics of a sample.
    """
    weights = as_weights(array).reshape(-1)
    spec, size, blocks = stats.spec, stats.spec.block_size, stats.block_rmse.size
    if stats.sampled is not None or weights.size != stats.numel:
        raise FormatError("These statistics are not of the whole array.", remedy="Give those of measure(array, spec).")
    if not 0 <= block < blocks:
        raise FormatError(f"There is no block {block!r}.", remedy=f"Give a number from 0 to {blocks - 1}.")
    piece = weights[block * size : (block + 1) * size]
    overview = Overview.of(stats.block_absmax, size)
    codes = quantize(piece, spec, overview=overview).codes
    found = _scales(piece, stats, block, overview)
    x, scale, zero = piece.astype(np.float32), stats.block_scale[block], stats.block_zero[block]
    levels = spec.definition.level_of_code[codes]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        restored = (levels - zero) * scale
        normalised = x / found.divisors[0] + zero
    tensor_scale = None if found.tensor_scale is None else float(found.tensor_scale)
    return Block(
        spec, block, x, normalised, codes, levels, restored, float(stats.block_absmax[block]), float(found.divisors[0]),
        float(scale), float(found.stored.astype(np.float32)[0]), float(zero), tensor_scale,
        _nested(stats, block, overview.mean) if spec.double_quant else None,
    )  # fmt: skip


def _scales(piece: NDArray[Any], stats: ErrorStats, block: int, overview: Overview) -> Scales:
    from workbench.kernels.bits import as_bits  # numba loads here

    return find_scales(stats.spec, as_bits(piece), stats.block_absmax[block : block + 1], overview, None)


def _nested(stats: ErrorStats, block: int, offset: np.float32) -> NestedScale:
    size = stats.spec.nested_block_size
    first = block // size * size
    nested = double_quantize(stats.block_absmax[first : first + size], size, offset)
    code = int(nested.codes[block - first])
    level, value = dynamic_levels()[code], nested.dequantize()[block - first]
    return NestedScale(code, float(level), float(nested.absmax[0]), float(nested.offset), float(value))


@dataclass(frozen=True)
class BinErrors:
    """The error of the weights that fall into each bin."""

    levels: Floats
    """The distinct levels, ascending."""
    counts: NDArray[np.int64]
    """Weights in each bin, of those that were looked at."""
    rmse: Floats
    """Root mean square error of the bin's weights; NaN where it is empty."""
    sampled: float | None
    """The share of the blocks that was looked at; None: all of them."""


def bin_errors(array: Any, stats: ErrorStats, most: int = 1 << 16) -> BinErrors:
    """The error in each bin of a format, of whose ``measure`` ``stats`` is; of evenly spaced blocks with ``most`` weights.

    Equal levels count as one bin. Blocks that are not finite are left out.
    """
    weights = as_weights(array).reshape(-1)
    spec, size = stats.spec, stats.spec.block_size
    weights, blocks, sampled = evenly_spaced(weights, size, -(-weights.size // most))
    codes = quantize(weights, spec, overview=Overview.of(stats.block_absmax, size)).codes
    value = spec.definition.level_of_code[codes]

    def spread(per_block: Floats) -> Floats:
        return np.repeat(per_block[blocks], size)[: weights.size]

    with np.errstate(invalid="ignore", over="ignore"):
        errors = weights.astype(np.float32) - (value - spread(stats.block_zero)) * spread(stats.block_scale)
    kept = np.isfinite(errors)
    levels = np.unique(spec.definition.levels)
    rank = np.searchsorted(levels, value[kept])
    counts = np.bincount(rank, minlength=levels.size)
    squares = np.bincount(rank, errors[kept].astype(np.float64) ** 2, levels.size)
    with np.errstate(invalid="ignore"):
        rmse = np.sqrt(squares / counts).astype(np.float32)
    return BinErrors(levels, counts.astype(np.int64), rmse, sampled)
