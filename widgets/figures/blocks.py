"""The figures of block-wise error: the spread over blocks, and one block weight by weight. No widgets.

The map of all blocks is ``blockmap.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from widgets.figures.bins import title_of
from widgets.figures.layout import Figure
from widgets.figures.palette import BLUE, CHOSEN, FORMAT_COLOURS, QUIET, VERMILION
from widgets.state import ERROR_FIELDS
from workbench.quant.measure import ErrorStats


def map_row_length(e: ErrorStats) -> int:
    """Blocks drawn in one row of the block map: those of a matrix row, else 64 in the order they are stored."""
    return e.blocks_per_row or 64


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
    return f"row {block // per_row:,}, block {block % per_row} of the row" if per_row else "in storage order"


def block_distribution(stats: Sequence[ErrorStats], field: str) -> Figure:
    """How the blocks' values are spread, one line a format on common bins."""
    values = [getattr(e, field) for e in stats]
    finite = [v[np.isfinite(v)] for v in values]
    top = max((float(v.max(initial=0)) for v in finite), default=0.0) or 1.0
    bottom = min((float(v.min(initial=top)) for v in finite), default=0.0)
    borders = np.linspace(bottom, top if top > bottom else bottom + 1e-12, 81)
    data = []
    for i, (e, v) in enumerate(zip(stats, finite, strict=True)):
        share = 100 * np.histogram(v, borders)[0] / max(1, v.size)
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": borders, "y": np.append(share, 0), "fill": "tozeroy",
                "line": {"shape": "hv", "color": FORMAT_COLOURS[i]}, "name": title_of(e.spec),
                "hovertemplate": "%{x:.3e}<br>%{y:.2f} % of blocks",
            }
        )  # fmt: skip
    layout = {
        "uirevision": field,
        "xaxis": {"title": {"text": f"{ERROR_FIELDS[field]} of a block"}, "exponentformat": "e", "nticks": 6},
        "yaxis": {"title": {"text": "% of blocks"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}


def block_weights(
    weights: NDArray[np.float32], restored: NDArray[np.float32], levels: NDArray[np.float32], title: str, chosen: int = 0
) -> Figure:
    """One block's weights, what they become, and the levels they had to choose from (already times the scale).

    The ``chosen`` weight is marked.
    """
    x = np.arange(weights.size)
    gaps = np.stack([weights, restored, np.full_like(weights, np.nan)], axis=1).reshape(-1)
    data = [
        {
            "type": "scatter", "mode": "lines", "x": np.tile([-1.0, weights.size, np.nan], levels.size),
            "y": np.repeat(levels, 3), "line": {"color": QUIET, "width": 0.7}, "hoverinfo": "skip", "name": "levels × scale",
        },
        {
            "type": "scatter", "mode": "lines", "x": np.repeat(x, 3), "y": gaps, "hoverinfo": "skip", "name": "error",
            "line": {"color": VERMILION, "width": 2},
        },
        {
            "type": "scatter", "mode": "markers", "x": x, "y": weights, "name": "weight",
            "marker": {"size": 6, "color": BLUE}, "hovertemplate": "weight %{x}<br>%{y:.5g}",
        },
        {
            "type": "scatter", "mode": "markers", "x": x, "y": restored, "name": f"after {title}",
            "marker": {"size": 9, "symbol": "line-ew-open", "color": VERMILION, "line": {"width": 2}},
            "hovertemplate": "weight %{x} becomes<br>%{y:.5g}",
        },
        {
            "type": "scatter", "mode": "markers", "x": x[chosen : chosen + 1], "y": weights[chosen : chosen + 1],
            "name": "chosen weight", "hoverinfo": "skip",
            "marker": {"size": 15, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 2}},
        },
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "weight of the block"}, "range": [-1, weights.size], "zeroline": False},
        "yaxis": {"title": {"text": "value"}, "exponentformat": "e", "zeroline": False},
        "margin": {"l": 76, "r": 20, "t": 52, "b": 48},
    }
    return {"data": data, "layout": layout}
