"""The figures of block-wise error: the block map, the spread over blocks, and one block weight by weight. No widgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widgets.figures import FORMAT_COLOURS, QUIET, Figure, title_of
from widgets.plot import LIGHT_COLOURS
from widgets.state import ERROR_FIELDS
from workbench.measurement import ErrorStats, pool_blocks

MAP_HEIGHT, MAP_WIDTH = 160, 320
"""Cells that a block map is pooled to at most."""


def map_row_length(e: ErrorStats) -> int:
    """Blocks drawn in one row of the block map: those of a matrix row, else 64 in the order they are stored."""
    return e.blocks_per_row or 64


def block_map(e: ErrorStats, field: str, selected: int | None = None) -> Figure:
    """Every block of the tensor as a heat map, rows × blocks of a row; where there are too many, a cell is its worst block."""
    per_row = map_row_length(e)
    cells, (tall, wide) = pool_blocks(getattr(e, field), per_row, MAP_HEIGHT, MAP_WIDTH)
    name = ERROR_FIELDS[field]
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap", "z": cells, "x0": (wide - 1) / 2, "dx": wide, "y0": (tall - 1) / 2, "dy": tall,
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": name, "side": "right"}, "thickness": 14, "exponentformat": "e"},
            "hovertemplate": "row %{y:.0f}, block %{x:.0f}<br>" + name + " %{z:.3e}<extra></extra>", "name": name,
        }
    ]  # fmt: skip
    if selected is not None:
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": np.array([selected % per_row]),
                "y": np.array([selected // per_row]), "hoverinfo": "skip", "showlegend": False, "name": "selected block",
                "marker": {"symbol": "square-open", "size": 13, "color": "#ff2d55", "line": {"width": 2.5}},
            }
        )  # fmt: skip
    rows = -(-e.block_rmse.size // per_row)
    layout = {
        "uirevision": f"map {per_row} {rows}",
        "xaxis": {
            "title": {"text": "block of the row" if e.blocks_per_row else "block, in storage order"},
            "range": [-0.5, per_row - 0.5], "zeroline": False, "showgrid": False,
        },
        "yaxis": {
            "title": {"text": "row of the matrix" if e.blocks_per_row else "64 blocks a line"}, "range": [rows - 0.5, -0.5],
            "zeroline": False, "showgrid": False,
        },
    }  # fmt: skip
    return {"data": data, "layout": layout}


def block_at(e: ErrorStats, field: str, x: float, y: float) -> int:
    """The block that a click at (x, y) of ``block_map`` means: the worst one in the cell."""
    per_row = map_row_length(e)
    values = getattr(e, field)
    rows = -(-values.size // per_row)
    tall, wide = -(-rows // MAP_HEIGHT), -(-per_row // MAP_WIDTH)
    row, column = int(y + 0.5) // tall * tall, int(x + 0.5) // wide * wide
    grid = np.add.outer(np.arange(row, row + tall) * per_row, np.arange(column, min(column + wide, per_row))).reshape(-1)
    inside = grid[grid < values.size]
    if not inside.size:
        return int(values.size - 1)
    return int(inside[np.argmax(np.nan_to_num(values[inside], nan=-1.0))])


def worst_block(e: ErrorStats, field: str) -> int:
    """The finite block with the largest value."""
    return int(np.argmax(np.nan_to_num(getattr(e, field), nan=-1.0)))


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
    weights: NDArray[np.float32], restored: NDArray[np.float32], levels: NDArray[np.float32], title: str
) -> Figure:
    """One block's weights, what they become, and the levels they had to choose from (already times the scale)."""
    x = np.arange(weights.size)
    gaps = np.stack([weights, restored, np.full_like(weights, np.nan)], axis=1).reshape(-1)
    data = [
        {
            "type": "scatter", "mode": "lines", "x": np.tile([-1.0, weights.size, np.nan], levels.size),
            "y": np.repeat(levels, 3), "line": {"color": QUIET, "width": 0.7}, "hoverinfo": "skip", "name": "levels × scale",
        },
        {
            "type": "scatter", "mode": "lines", "x": np.repeat(x, 3), "y": gaps, "hoverinfo": "skip", "name": "error",
            "line": {"color": LIGHT_COLOURS[1], "width": 2},
        },
        {
            "type": "scatter", "mode": "markers", "x": x, "y": weights, "name": "weight",
            "marker": {"size": 6, "color": LIGHT_COLOURS[0]}, "hovertemplate": "weight %{x}<br>%{y:.5g}",
        },
        {
            "type": "scatter", "mode": "markers", "x": x, "y": restored, "name": f"after {title}",
            "marker": {"size": 9, "symbol": "line-ew-open", "color": LIGHT_COLOURS[1], "line": {"width": 2}},
            "hovertemplate": "weight %{x} becomes<br>%{y:.5g}",
        },
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "weight of the block"}, "range": [-1, weights.size], "zeroline": False},
        "yaxis": {"title": {"text": "value"}, "exponentformat": "e", "zeroline": False},
        "margin": {"l": 76, "r": 20, "t": 34, "b": 48},
    }
    return {"data": data, "layout": layout}
