"""One block weight by weight: what each is divided by, its code, its level, what it becomes, and the arithmetic in numbers.

Covers every rule of ``Format``, and the block's scale before and after double quantization. Does not cover a tensor as a whole
(``quant/measure.py``); a block's scale is taken from there, so that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described, is_a, is_whole
from workbench.kernels.sampling import evenly_spaced
from workbench.quant.double_quant import double_quantize, dynamic_levels
from workbench.quant.measure import ErrorStats
from workbench.quant.quantize import as_weights, quantize
from workbench.quant.scales import Overview, Scales, find_scales
from workbench.quant.spec import QuantSpec
from workbench.show import Record, Shown, View
from workbench.text import number, whole_or_sampled

if TYPE_CHECKING:
    import pandas as pd

from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.quant.formats import FITTED, POWER_OF_TWO, RANGE, TWO_LEVEL

Floats = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class NestedScale(Record):
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


@dataclass(frozen=True, repr=False)
class Block(Shown):
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

    def _show_(self) -> View:
        facts = {"absmax": number(self.absmax, ".6g"), "scale": number(self.scale, ".6g")}
        if self.spec.definition.zero_point_bits:
            facts["zero point"] = f"{self.zero:g}"
        if self.tensor_scale is not None:
            facts["scale of the tensor"] = number(self.tensor_scale, ".6g")
        if self.nested is not None:
            facts["scale's own code"] = f"{self.nested.code}"
        facts["largest error"] = f"{number(float(self.errors[self.worst]), '.4g')}, of weight {self.worst}"
        parts: dict[str, NDArray[Any]] = {
            "weight": self.weights, "code": self.codes, "level": self.levels, "becomes": self.restored, "error": self.errors,
        }  # fmt: skip
        lines = [
            {"": f"{i}", **{name: number(float(part[i]), ".4g") for name, part in parts.items()}}
            for i in range(self.weights.size)
        ]
        return View(f"Block {self.index}: {self.weights.size} weights in {self.spec.title}", facts, lines)

    def bin(self, weight: int) -> tuple[float, float]:
        """Between which quotients a weight gets the level that this one has; −inf and inf at the ends."""
        levels = np.unique(self.spec.definition.levels).astype(np.float64)
        edges = np.concatenate([[-np.inf], (levels[:-1] + levels[1:]) / 2, [np.inf]])
        rank = int(np.searchsorted(levels, self.levels[weight]))
        return float(edges[rank]), float(edges[rank + 1])

    @property
    def scale_steps(self) -> tuple[str, ...]:
        """How the block's scale comes about, its own quantization included, step by step with its numbers."""
        return (*_scale(self), *_nested_line(self)) if self.finite else ()

    def arithmetic(self, weight: int) -> tuple[str, ...]:
        """How one weight of the block is quantized, step by step with its numbers.

        Raises:
            FormatError: If there is no such weight.
        """
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
    """One block of an array.

    Args:
        array: What was measured.
        stats: ``measure(array, spec)`` of the whole array.
        block: Which block, counted from 0.

    Returns:
        The weights of the block, each with its code, level and restored value, and the scale that they share.

    Raises:
        FormatError: If there is no such block, and for statistics of a sample or of another array.

    >>> x = np.linspace(-2, 2, 128, dtype=np.float32)
    >>> block = wb.inspect_block(x, wb.measure(x, "nf4"), 1)
    >>> block.absmax, block.codes[-1].item(), block.restored[-1].item()
    (2.0, 15, 2.0)
    """
    weights = as_weights(array).reshape(-1)
    _check(stats)
    spec, size, blocks = stats.spec, stats.spec.block_size, stats.block_rmse.size
    if stats.sampled is not None or weights.size != stats.numel:
        raise FormatError("These statistics are not of the whole array.", remedy="Give those of measure(array, spec).")
    if not is_whole(block, 0) or block >= blocks:
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


def _check(stats: ErrorStats) -> None:
    if not is_a(stats, ErrorStats):
        remedy = "Give those of wb.measure(array, spec)."
        raise FormatError(f"{described(stats)} is no statistics of an array.", where="stats", remedy=remedy)
    if stats.spec.rotate:
        what = f"Under {stats.spec.title} a block holds rotated weights, none of which is one of the array's."
        raise FormatError(what, where="stats", remedy="Give the statistics of a specification without rotate.")


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


@dataclass(frozen=True, repr=False)
class BinErrors(Shown):
    """The error of the weights that fall into each bin."""

    levels: Floats
    """The distinct levels, ascending."""
    counts: NDArray[np.int64]
    """Weights in each bin, of those that were looked at."""
    rmse: Floats
    """Root mean square error of the bin's weights; NaN where it is empty."""
    sampled: float | None
    """The share of the blocks that was looked at; None: all of them."""

    def _show_(self) -> View:
        lines = [
            {"level": f"{level:.4f}", "weights": f"{n:,}", "RMSE": number(float(error))}
            for level, n, error in zip(self.levels, self.counts, self.rmse, strict=True)
        ]
        return View(f"Errors by bin, measured, {whole_or_sampled(self.sampled)}", lines=lines)


def bin_errors(array: Any, stats: ErrorStats, most: int = 1 << 16) -> BinErrors:
    """The error of the weights in each bin.

    Equal levels count as one bin. Blocks that are not finite are left out.

    Args:
        array: What was measured.
        stats: ``measure(array, spec)``.
        most: Of a larger array, evenly spaced blocks with about so many weights are looked at.

    Returns:
        The levels, and for each its weights and their root mean square error, in units of the weights.

    Raises:
        FormatError: As ``quantize`` does, and for what is no statistics of such an array.

    >>> x = np.linspace(-2, 2, 128, dtype=np.float32)
    >>> found = wb.bin_errors(x, wb.measure(x, "nf4"))
    >>> found.levels.size, found.counts.sum().item()
    (16, 128)
    """
    weights = as_weights(array).reshape(-1)
    _check(stats)
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


def written_out(block: Block, weight: int) -> tuple[str, ...]:
    """The steps for the ``weight``-th weight of the block."""
    if not block.finite:
        return ("The block holds a weight that is NaN or infinite: it has no scale, and no weight of it an error.",)
    return (*_scale(block), *_rounding(block, weight), *_nested_line(block), *_restoring(block, weight))


def _n(value: float) -> str:
    """A number as it stands in a sum: six digits, in brackets if it is negative."""
    text = f"{float(value):.6g}".replace("-", "−")
    return f"({text})" if text.startswith("−") else text


def _bare(value: float) -> str:
    return f"{float(value):.6g}".replace("-", "−")


def _scale(block: Block) -> Iterator[str]:
    """How the block's scale comes about."""
    form, x = block.spec.definition, block.weights
    largest = int(np.argmax(np.abs(x)))
    if form.rule == RANGE:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        last = form.levels.size - 1
        yield (
            f"step = (max − min) / {last} = ({_n(high)} − {_n(low)}) / {last} = {_bare((high - low) / last)}, "
            f"stored as {block.spec.scale_dtype}: {_bare(block.stored)}"
        )
        yield f"zero point = ⌊−min / step⌉ = ⌊{_n(-low)} / {_n(block.stored)}⌉ = {_bare(block.zero)}"
        return
    yield f"absmax = |x[{largest}]| = {_bare(block.absmax)}"
    if form.rule == POWER_OF_TWO:
        if block.absmax == 0:
            yield f"all weights are 0: the scale is the smallest there is, {_bare(block.scale)}"
            return
        exponent = int(np.frexp(np.float32(block.scale))[1]) - 1
        log = float(np.log2(block.absmax))
        yield (
            f"scale = 2^(⌊log₂ absmax⌋ − 2) = 2^(⌊{_bare(log)}⌋ − 2) = 2^{_n(exponent)} = {_bare(block.scale)}, "
            f"stored as the exponent {exponent + 127} (E8M0)"
        )
    elif form.rule == TWO_LEVEL and block.tensor_scale is not None:
        t = block.tensor_scale
        yield f"scale of the tensor t = its largest absmax / (6 · 448) = {_n(t * 6 * 448)} / 2688 = {_bare(t)}"
        wanted = block.absmax / 6 / t if t else 0.0
        yield f"scale of the block = absmax / 6 / t = {_bare(wanted)}, rounded to E4M3: {_bare(block.stored)}"
        yield f"scale = {_n(block.stored)} · {_n(t)} = {_bare(block.scale)}"
    elif form.rule == FITTED:
        lowest = float(form.levels[0])
        yield f"first x[{largest}], the largest, goes to level {_bare(lowest)}: d₀ = {_bare(block.divisor)}"
    elif block.spec.scale_dtype != "float32":
        yield f"stored as {block.spec.scale_dtype}: {_bare(block.stored)}"


def _rounding(block: Block, weight: int) -> Iterator[str]:
    """From the weight to its code."""
    form, x = block.spec.definition, block.weights[weight]
    name = {RANGE: "step", POWER_OF_TWO: "scale", TWO_LEVEL: "scale", FITTED: "d₀"}.get(form.rule, "absmax")
    shift = f" + {_bare(block.zero)}" if form.zero_point_bits else ""
    quotient = block.normalised[weight]
    if not np.isfinite(block.divisor):
        yield f"x[{weight}] = {_bare(x)}; the scale is 0, so the quotient counts as 0"
    else:
        sum_ = f"{_n(x)} / {_n(block.divisor)}{shift}"
        yield f"x[{weight}] / {name}{' + zero point' if shift else ''} = {sum_} = {_bare(quotient)}"
    level, code = block.levels[weight], int(block.codes[weight])
    low, high = block.bin(weight)
    below = f"from {_bare(low)}" if np.isfinite(low) else "from below"
    above = f"to {_bare(high)}" if np.isfinite(high) else "upwards"
    yield f"nearest level {_bare(level)}, code {code}: its bin reaches {below} {above}"
    if form.rule == FITTED:
        q, w = block.levels.astype(np.float64), block.weights.astype(np.float64)
        top, bottom = float((w * w * q * w).sum()), float((w * w * q * q).sum())
        yield (
            f"then the scale that fits all codes best, d = Σx²·q·x / Σx²·q² = {_n(top)} / {_n(bottom)} = "
            f"{_bare(top / bottom if bottom else 0.0)}, stored as {block.spec.scale_dtype}: {_bare(block.scale)}"
        )


def _nested_line(block: Block) -> Iterator[str]:
    """The absmax before and after its own quantization."""
    if (n := block.nested) is not None:
        yield (
            f"absmax {_bare(block.absmax)} is itself stored in 8 bits, code {n.code}: level · absmax₂ + mean = "
            f"{_n(n.level)} · {_n(n.absmax)} + {_n(n.offset)} = {_bare(block.scale)}"
        )


def _restoring(block: Block, weight: int) -> Iterator[str]:
    """What the weight becomes, and what is lost."""
    form, level = block.spec.definition, block.levels[weight]
    name = {RANGE: "step", POWER_OF_TWO: "scale", TWO_LEVEL: "scale", FITTED: "d"}.get(form.rule, "absmax")
    term, number = "level", _n(level)
    if form.zero_point_bits:
        term, number = "(level − zero point)", f"({_bare(level)} − {_bare(block.zero)})"
    restored = block.restored[weight]
    yield f"becomes {term} · {name} = {number} · {_n(block.scale)} = {_bare(restored)}"
    yield f"error = {_n(block.weights[weight])} − {_n(restored)} = {_bare(block.errors[weight])}"
