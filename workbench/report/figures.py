"""The report's plots as plain plotly JSON: from rows, duels and ledgers to mappings with ``data`` and ``layout``.

Colours are names of the page's own (``{"$css": "--c0"}``, ``{"$scale": 5}``), which page.js looks up, so that light and dark
follow the reader's setting. Text that comes from a model or a user is escaped for plotly, which reads a few HTML tags in it.
Does not import plotly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.memory.forecast import MemoryLedger
from workbench.memory.ledger import GROUPS
from workbench.quant.formats import FORMATS
from workbench.quant.spec import QuantSpec
from workbench.sources.kinds import order_of
from workbench.surveys.rows import Row, pooled
from workbench.surveys.scores import Duel, winners
from workbench.text import NONE, percent, short

Figure = dict[str, Any]

_MOST_KINDS = 24
_ROW, _DASHES = 24, ("solid", "dash", "dot", "dashdot", "longdash")


def colour(index: int) -> dict[str, str]:
    """One of the page's twelve colours."""
    return {"$css": f"--c{index % 12}"}


def format_colour(name: str) -> dict[str, str]:
    """A format's colour, the same in every plot."""
    return colour(list(FORMATS).index(name))


def text(value: object) -> str:
    """Fit for a label: bounded, printable, and without anything that plotly would read as a tag."""
    return html.escape(short(str(value)), quote=False)


def layer_lines(rows: Sequence[Row], specs: Sequence[QuantSpec]) -> Figure | None:
    """The relative RMSE of each layer, its tensors pooled; None for a model without layers."""
    layers = sorted({row.layer for row in rows if row.layer is not None})
    if not layers:
        return None
    used: dict[str, int] = {}
    data = []
    for i, spec in enumerate(specs):
        nth = used[spec.format] = used.get(spec.format, -1) + 1
        y = [_percent(pooled([r.totals[i] for r in rows if r.layer == layer]).relative_rmse) for layer in layers]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers" if len(layers) < 60 else "lines", "x": layers, "y": y,
                "name": text(spec.title), "marker": {"size": 6},
                "line": {"color": format_colour(spec.format), "width": 2, "dash": _DASHES[nth % len(_DASHES)]},
                "hovertemplate": "layer %{x}: %{y:.2f} %",
            }
        )  # fmt: skip
    layout = {
        "height": 340, "hovermode": "x unified", "showlegend": True,
        "xaxis": _layer_axis(layers),
        "yaxis": {"title": {"text": "relative RMSE, %"}},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def error_maps(rows: Sequence[Row], specs: Sequence[QuantSpec]) -> Figure | None:
    """Layers × kinds of relative RMSE, one map a specification, all on one colour scale; None without layers."""

    def error(i: int) -> Callable[[Sequence[Row]], float]:
        return lambda cell: _percent(pooled([row.totals[i] for row in cell]).relative_rmse)

    return _maps(rows, {spec.title: error(i) for i, spec in enumerate(specs)}, "relative RMSE, %", "{:.2f} %")


def kurtosis_map(rows: Sequence[Row]) -> Figure | None:
    """Layers × kinds of kurtosis, the largest where several tensors share a cell; None without layers."""
    return _maps(rows, {"": lambda cell: float(np.fmax.reduce([row.kurtosis for row in cell]))}, "kurtosis", "{:.2f}")


def _maps(rows: Sequence[Row], values: dict[str, Callable[[Sequence[Row]], float]], unit: str, shown: str) -> Figure | None:
    layers, kinds, cells = _cells(rows)
    if not layers:
        return None
    tall, label = _ROW * len(kinds), 40 if any(values) else 0
    height = len(values) * (tall + label)
    layout: dict[str, Any] = {
        "height": height + 76, "margin": {"t": 16, "b": 60}, "annotations": [],
        "coloraxis": {"colorscale": {"$scale": 5}, "colorbar": _colorbar(unit)},
        "xaxis": _layer_axis(layers) | {"anchor": f"y{len(values)}" if len(values) > 1 else "y"},
    }  # fmt: skip
    data = []
    for n, (title, value) in enumerate(values.items()):
        z = [[value(cells[layer, kind]) if (layer, kind) in cells else None for layer in layers] for kind in kinds]
        hover = [
            [
                "" if v is None else f"layer {layer}, {text(kind)}: {NONE if math.isnan(v) else shown.format(v)}"
                for layer, v in zip(layers, line, strict=True)
            ]
            for kind, line in zip(kinds, z, strict=True)
        ]
        axis = "" if n == 0 else str(n + 1)
        bottom = (len(values) - 1 - n) * (tall + label) / height
        data.append(
            {
                "type": "heatmap", "x": layers, "y": [text(kind) for kind in kinds], "z": z, "text": hover, "hoverinfo": "text",
                "yaxis": f"y{axis}", "coloraxis": "coloraxis", "xgap": 1, "ygap": 1,
            }
        )  # fmt: skip
        layout[f"yaxis{axis}"] = _KIND_AXIS | {"domain": [bottom, min(1.0, bottom + tall / height)]}
        layout["annotations"].append(
            {
                "text": text(title), "x": 0, "xref": "paper", "xanchor": "left", "y": bottom + tall / height, "yref": "paper",
                "yanchor": "bottom", "showarrow": False,
            }
        )  # fmt: skip
    return {"data": data, "layout": layout}


def _colorbar(unit: str) -> dict[str, Any]:
    return {"title": {"text": unit, "side": "right", "font": {"size": 13}}, "thickness": 12, "outlinewidth": 0}


_KIND_AXIS = {"autorange": "reversed", "type": "category", "showgrid": False, "ticks": "", "fixedrange": True}


def _layer_axis(layers: Sequence[int]) -> dict[str, Any]:
    axis = {"title": {"text": "layer"}, "showgrid": False, "zeroline": False, "tickformat": "d"}
    return axis | ({"dtick": 1} if len(layers) <= 24 else {})


def _cells(rows: Sequence[Row]) -> tuple[list[int], list[str], dict[tuple[int, str], list[Row]]]:
    """(layers, kinds, the rows of each); kinds beyond the first 23 are gathered as "other"."""
    inside = [row for row in rows if row.layer is not None]
    order = sorted({row.kind for row in inside}, key=order_of)
    kinds = order if len(order) <= _MOST_KINDS else [*order[: _MOST_KINDS - 1], "other"]
    cells: dict[tuple[int, str], list[Row]] = {}
    for row in inside:
        assert row.layer is not None
        cells.setdefault((row.layer, row.kind if row.kind in kinds else "other"), []).append(row)
    return sorted({layer for layer, _ in cells}), kinds, cells


def duel_bars(duel: Duel) -> Figure:
    """Each contender's relative RMSE, the least first."""
    names = [f"{text(s.spec.definition.title)}, {s.spec.bits_per_weight:.6g} bits" for s in duel.ranked]
    bars = error_bars(
        names, [_percent(s.relative_rmse) for s in duel.ranked], [percent(s.relative_rmse) for s in duel.ranked],
        [text(s.spec.title) for s in duel.ranked], marker={"color": [format_colour(s.spec.format) for s in duel.ranked]},
        hovertemplate="%{hovertext}: %{x:.3f} %<extra></extra>",
    )  # fmt: skip
    layout = {
        "height": 90 + 30 * len(duel.contenders), "bargap": 0.35, "showlegend": False, "margin": {"t": 16, "r": 72},
        "xaxis": {"title": {"text": "relative RMSE over all tensors, %"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "fixedrange": True, "showgrid": False},
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


def winner_map(duel: Duel) -> Figure | None:
    """Layers × kinds, each cell in the colour of the format that errs least there; None for a model without layers."""
    layers, kinds, cells = _cells(duel.measured.rows)
    if not layers:
        return None
    formats = [score.spec.format for score in duel.contenders]
    specs = [score.spec for score in duel.contenders]
    z: list[list[int | None]] = []
    hover: list[list[str]] = []
    for kind in kinds:
        z.append([])
        hover.append([])
        for layer in layers:
            rows = cells.get((layer, kind), [])
            best = winners([duel.measured.score(spec, rows) for spec in specs]) if rows else ()
            z[-1].append(formats.index(best[0]) if best else None)
            titles = " and ".join(text(FORMATS[name].title) for name in best)
            hover[-1].append(f"layer {layer}, {text(kind)}: {titles}" if best else "")
    n = len(formats)
    scale = [[edge / n, format_colour(name)] for i, name in enumerate(formats) for edge in (i, i + 1)]
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap", "x": layers, "y": [text(kind) for kind in kinds], "z": z, "text": hover, "hoverinfo": "text",
            "zmin": -0.5, "zmax": n - 0.5, "colorscale": scale, "showscale": False, "xgap": 1, "ygap": 1,
        }
    ]  # fmt: skip
    seen = {i for line in z for i in line if i is not None}
    data += [
        {
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": text(FORMATS[name].title),
            "marker": {"symbol": "square", "size": 11, "color": format_colour(name)}, "hoverinfo": "skip",
        }
        for i, name in enumerate(formats)
        if i in seen
    ]  # fmt: skip
    layout = {
        "height": 120 + _ROW * len(kinds), "showlegend": True,
        "xaxis": _layer_axis(layers), "yaxis": _KIND_AXIS,
    }  # fmt: skip
    return {"data": data, "layout": layout}


def double_quant_moves(duel: Duel) -> Figure | None:
    """Bits against error, a line from each format without double quantization to the same with it; None where none has both."""
    data = []
    for name, trade in duel.trades.items():
        ends = (trade.plain, trade.double)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": text(FORMATS[name].title),
                "x": [score.bits for score in ends], "y": [_percent(score.relative_rmse) for score in ends],
                "line": {"color": format_colour(name), "width": 1.5}, "hovertext": [text(s.spec.title) for s in ends],
                "marker": {"size": 10, "symbol": ["circle", "diamond"], "color": format_colour(name)},
                "hovertemplate": "%{hovertext}<br>%{x:.4f} bits, %{y:.3f} %<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "height": 340, "showlegend": True,
        "xaxis": {"title": {"text": "bits per weight, everything counted"}},
        "yaxis": {"title": {"text": "relative RMSE, %"}},
    }  # fmt: skip
    return {"data": data, "layout": layout} if data else None


def memory_bars(ledgers: Sequence[MemoryLedger]) -> Figure:
    """Forecast gigabytes by method, stacked by what takes them."""
    unit, size = ("GB", 1e9) if max(ledger.total for ledger in ledgers) >= 1e9 else ("MB", 1e6)
    names = [ledger.title for ledger in ledgers]
    data = stacked_memory(names, ledgers, [colour(i) for i in range(len(GROUPS))], unit, size)
    layout = {
        "height": 330, "barmode": "stack", "bargap": 0.35, "showlegend": True, "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": f"{unit}, forecast"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "fixedrange": True, "showgrid": False},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def stacked_memory(
    names: Sequence[str], ledgers: Sequence[MemoryLedger], colours: Sequence[object], unit: str = "GB", size: float = 1e9
) -> list[Figure]:
    """Forecasts as stacked bars, each by its name: a trace and a colour for each of ``GROUPS``, ``size`` bytes a ``unit``."""
    return [
        {
            "type": "bar", "orientation": "h", "y": names, "name": group, "marker": {"color": own},
            "x": [ledger.groups[group] / size for ledger in ledgers],
            "hovertemplate": f"{group}: %{{x:.3f}} {unit}<extra>%{{y}}</extra>",
        }
        for group, own in zip(GROUPS, colours, strict=True)
    ]  # fmt: skip


def error_bars(names: Sequence[str], values: Sequence[float], text: Sequence[str], hover: Sequence[str], **more: Any) -> Figure:
    """A trace of horizontal bars, one an error, each with its number at its end; ``more`` of plotly's own properties."""
    return {
        "type": "bar", "orientation": "h", "y": names, "x": values, "text": text, "textposition": "outside",
        "cliponaxis": False, "hovertext": hover, **more,
    }  # fmt: skip


def _percent(ratio: float) -> float:
    return 100 * ratio
