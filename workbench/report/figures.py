"""The report's plots as plain plotly JSON: from rows, duels and ledgers to mappings with ``data`` and ``layout``.

Colours are names of the page's own (``{"$css": "--c0"}``, ``{"$scale": 5}``), which page.js looks up, so that light and dark
follow the reader's setting. Text that comes from a model or a user is escaped for plotly, which reads a few HTML tags in it.
Does not import plotly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.memory.forecast import MemoryLedger
from workbench.memory.ledger import GROUPS
from workbench.quant.formats import FORMATS
from workbench.quant.spec import QuantSpec
from workbench.surveys.places import Places
from workbench.surveys.rows import Row, pooled
from workbench.surveys.scores import Duel, winners
from workbench.text import NONE, memory_unit, percent, short

if TYPE_CHECKING:
    from workbench.cost.evaluation import Cost

Figure = dict[str, Any]

_MOST_KINDS = 24
_ABREAST = 3
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
        "xaxis": {"title": {"text": "layer"}, "showgrid": False, "zeroline": False, "tickformat": "d"}
        | ({"dtick": 1} if len(layers) <= 24 else {}),
        "yaxis": {"title": {"text": "relative RMSE, %"}},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def error_maps(rows: Sequence[Row], specs: Sequence[QuantSpec]) -> Figure | None:
    """Layers × kinds of relative RMSE, one map a specification, all on one colour scale; None without layers."""

    def error(i: int) -> Callable[[Row], float]:
        return lambda row: math.nan if row.error is not None else _percent(row.totals[i].relative_rmse)

    return _maps(rows, {spec.title: error(i) for i, spec in enumerate(specs)}, "relative RMSE, %", "{:.2f} %")


def kurtosis_map(rows: Sequence[Row]) -> Figure | None:
    """Layers × kinds of kurtosis; None without layers."""
    return _maps(rows, {"": lambda row: row.kurtosis}, "kurtosis", "{:.2f}")


def _maps(rows: Sequence[Row], values: dict[str, Callable[[Row], float]], unit: str, shown: str) -> Figure | None:
    """Maps side by side, at most ``_ABREAST``; a cell of several tensors shows the one with the largest value."""
    places, inside = _inside(rows)
    if not inside:
        return None
    abreast, lines = min(len(values), _ABREAST), -(-len(values) // _ABREAST)
    tall, label = _tall(places) * len(places.layers), 24 if any(values) else 0
    foot = 44  # the names of kinds
    height = lines * (tall + label + foot)
    layout: dict[str, Any] = {
        "height": height + 16, "margin": {"t": 8, "b": 8}, "annotations": [],
        "coloraxis": {"colorscale": {"$scale": 5}, "colorbar": _colorbar(unit)},
    }  # fmt: skip
    data = []
    for n, (title, value) in enumerate(values.items()):
        known = {row.tensor.name: value(row) for row in inside}
        cells = places.worst(known)
        z = _table(places, {at: known[name] for at, name in cells.items()}, None)
        hover = _table(places, {at: _hover(name, known[name], shown) for at, name in cells.items()}, "")
        axis, top = "" if n == 0 else str(n + 1), 1 - (n // abreast) * (tall + label + foot) / height - label / height
        left = (n % abreast) / abreast
        data.append(
            _heatmap(places, z, hover)
            | {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "coloraxis": "coloraxis", "xgap": 1, "ygap": 1}
        )
        layout[f"xaxis{axis}"] = _KIND_AXIS | {
            "domain": [left, left + 1 / abreast - 0.05 * (abreast > 1)],
            "anchor": f"y{axis}",
        }
        layout[f"yaxis{axis}"] = _layer_axis(places) | {"domain": [top - tall / height, top], "anchor": f"x{axis}"}
        layout["annotations"].append(
            {
                "text": text(title), "x": left, "xref": "paper", "xanchor": "left", "y": top, "yref": "paper",
                "yanchor": "bottom", "showarrow": False,
            }
        )  # fmt: skip
    return {"data": data, "layout": layout}


def _inside(rows: Sequence[Row]) -> tuple[Places, list[Row]]:
    """The map of the rows that are in layers, and those rows."""
    inside = [row for row in rows if row.layer is not None]
    return Places.arrange((row.tensor for row in inside), _MOST_KINDS), inside


def _table(places: Places, of: Mapping[tuple[int, int], object], empty: object) -> list[list[object]]:
    return [[of.get((row, column), empty) for column in range(len(places.kinds))] for row in range(len(places.layers))]


def _hover(name: str, value: float, shown: str) -> str:
    return f"{text(name)}: {NONE if math.isnan(value) else shown.format(value)}"


def _heatmap(places: Places, z: list[list[object]], hover: list[list[object]]) -> dict[str, Any]:
    return {
        "type": "heatmap", "x": [text(kind) for kind in places.kinds], "y": list(places.layers), "z": z, "text": hover,
        "hoverinfo": "text",
    }  # fmt: skip


def _tall(places: Places) -> int:
    """Pixels of a layer's line."""
    return max(5, min(_ROW, 480 // len(places.layers)))


def _colorbar(unit: str) -> dict[str, Any]:
    return {"title": {"text": unit, "side": "right", "font": {"size": 13}}, "thickness": 12, "outlinewidth": 0}


_KIND_AXIS = {"type": "category", "showgrid": False, "ticks": "", "fixedrange": True}


def _layer_axis(places: Places) -> dict[str, Any]:
    axis = {"title": {"text": "layer"}, "autorange": "reversed", "showgrid": False, "zeroline": False, "tickformat": "d"}
    return axis | {"fixedrange": True} | ({"dtick": 1} if len(places.layers) <= 24 else {})


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


def kl_bars(costs: Sequence[Cost]) -> Figure | None:
    """Each format's KL divergence from 16 bits with its 95 % interval, in the given order; None without formats."""
    if not costs:
        return None
    names = [text(cost.name) for cost in costs]
    kls = [cost.kl if math.isfinite(cost.kl) else None for cost in costs]
    low, high = ([cost.kl_interval[end] for cost in costs] for end in (0, 1))
    known = [math.isfinite(a) and math.isfinite(b) for a, b in zip(low, high, strict=True)]
    bars = {
        "type": "bar", "orientation": "h", "y": names, "x": kls, "hovertemplate": "%{y}: %{x:.4f} nats<extra></extra>",
        "marker": {"color": [format_colour(cost.spec.format) for cost in costs if cost.spec is not None]},
        "error_x": {
            "type": "data", "symmetric": False, "thickness": 1.5, "width": 5,
            "array": [b - cost.kl if there else 0 for cost, b, there in zip(costs, high, known, strict=True)],
            "arrayminus": [cost.kl - a if there else 0 for cost, a, there in zip(costs, low, known, strict=True)],
        },
    }  # fmt: skip
    layout = {
        "height": 90 + 30 * len(costs), "bargap": 0.35, "showlegend": False, "margin": {"t": 16, "r": 72},
        "xaxis": {"title": {"text": "KL divergence from 16 bits, nats a token"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "fixedrange": True, "showgrid": False},
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


def winner_map(duel: Duel) -> Figure | None:
    """Layers × kinds, each cell in the colour of the format that errs least there; None for a model without layers."""
    places, inside = _inside(duel.measured.rows)
    if not inside:
        return None
    formats = [score.spec.format for score in duel.contenders]
    cells: dict[tuple[int, int], list[Row]] = {}
    for row in inside:
        cells.setdefault(places.of[row.tensor.name], []).append(row)
    best = {at: winners([duel.measured.score(score.spec, own) for score in duel.contenders]) for at, own in cells.items()}

    said = {
        (row, column): f"layer {places.layers[row]}, {text(places.kinds[column])}: "
        + " and ".join(text(FORMATS[name].title) for name in names)
        for (row, column), names in best.items()
        if names
    }
    z = _table(places, {at: formats.index(names[0]) for at, names in best.items() if names}, None)
    n = len(formats)
    scale = [[edge / n, format_colour(name)] for i, name in enumerate(formats) for edge in (i, i + 1)]
    data: list[dict[str, Any]] = [
        _heatmap(places, z, _table(places, said, ""))
        | {"zmin": -0.5, "zmax": n - 0.5, "colorscale": scale, "showscale": False, "xgap": 1, "ygap": 1}
    ]
    seen = {formats.index(names[0]) for names in best.values() if names}
    data += [
        {
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": text(FORMATS[name].title),
            "marker": {"symbol": "square", "size": 11, "color": format_colour(name)}, "hoverinfo": "skip",
        }
        for i, name in enumerate(formats)
        if i in seen
    ]  # fmt: skip
    layout = {
        "height": 120 + _tall(places) * len(places.layers), "showlegend": True,
        "xaxis": _KIND_AXIS, "yaxis": _layer_axis(places),
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
    """Forecast memory by method, stacked by what takes it."""
    unit, _ = memory_unit(max(ledger.total for ledger in ledgers))
    names = [ledger.title for ledger in ledgers]
    data = stacked_memory(names, ledgers, [colour(i) for i in range(len(GROUPS))])
    layout = {
        "height": 330, "barmode": "stack", "bargap": 0.35, "showlegend": True, "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": f"{unit}, forecast"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "fixedrange": True, "showgrid": False},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def stacked_memory(names: Sequence[str], ledgers: Sequence[MemoryLedger], colours: Sequence[object]) -> list[Figure]:
    """Forecasts as stacked bars, each by its name, in the ``memory_unit`` of the largest: a trace for each of ``GROUPS``."""
    unit, size = memory_unit(max(ledger.total for ledger in ledgers))
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
