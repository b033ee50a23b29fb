"""The arithmetic of one weight written out with its numbers: from its block's scale to what it becomes and the error left.

Covers a line for each step of every rule of ``Format``. Computes nothing that ``quant/inspect.py`` and ``quant/scales.py`` have
not: it tells their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from workbench.quant.formats import FITTED, POWER_OF_TWO, RANGE, TWO_LEVEL

if TYPE_CHECKING:
    from workbench.quant.inspect import Block


def written_out(block: Block, weight: int) -> tuple[str, ...]:
    """The steps for the ``weight``-th weight of the block."""
    if not block.finite:
        return ("The block holds a weight that is NaN or infinite: it has no scale, and no weight of it an error.",)
    return (*_scale(block), *_rounding(block, weight), *_nested(block), *_restoring(block, weight))


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
    rank = int(np.searchsorted(np.unique(form.levels), level))
    borders = (np.unique(form.levels)[:-1].astype(np.float64) + np.unique(form.levels)[1:]) / 2
    below = f"from {_bare(borders[rank - 1])}" if rank > 0 else "from below"
    above = f"to {_bare(borders[rank])}" if rank < borders.size else "upwards"
    yield f"nearest level {_bare(level)}, code {code}: its bin reaches {below} {above}"
    if form.rule == FITTED:
        q, w = block.levels.astype(np.float64), block.weights.astype(np.float64)
        top, bottom = float((w * w * q * w).sum()), float((w * w * q * q).sum())
        yield (
            f"then the scale that fits all codes best, d = Σx²·q·x / Σx²·q² = {_n(top)} / {_n(bottom)} = "
            f"{_bare(top / bottom if bottom else 0.0)}, stored as {block.spec.scale_dtype}: {_bare(block.scale)}"
        )


def _nested(block: Block) -> Iterator[str]:
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
