"""What the rows of block-wise error show, from ``ErrorStats``, ``Block`` and a survey's rows to plain values. No widgets.

The parts that ``widgets/drawing/error_rows.py`` takes; arrays stay numpy's. The map of all blocks is ``blockmap.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widgets.figures.bins import title_of
from workbench.quant.formats import FITTED
from workbench.quant.inspect import Block
from workbench.quant.measure import ErrorStats
from workbench.surveys.places import Places

_CURVE = 64
"""Points of a curve over the colour bar."""


def map_row_length(e: ErrorStats) -> int:
    """Blocks drawn in one row of the block map: those of a matrix row, else up to 64 in the order they are stored."""
    return e.blocks_per_row or min(64, e.block_rmse.size)


def worst_blocks(e: ErrorStats, field: str, count: int) -> list[int]:
    """The blocks with the largest values, from the worst on; of equal ones the first; those that are not finite come last."""
    values = np.nan_to_num(getattr(e, field), nan=-1.0)
    count = min(count, values.size)
    least = np.partition(values, values.size - count)[values.size - count]
    found = np.flatnonzero(values >= least)
    return [int(i) for i in found[np.argsort(-values[found], kind="stable")][:count]]


def place_of(e: ErrorStats, block: int) -> str:
    """Where a block lies in the matrix, in words."""
    per_row = e.blocks_per_row
    return f"row {block // per_row:,}, block {block % per_row}" if per_row else f"block {block:,}"


def model_part(places: Places, errors: Mapping[str, float], failed: Iterable[str], chosen: str) -> dict[str, Any]:
    """``model``: relative RMSE by layer and kind, NaN where it is not known yet; the chosen tensor's cell is marked."""
    shape = (len(places.layers), len(places.kinds))
    values, there = np.full(shape, np.nan, np.float32), np.zeros(shape, np.uint8)
    for place in places.of.values():
        there[place] = 1
    for name in failed:
        there[places.of[name]] = 2
    for place, name in places.worst(errors).items():
        values[place] = errors[name]
    layers = ["outside" if layer is None else str(layer) for layer in places.layers]
    return {
        "layers": layers, "kinds": list(places.kinds), "values": values.reshape(-1), "there": there.reshape(-1),
        "selected": places.of.get(chosen),
    }  # fmt: skip


def spread_part(stats: Sequence[ErrorStats], field: str) -> dict[str, Any]:
    """``spread``: how many blocks of each format have each value between the leading format's least and largest.

    Each curve is float32 (64,), 1 at the highest point of all; values that lie outside are left out.
    """
    values = [getattr(e, field) for e in stats]
    lead = values[0][np.isfinite(values[0])]
    low, span = (float(lead.min()), float(lead.max() - lead.min())) if lead.size else (0.0, 0.0)
    counts = [_counted(v, low, span) for v in values]
    top = max(float(count.max()) for count in counts) or 1.0
    names = ", ".join(title_of(e.spec) for e in stats)
    said = f"How many blocks have each value from {_sci(low)} to {_sci(low + span)}, a curve each: {names}."
    return {"curves": [(count / top).astype(np.float32) for count in counts], "said": said}


def _counted(values: NDArray[np.float32], low: float, span: float) -> NDArray[np.float64]:
    """The share of blocks in each of the curve's bins."""
    with np.errstate(invalid="ignore"):
        place = (values - np.float32(low)) * np.float32(_CURVE / span if span else 0.0)
        kept = place[(place >= 0) & (place <= _CURVE)]
    counts: NDArray[np.float64] = np.bincount(np.minimum(kept.astype(np.int32), _CURVE - 1), minlength=_CURVE) / values.size
    return counts


def worst_part(e: ErrorStats, field: str, worst: Sequence[int]) -> dict[str, Any]:
    """``worst``: the worst blocks, each its number, place and value."""
    values = getattr(e, field)
    return {"of": f"of {values.size:,}", "lines": [[block, place_of(e, block), _sci(values[block])] for block in worst]}


def block_part(e: ErrorStats, b: Block) -> dict[str, Any]:
    """``block``: its weights, what they become and their codes, and the levels they had to choose from (times the scale)."""
    form = b.spec.definition
    with np.errstate(invalid="ignore", over="ignore"):
        levels = ((np.unique(form.levels) - b.zero) * b.scale).astype(np.float32)
    place = place_of(e, b.index) if e.blocks_per_row else "in storage order"
    state = (
        f"absmax {_short(b.absmax)} · RMSE {_sci(e.block_rmse[b.index])}" if b.finite else "NaN or infinite weights: no scale"
    )
    aside = f"{place} · {state} · {_weights(b.weights.size)}"
    return {
        "index": b.index, "title": f"Block {b.index:,}", "aside": aside, "digits": -(-form.bits // 4), "finite": b.finite,
        "weights": b.weights,
        "restored": b.restored, "codes": b.codes, "levels": levels, "level_of_code": form.level_of_code,
        "divisor": b.divisor, "zero": b.zero, "divided": _divisor(b)[0] + (" + zero point" if form.zero_point_bits else ""),
    }  # fmt: skip


def weight_part(b: Block, i: int) -> dict[str, Any]:
    """``weight``: one weight's place among the levels, and its arithmetic in one line and step by step."""
    steps = list(b.arithmetic(i))
    if not b.finite:
        terms = [["", _short(b.weights[i]), "weight"]]
        return {"index": i, "aside": steps[0], "how": "", "terms": terms, "line": None, "steps": steps, "said": steps[0]}
    form, level = b.spec.definition, float(b.levels[i])
    levels = np.unique(form.levels)
    rank = int(np.searchsorted(levels, level))
    names = [f"{code:x}" for code in form.code_of_rank[np.searchsorted(form.levels, levels)]]
    names[rank] = f"{b.codes[i]:x}"
    low, high = b.bin(i)
    line = {
        "levels": levels, "edges": (levels[:-1] + levels[1:]) / 2, "names": names, "rank": rank, "at": float(b.normalised[i]),
        "level": level, "bin": [low, high],
    }  # fmt: skip
    said = f"{_short(b.weights[i])} becomes {_short(b.restored[i])}, error {_short(b.errors[i])}"
    scale = b.scale_steps
    aside = scale[-1]
    if (n := b.nested) is not None:
        parts = f"{_short(n.level)} × {_short(n.absmax)} + {_short(n.offset)}"
        aside = f"absmax {_short(b.absmax)} in 8 bits, code {n.code}: {parts} = {_short(b.scale)}"
    return {
        "index": i,
        "aside": aside,
        "how": "\n".join(scale),
        "terms": _terms(b, i),
        "line": line,
        "steps": steps,
        "said": said,
    }


def _terms(b: Block, i: int) -> list[list[str]]:
    """The sum in one line: each term its sign, its number and what it is; the last is the error."""
    form, (divisor, scale) = b.spec.definition, _divisor(b)
    low, high = b.bin(i)
    reach = f"bin {_end(low)} … {_end(high)}"
    level, name = _short(b.levels[i]), f"level of code {b.codes[i]:x}"
    if form.zero_point_bits:
        level, name = f"({level} − {_short(b.zero)})", f"{name} − zero point"
    known = math.isfinite(b.divisor)
    return [
        ["", _short(b.weights[i]), "weight"],
        ["÷", _short(b.divisor) if known else "0", divisor],
        *([["+", _short(b.zero), "zero point"]] if form.zero_point_bits else []),
        ["=", _short(b.normalised[i]), reach if known else f"taken as 0, {reach}"],
        ["→", level, name],
        ["×", _short(b.scale), f"{scale} from 8 bits" if b.nested is not None else scale],
        ["=", _short(b.restored[i]), "becomes"],
        ["", _short(b.errors[i]), "error"],
    ]


def _divisor(b: Block) -> tuple[str, str]:
    """What weights are divided by, and what levels are multiplied with, by name."""
    form = b.spec.definition
    if form.rule == FITTED:
        return "d₀", "d, fitted"
    name = "absmax" if form.double_quantizable else "step" if form.zero_point_bits else "scale"
    return name, name


def _weights(count: int) -> str:
    return f"{count:,} weight{'s' * (count != 1)}"


def _end(edge: float) -> str:
    return f"{edge:.3f}".replace("-", "−") if math.isfinite(edge) else "∞" if edge > 0 else "−∞"


def _short(value: float) -> str:
    """Four digits."""
    return f"{float(value):.4g}".replace("-", "−")


def _sci(value: float) -> str:
    return f"{float(value):.2e}".replace("e-0", "e−").replace("e+0", "e").replace("-", "−")
