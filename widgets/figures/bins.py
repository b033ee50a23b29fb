"""From ``ErrorStats`` and its kin to the figure of the formats' bins: plain functions from values to values, no widgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widgets.figures.layout import Figure, escaped
from widgets.figures.palette import FORMAT_COLOURS, QUIET, REFERENCE
from workbench.quant.formats import Format
from workbench.quant.inspect import BinErrors
from workbench.quant.measure import ErrorStats, merge_equal_levels
from workbench.quant.spec import QuantSpec


def title_of(spec: QuantSpec) -> str:
    """A specification's name on screen."""
    own = f" (blocks of {spec.block_size})" if len(spec.definition.block_sizes) == 1 else ""
    return spec.definition.title + own + (" + double quantization" if spec.double_quant else "")


def bins(e: ErrorStats) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(levels, lower edges, upper edges) of a format's distinct levels, in units of absmax; outermost −1 and 1 or beyond."""
    levels = e.levels
    middle = (levels[:-1] + levels[1:]) / 2
    return levels, np.concatenate([[min(-1.0, levels[0])], middle]), np.concatenate([middle, [max(1.0, levels[-1])]])


def moves_with_block(form: Format) -> bool:
    """Whether the levels, in units of a block's absmax, differ from block to block."""
    return not form.double_quantizable


READ = ["level", "from", "to", "share", "weights", "RMSE"]
"""The columns of the readout of a bin."""
LABEL, GAP = 0.055, 0.02
"""Parts of the picture's height: the line with a format's name over its bins, and the space above that."""


def distribution(
    counts: NDArray[np.int64], stats: Sequence[ErrorStats], log: bool = False, errors: Sequence[BinErrors] = ()
) -> Figure:
    """The histogram of x / absmax over each format's bins, all on one x axis.

    Over the histogram solid lines are the formats' levels and dashed ones the edges between their bins. Below it a bin is as
    wide as it is and as high as its share of the weights; the dashed line is the share that each would have if all had the
    same. A point's values for the readout are in its ``customdata``, under the names of ``READ``.
    """
    sampled = next((e.sampled for e in errors if e.sampled is not None), None)
    names = [*READ[:-1], f"RMSE (sample {100 * sampled:.2g} %)"] if sampled is not None else READ
    width = 2 / counts.size
    edges = np.linspace(-1, 1, counts.size + 1)
    share = 100 * counts / max(1, counts.sum())
    seen = share[share > 0]
    low, high = (float(seen.min()) / 2 if seen.size else 1e-3, float(share.max(initial=0)) * 1.06 or 1.0)
    outline = np.maximum(share, low) if log else share  # an axis of logarithms has no place for 0
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "fill": "tozeroy", "fillcolor": QUIET, "name": "histogram", "hoverinfo": "none",
            "x": edges[:-1] + width / 2, "y": outline, "line": {"shape": "hvh", "width": 0.5, "color": QUIET}, "meta": names,
            "customdata": [
                f"\t{a}\t{b}\t{s:.2f} %\t{n:,}\t"
                for a, b, s, n in zip(_texts(edges[:-1]), _texts(edges[1:]), share.tolist(), counts.tolist(), strict=True)
            ],
        }
    ]  # fmt: skip
    domains = _domains(len(stats))
    layout: dict[str, Any] = {
        "bargap": 0, "uirevision": "distribution", "hovermode": False, "showlegend": False, "annotations": [], "shapes": [],
        "margin": {"l": 48, "r": 12, "t": 6, "b": 36},
        "xaxis": {
            "title": {"text": "weight ÷ absmax of its block"}, "range": [-1.03, 1.03], "zeroline": False,
            "anchor": f"y{len(stats) + 1}",
        },
        "yaxis": {
            "domain": domains[0], "type": "log" if log else "linear", "ticksuffix": " %", "nticks": 5, "zeroline": False,
            "range": [np.log10(low), np.log10(high)] if log else [0, high], "dtick": 1 if log else None,
        },
    }  # fmt: skip
    for i, e in enumerate(stats):
        axis = str(i + 2)
        data += _lines(e, FORMAT_COLOURS[i], low, high)
        data.append(_occupancy(e, FORMAT_COLOURS[i], errors[i] if errors else None) | {"yaxis": f"y{axis}", "meta": names})
        _stand(layout, e, axis, domains[i + 1], float(np.max(data[-1]["y"], initial=0.0)))
    return {"data": data, "layout": layout}


def _domains(formats: int) -> list[tuple[float, float]]:
    """From where to where the histogram stands, then each format's bins, of the picture's height."""
    each = {1: 0.30, 2: 0.215}.get(formats, 0.16)
    low = [(formats - 1 - i) * (each + LABEL + GAP) for i in range(formats)]
    return [(low[0] + each + LABEL + GAP, 1.0), *((start, start + each) for start in low)]


def _stand(layout: dict[str, Any], e: ErrorStats, axis: str, domain: tuple[float, float], most: float) -> None:
    """A format's axis with its name over it, and the equal share as its one tick and a dashed line."""
    form = e.spec.definition
    equal = 100 / bins(e)[0].size
    of = ", of the median block" if moves_with_block(form) else ""
    layout[f"yaxis{axis}"] = {
        "domain": domain, "range": [0, max(1.3 * most, 1.1 * equal)], "tickvals": [equal], "ticktext": [f"{equal:.3g} %"],
        "fixedrange": True, "showgrid": False, "zeroline": False,
    }  # fmt: skip
    layout["annotations"].append(
        {
            "text": f"<b>{escaped(form.title)}</b>: weights in each bin{of}", "xref": "paper", "yref": "paper", "x": 0,
            "y": domain[1], "xanchor": "left", "yanchor": "bottom", "showarrow": False, "borderpad": 0,
        }
    )  # fmt: skip
    layout["shapes"].append(
        {
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": f"y{axis}", "y0": equal, "y1": equal,
            "line": {"color": REFERENCE, "dash": "dash", "width": 1}, "layer": "below",
        }
    )  # fmt: skip


def _lines(e: ErrorStats, colour: str, low: float, high: float) -> list[dict[str, Any]]:
    """A format's levels and edges as lines over the histogram, where they are the same in each block and few."""
    levels, lower, _ = bins(e)
    if moves_with_block(e.spec.definition) or levels.size > 16:
        return []
    shared = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    return [
        shared
        | {
            "x": np.repeat(xs, 3), "y": np.tile([low, high, np.nan], xs.size), "line": {"color": colour} | line,
            "opacity": opacity, "name": f"{e.spec.definition.title} {name}",
        }
        for xs, name, line, opacity in (
            (levels, "levels", {"width": 1.5}, 0.9),
            (lower[1:], "edges", {"width": 1, "dash": "dot"}, 0.45),
        )
    ]  # fmt: skip


def _occupancy(e: ErrorStats, colour: str, errors: BinErrors | None) -> dict[str, Any]:
    """A format's bins as bars; where there are hundreds, as steps: bars would be hairlines, and slow to draw."""
    form = e.spec.definition
    levels, lower, upper = bins(e)
    share = 100 * merge_equal_levels(form, e.occupancy)[1] / e.numel
    shared = {"y": share, "name": escaped(form.title), "hoverinfo": "none", "customdata": bin_texts(e, errors)}
    if levels.size > 16:
        line = {"shape": "hvh", "width": 1, "color": colour}
        return shared | {"type": "scatter", "mode": "lines", "fill": "tozeroy", "x": levels, "line": line}
    decimals = 0 if float(np.diff(levels).min(initial=1.0)) < 0.11 else 1  # what has room over the narrowest
    return shared | {
        "type": "bar", "x": (lower + upper) / 2, "width": upper - lower,
        "marker": {"color": colour, "line": {"width": 1, "color": QUIET}},
        "text": [f"{value:.{decimals}f}" for value in share], "textposition": "outside", "textangle": 0, "cliponaxis": False,
        "constraintext": "none", "textfont": {"size": 10},
    }  # fmt: skip


def bin_texts(e: ErrorStats, errors: BinErrors | None = None) -> list[str]:
    """The readout of each bin, under the names of ``READ``: its level, its edges, what falls into it, and that one's error."""
    levels, lower, upper = bins(e)
    count = merge_equal_levels(e.spec.definition, e.occupancy)[1]
    rmse = np.full(levels.size, np.nan) if errors is None else errors.rmse
    return [
        f"{level}\t{a}\t{b}\t{100 * n / e.numel:.2f} %\t{n:,}\t" + (f"{error:.3e}" if math.isfinite(error) else "")
        for level, a, b, n, error in zip(
            _texts(levels), _texts(lower), _texts(upper), count.tolist(), rmse.tolist(), strict=True
        )
    ]


def _texts(values: NDArray[np.float64]) -> list[str]:
    return [f"{value:+.4f}".replace("-", "−") for value in values.tolist()]
