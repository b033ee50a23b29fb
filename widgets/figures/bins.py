"""From ``ErrorStats`` and its kin to the figures of a format's bins: plain functions from values to values, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widgets.figures.layout import Figure
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


def distribution(
    counts: NDArray[np.int64], stats: Sequence[ErrorStats], log: bool = False, errors: Sequence[BinErrors] = ()
) -> Figure:
    """The histogram of x / absmax with each format's levels over it, and below it a strip of bins a format.

    Solid lines are levels, dotted ones decision edges; a strip's bins are shaded by how many weights fall into them.
    """
    width = 2 / counts.size
    centres = np.linspace(-1 + width / 2, 1 - width / 2, counts.size)
    share = 100 * counts / max(1, counts.sum())
    seen = share[share > 0]
    low, high = (float(seen.min()) / 2 if seen.size else 1e-3, float(share.max(initial=0)) * 1.06 or 1.0)
    outline = np.maximum(share, low) if log else share  # an axis of logarithms has no place for 0
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "fill": "tozeroy", "fillcolor": QUIET, "x": centres, "y": outline,
            "line": {"shape": "hvh", "width": 0.5, "color": QUIET}, "name": "weights", "showlegend": False,
            "hovertemplate": "x / absmax near %{x:.3f}<br>%{y:.3g} % of weights<extra></extra>",
        }
    ]  # fmt: skip
    strip = 0.11 * len(stats)
    ticks, names = [], []
    for i, e in enumerate(stats):
        colour, form = FORMAT_COLOURS[i], e.spec.definition
        levels, lower, _ = bins(e)
        drawn = () if moves_with_block(form) or levels.size > 16 else ("levels", "edges")
        for xs, name, line in (
            (levels, "levels", {"color": colour, "width": 1.5}),
            (lower[1:], "edges", {"color": colour, "width": 1, "dash": "dot"}),
        ):
            if name not in drawn:
                continue
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": np.repeat(xs, 3), "y": np.tile([low, high, np.nan], xs.size),
                    "line": line, "opacity": 0.85 if name == "levels" else 0.5, "hoverinfo": "skip",
                    "name": f"{form.title} {name}",
                }
            )  # fmt: skip
        data.append(_strip(e, i, len(stats), errors[i] if errors else None))
        ticks.append(len(stats) - 1 - i + 0.5)
        names.append(form.title + (" (median block)" if moves_with_block(form) else ""))
    layout = {
        "barmode": "overlay", "bargap": 0, "uirevision": "distribution", "hovermode": "x",
        "xaxis": {"title": {"text": "weight / absmax of its block"}, "range": [-1.03, 1.03], "anchor": "y2", "zeroline": False},
        "yaxis": {
            "title": {"text": "% of weights" + (", logarithmic" if log else "")}, "domain": [strip + 0.05, 1],
            "type": "log" if log else "linear", "range": [np.log10(low), np.log10(high)] if log else [0, high],
        },
        "yaxis2": {
            "domain": [0, strip], "range": [0, len(stats)], "tickvals": ticks, "ticktext": names, "fixedrange": True,
            "showgrid": False, "zeroline": False,
        },
        "margin": {"l": 64, "r": 20, "t": 52, "b": 48},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def bin_texts(e: ErrorStats, errors: BinErrors | None = None) -> list[str]:
    """What hovering over each bin shows: its level, edges, count and share, and the error of what falls into it."""
    form = e.spec.definition
    levels, lower, upper = bins(e)
    count = merge_equal_levels(form, e.occupancy)[1]
    texts = [
        f"{form.title} bin {k} of {levels.size}<br>level {level:+.4f}<br>from {a:+.4f} to {b:+.4f}<br>"
        f"{n:,} weights, {100 * n / e.numel:.2f} %"
        for k, (level, a, b, n) in enumerate(zip(levels, lower, upper, count, strict=True), 1)
    ]
    if errors is None:
        return texts
    of = "" if errors.sampled is None else f" (sample of {100 * errors.sampled:.2g} %)"
    return [
        text + (f"<br>RMSE {error:.3e}{of}" if np.isfinite(error) else "")
        for text, error in zip(texts, errors.rmse, strict=True)
    ]


def _strip(e: ErrorStats, i: int, of: int, errors: BinErrors | None) -> dict[str, Any]:
    """A format's bins as a row of rectangles shaded by occupancy."""
    form = e.spec.definition
    levels, lower, upper = bins(e)
    count = merge_equal_levels(form, e.occupancy)[1]
    share = 100 * count / e.numel
    text = bin_texts(e, errors)
    strength = 0.12 + 0.88 * share / max(float(share.max(initial=0)), 1e-9)
    return {
        "type": "bar", "x": (lower + upper) / 2, "width": upper - lower, "y": np.full(levels.size, 0.8), "yaxis": "y2",
        "base": np.full(levels.size, of - 1 - i + 0.1), "hovertext": text, "hoverinfo": "text", "showlegend": False,
        "name": form.title, "marker": {"color": FORMAT_COLOURS[i], "opacity": strength, "line": {"width": 1, "color": QUIET}},
    }  # fmt: skip


def occupancy(stats: Sequence[ErrorStats], errors: Sequence[BinErrors] = ()) -> Figure:
    """How full each bin is, beside the equal share of 1/16 that all bins of an ideal quantile format would have."""
    data: list[dict[str, Any]] = []
    for i, e in enumerate(stats):
        levels, count = merge_equal_levels(e.spec.definition, e.occupancy)
        bars = {"type": "bar", "marker": {"color": FORMAT_COLOURS[i]}}
        steps = {  # 256 bars are hairlines, and slow to draw
            "type": "scatter", "mode": "lines", "fill": "tozeroy",
            "line": {"shape": "hvh", "width": 1, "color": FORMAT_COLOURS[i]},
        }  # fmt: skip
        data.append(
            (bars if levels.size <= 16 else steps)
            | {
                "x": np.arange(levels.size), "y": 100 * count / e.numel, "name": e.spec.definition.title,
                "hovertext": bin_texts(e, errors[i] if errors else None), "hoverinfo": "text",
            }
        )  # fmt: skip
    most = max(np.unique(e.spec.definition.levels).size for e in stats)
    data.append(
        {
            "type": "scatter", "mode": "lines", "x": np.array([-0.6, 15.6]), "y": np.array([6.25, 6.25]),
            "name": "equal share, 6.25 %", "line": {"color": REFERENCE, "dash": "dash", "width": 1.5}, "hoverinfo": "skip",
        }
    )  # fmt: skip
    layout = {
        "barmode": "group", "bargap": 0.2, "uirevision": "occupancy",
        "xaxis": {
            "title": {"text": "bin, from the lowest level to the highest"}, "dtick": 1 if most <= 16 else 16,
            "range": [-0.6, max(15.6, most - 0.4)],
            "zeroline": False,
        },
        "yaxis": {"title": {"text": "% of weights"}, "rangemode": "tozero"},
    }  # fmt: skip
    return {"data": data, "layout": layout}
