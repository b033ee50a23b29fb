"""From a tensor's blocks to their scales, one formula for each rule: the divisor, the stored scale, and the multiplier.

Covers every ``Format.rule``, rounding scales to their stored dtype, and double quantization. Does not cover rounding the
weights (``kernels/rounding.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.quant.double_quant import NestedScales, double_quantize
from workbench.quant.formats import ABSMAX, FITTED, POWER_OF_TWO, RANGE, TWO_LEVEL, Format

if TYPE_CHECKING:
    from workbench.quant.spec import QuantSpec

Floats = NDArray[np.float32]

LOOK = 1 << 20
"""Weights whose block scales are summed at once when a tensor's mean is taken."""
_E2M1_MAX, _E4M3_MAX = np.float32(6), np.float32(448)


@dataclass
class Overview:
    """What a rule must know of the whole tensor before its first block: gathered in order, ``LOOK`` weights at a time."""

    total: float = 0.0
    blocks: int = 0
    largest: np.float32 = field(default_factory=lambda: np.float32(0))
    """The largest finite absmax."""

    @classmethod
    def of(cls, absmax: Floats, block_size: int) -> Overview:
        """The overview of a tensor whose absmax values are all at hand."""
        overview = cls()
        overview.add(absmax, block_size)
        return overview

    def add(self, absmax: Floats, block_size: int) -> None:
        """Takes in the absmax values of further blocks."""
        for start in range(0, absmax.size, LOOK // block_size):
            part = absmax[start : start + LOOK // block_size]
            self.total += float(part.sum(dtype=np.float64))
        self.blocks += absmax.size
        self.largest = max(self.largest, absmax[np.isfinite(absmax)].max(initial=np.float32(0)))

    @property
    def mean(self) -> np.float32:
        """The mean absmax, which double quantization subtracts."""
        return np.float32(self.total / self.blocks)


@dataclass(frozen=True)
class Scales:
    """The scales of a stretch of blocks."""

    divisors: Floats
    """float32 (blocks,): what weights are divided by before they are rounded; infinite where the scale is 0."""
    values: Floats
    """float32 (blocks,): what levels are multiplied with."""
    stored: NDArray[Any]
    """(blocks,) in the stored dtype; for ``two-level`` in units of ``tensor_scale``."""
    zero_points: NDArray[np.uint8] | None = None
    """uint8 (blocks,): the rank that stands for 0."""
    tensor_scale: np.float32 | None = None
    """The one float32 of the tensor."""
    nested: NestedScales | None = None
    """The double-quantized scales, which ``values`` then come from."""


def needs_overview(spec: QuantSpec) -> bool:
    """Whether the scales of a block depend on the whole tensor."""
    return spec.double_quant or spec.definition.rule == TWO_LEVEL


def is_plain(spec: QuantSpec) -> bool:
    """Whether the kernels find the scales themselves: the block's absmax in float32, for sixteen levels."""
    form = spec.definition
    return form.rule == ABSMAX and spec.scale_dtype == "float32" and not spec.double_quant and not form.even_steps


def multiplies(spec: QuantSpec) -> bool:
    """Whether whole blocks are multiplied by the reciprocal of the scale, as bitsandbytes and llama.cpp do, not divided.

    For a power of two both are the same.
    """
    rule = spec.definition.rule
    return rule in (FITTED, POWER_OF_TWO) or (rule == ABSMAX and spec.scale_dtype == "float32")


def last_rank(form: Format) -> np.float32:
    """The highest rank that arithmetic may give a weight: without a zero point the last code of all is spare."""
    return np.float32(form.levels.size - (2 if form.rule == ABSMAX else 1))


def zero_ranks(spec: QuantSpec, scales: Scales, blocks: int) -> Floats:
    """float32 (blocks,): the rank that stands for 0 where levels are evenly spaced (0 elsewhere, where nothing asks for it)."""
    if scales.zero_points is not None:
        return scales.zero_points.astype(np.float32)
    form = spec.definition
    return np.full(blocks, form.levels.size // 2 - 1 if form.even_steps else 0, np.float32)


def find_scales(
    spec: QuantSpec, bits: NDArray[Any], absmax: Floats, overview: Overview, cancelled: Callable[[], bool] | None = None
) -> Scales:
    """The scales of the blocks of ``bits`` (n,), whose true ``absmax`` (blocks,) is known."""
    rule = spec.definition.rule
    if rule == ABSMAX:
        absmax = with_tail_floored(absmax, bits.size, spec.block_size)
        nested = double_quantize(absmax, spec.nested_block_size, overview.mean) if spec.double_quant else None
        if nested is not None:
            return Scales(_floored(absmax), nested.dequantize(), absmax, nested=nested)
        stored = _rounded(absmax, spec.scale_dtype)
        values = stored.astype(np.float32)
        return Scales(_floored(values) if spec.scale_dtype == "float32" else _never_zero(values), values, stored)
    if rule == RANGE:
        return _range(spec, *_extremes(bits, spec.block_size, cancelled))
    if rule == POWER_OF_TWO:
        return _power_of_two(absmax)
    if rule == TWO_LEVEL:
        return _two_level(absmax, overview.largest)
    assert rule == FITTED
    return _fitted(spec, bits, absmax, cancelled)


def _range(spec: QuantSpec, low: Floats, high: Floats) -> Scales:
    """step = (max(high, 0) − min(low, 0)) / last, zero point = ⌊−min(low, 0) / step⌉ in 0…last, with last = 2^bits − 1."""
    last = np.float32(spec.definition.levels.size - 1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        below = np.minimum(low, np.float32(0))
        step = (np.maximum(high, np.float32(0)) / last - below / last).astype(np.float32, copy=False)
        stored = _rounded(step, spec.scale_dtype)
        values = stored.astype(np.float32)
        zero = np.clip(np.rint(-below / _never_zero(values)), 0, last)
    return Scales(_never_zero(values), values, stored, np.nan_to_num(zero).astype(np.uint8))


def _power_of_two(absmax: Floats) -> Scales:
    """OCP MX 1.0, section 6.3: 2^(⌊log₂ absmax⌋ − 2), two being the exponent of E2M1's largest level, 6 = 1.5 · 2²."""
    finite = np.isfinite(absmax)
    exponent = np.frexp(np.where(finite, absmax, np.float32(1)))[1] - 1 - 2  # absmax = m · 2^(that + 3) with 0.5 <= m < 1
    exponent = np.clip(np.where(absmax == 0, -127, exponent), -127, 127)
    values = np.where(finite, np.ldexp(np.float32(1), exponent), np.float32(np.nan)).astype(np.float32)
    stored = np.where(finite, exponent + 127, 255).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)
    return Scales(values, values, stored)


def _two_level(absmax: Floats, largest: np.float32) -> Scales:
    """tensor scale t = largest absmax / (6 · 448); block scale = E4M3(absmax / 6 / t); a weight is divided by their product."""
    tensor = np.float32(largest / (_E2M1_MAX * _E4M3_MAX))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wanted = np.minimum(absmax / _E2M1_MAX / tensor if tensor else np.zeros_like(absmax), _E4M3_MAX)
    wanted[~np.isfinite(absmax)] = np.nan
    stored = wanted.astype(ml_dtypes.float8_e4m3fn)
    values = stored.astype(np.float32) * tensor
    return Scales(_never_zero(values), values, stored, tensor_scale=tensor)


def _fitted(spec: QuantSpec, bits: NDArray[Any], absmax: Floats, cancelled: Callable[[], bool] | None) -> Scales:
    """d₀ puts the weight of largest magnitude on the lowest level; codes are those of x / d₀; then d = Σx²·q·x / Σx²·q²."""
    from workbench.kernels import pool, rounding

    low, high = _extremes(bits, spec.block_size, cancelled)
    lowest = spec.definition.levels[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        divisors = _never_zero(np.where(high > -low, high, low) / lowest)
    ratios = np.empty(absmax.size, np.float32)

    def fit(span: slice) -> None:
        own = slice(span.start // spec.block_size, -(-span.stop // spec.block_size))
        rounding.fit_span(bits[span], spec.block_size, spec.definition.grid, divisors[own], ratios[own])

    pool.run(fit, bits.size, cancelled)
    best = np.zeros(absmax.size, np.float32)
    np.multiply(ratios, divisors, out=best, where=np.isfinite(divisors))
    best[~np.isfinite(absmax)] = np.nan
    stored = _rounded(best, spec.scale_dtype)
    return Scales(divisors, stored.astype(np.float32), stored)


def _extremes(bits: NDArray[Any], block_size: int, cancelled: Callable[[], bool] | None) -> tuple[Floats, Floats]:
    from workbench.kernels import blocks as block_kernels
    from workbench.kernels import pool

    blocks = -(-bits.size // block_size)
    low, high = np.empty(blocks, np.float32), np.empty(blocks, np.float32)

    def look(span: slice) -> None:
        own = slice(span.start // block_size, -(-span.stop // block_size))
        block_kernels.block_extremes(bits[span], block_size, low[own], high[own])

    pool.run(look, bits.size, cancelled)
    return low, high


def _rounded(values: Floats, dtype: str | None) -> NDArray[Any]:
    """``values`` in the stored dtype; what is too large for it becomes its largest number."""
    if dtype == "float32":
        return values
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    limit = np.float32(ml_dtypes.finfo(kind).max)  # type: ignore[no-untyped-call]  # ml_dtypes types everything but this
    return np.clip(values, -limit, limit, where=np.isfinite(values), out=values.copy()).astype(kind)


def with_tail_floored(absmax: Floats, numel: int, block_size: int) -> Floats:
    """The absmax values as bitsandbytes stores them: a partial last block's is at least 1e-38."""
    if numel % block_size == 0:
        return absmax
    return np.append(absmax[:-1], _floored(absmax[-1:]))


def _floored(absmax: Floats) -> Floats:
    return np.maximum(absmax, np.float32(1e-38))


def _never_zero(values: Floats) -> Floats:
    return np.where(values == 0, np.float32(np.inf), values).astype(np.float32)
