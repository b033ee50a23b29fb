"""The figures of a whole model and of formats against each other: the model map, the duel, the Pareto front. No widgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from widgets.figures.layout import Figure, escaped
from widgets.figures.palette import CHOSEN, CRIMSON, FORMAT_COLOURS, GREY, QUIET, SYMBOLS
from widgets.state import MAP_FIELDS
from workbench.quant.formats import FORMATS, find_format
from workbench.report.figures import error_bars
from workbench.surveys.places import Places as Places
from workbench.surveys.rows import Row
from workbench.surveys.scores import Duel, Pareto, ParetoPoint
from workbench.text import amount, number, percent


def value_of(row: Row, field: str) -> float:
    """What the map shows of a tensor: NaN after an error."""
    if row.error is not None:
        return math.nan
    totals = row.totals[0]
    if field == "nbytes":
        return float(totals.spec.nbytes(totals.numel))
    return float(row.kurtosis if field == "kurtosis" else getattr(totals, field))


def badness(row: Row, field: str) -> float:
    """``value_of``, with SQNR negated, so that more is always worse."""
    value = value_of(row, field)
    return -value if field == "sqnr_db" else value


def format_value(value: float, field: str) -> str:
    """A value of the map as text."""
    if math.isnan(value):
        return "not known"
    if field == "nbytes":
        return amount(value)
    return {"relative_rmse": f"{100 * value:.2f} %", "sqnr_db": f"{value:.2f} dB"}.get(field, f"{value:.3g}")


@dataclass(frozen=True)
class Shown:
    """What a map shows of a tensor."""

    name: str
    value: float
    """NaN where it is not known."""
    bad: float
    """The same value so that more is worse: of several tensors in a cell the worst is shown."""
    text: str
    """What hovering over it shows below its name."""


def model_map(places: Places, rows: Sequence[Row], field: str, selected: str = "", layer: int | None = None) -> Figure:
    """Layers × kinds, coloured by a field of the rows that there are. SQNR's colours run backwards: bright is worse."""
    name = MAP_FIELDS[field]
    shown = [
        Shown(r.tensor.name, value := value_of(r, field), badness(r, field), r.error or f"{name}: {format_value(value, field)}")
        for r in rows
    ]
    ticks = ".2%" if field == "relative_rmse" else "~s" if field == "nbytes" else ""
    return cell_map(places, shown, name, ticks, reverse=field == "sqnr_db", selected=selected, layer=layer)


def cell_map(
    places: Places,
    shown: Iterable[Shown],
    title: str,
    tickformat: str,
    *,
    reverse: bool = False,
    selected: str = "",
    layer: int | None = None,
) -> Figure:
    """Layers × kinds, coloured by what is shown of the tensors so far; a cell of several tensors shows the worst of them.

    ``title`` and ``tickformat`` (of d3) are the colour bar's. The chosen tensor's cell and the listed layer are marked.
    """
    shape = (len(places.layers), len(places.kinds))
    z, text = np.full(shape, np.nan, np.float32), np.full(shape, "", object)
    known = {one.name: one for one in shown}
    for at, name in places.worst({name: one.bad for name, one in known.items()}).items():
        z[at], text[at] = known[name].value, f"{escaped(name)}<br>{escaped(known[name].text)}"
    there = np.full(shape, np.nan, np.float32)
    for place in places.of.values():
        there[place] = 0.0
    grid = {"x0": 0, "dx": 1, "y0": 0, "dy": 1, "xgap": 2, "ygap": 1 if shape[0] < 60 else 0, "hoverongaps": False}
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap", "z": there, **grid, "colorscale": [[0, "rgba(128,128,128,0.16)"], [1, "rgba(128,128,128,0.16)"]],
            "showscale": False, "hoverinfo": "skip", "name": "not measured yet",
        },
        {
            "type": "heatmap", "z": z, **grid, "colorscale": "Viridis", "reversescale": reverse, "text": text.tolist(),
            "hovertemplate": "%{text}<extra></extra>", "name": title,
            "colorbar": {
                "title": {"text": title, "side": "right", "font": {"size": 11}}, "thickness": 12, "tickformat": tickformat,
            },
        }
    ]  # fmt: skip
    if selected in places.of:
        y, x = places.of[selected]
        data.append(
            {
                "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False, "name": "chosen tensor",
                "x": np.array([x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5]),
                "y": np.array([y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5]), "line": {"color": CHOSEN, "width": 3},
            }
        )  # fmt: skip
    if layer in places.layers:
        y = places.layers.index(layer)
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": np.array([-0.72]), "y": np.array([y]), "hoverinfo": "skip",
                "marker": {"symbol": "triangle-right", "size": 11, "color": CHOSEN}, "showlegend": False,
                "name": "listed layer", "cliponaxis": False,
            }
        )  # fmt: skip
    step = max(1, -(-shape[0] // 24))
    ticks = [i for i in range(shape[0]) if i % step == 0 or places.layers[i] is None]
    layout = {
        "uirevision": f"map {shape}", "margin": {"l": 44, "r": 4, "t": 6, "b": 36},
        "xaxis": {
            "tickvals": list(range(shape[1])), "ticktext": list(map(escaped, places.kinds)), "range": [-0.8, shape[1] - 0.5],
            "showgrid": False, "zeroline": False, "title": {"text": "kind of tensor"},
        },
        "yaxis": {
            "tickvals": ticks, "ticktext": ["outside" if (n := places.layers[i]) is None else str(n) for i in ticks],
            "range": [shape[0] - 0.5, -0.5], "showgrid": False, "zeroline": False, "title": {"text": "layer"},
        },
    }  # fmt: skip
    return {"data": data, "layout": layout}


def duel_figure(found: Duel) -> Figure:
    """A bar for each contender, its relative RMSE, in the order of the formats; the least error is named, not coloured in.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.

    >>> import widgets
    >>> found = wb.duel(np.linspace(-1, 1, 4096, dtype=np.float32), 4.5)
    >>> widgets.duel_figure(found)["data"][0]["y"][:4]
    ['NF4', 'FP4', 'AF4', 'INT4']
    """
    best = found.winners()
    names = [score.spec.definition.title for score in found.contenders]
    text = [percent(score.relative_rmse) + (" · least" if score.spec.format in best else "") for score in found.contenders]
    hover = [
        f"{escaped(s.spec.title)}<br>{s.bits:.4f} bits per weight<br>relative RMSE {percent(s.relative_rmse, 3)}<br>"
        f"SQNR {number(s.sqnr_db, '.2f')} dB"
        for s in found.contenders
    ]
    values = [score.relative_rmse for score in found.contenders]
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    hatched = ["/" if s.spec.format in best else "" for s in found.contenders]
    marker = {"color": FORMAT_COLOURS[0], "line": {"width": 0}, "pattern": {"shape": hatched}}
    bars = error_bars(list(map(escaped, names)), values, text, hover, hoverinfo="text", name="contenders", marker=marker)
    layout = {
        "showlegend": False, "bargap": 0.35, "uirevision": "duel",
        "xaxis": {"title": {"text": "relative RMSE"}, "tickformat": ".1%", "range": [0, 1.3 * top]},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "margin": {"l": 120, "r": 20, "t": 20, "b": 48},
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


def pareto_figure(found: Pareto, bits: float | None = None, chosen: Sequence[str] = ()) -> Figure:
    """Relative RMSE against stored bits per weight, a line a format through its block sizes, the front as a grey step.

    Codes of two widths, such as 4 and 8 bits, stand side by side, each with axes of its own: between them there is nothing.
    More widths share their axes, the error in powers of ten. The ``chosen`` formats have their colours, each line its name at
    its right end.
    """
    lines: dict[str, list[ParetoPoint]] = {}
    for point in found.points:
        lines.setdefault(point.score.spec.format, []).append(point)
    known = list(FORMATS)
    names = sorted(lines, key=lambda name: known.index(name) if name in known else len(known))
    sizes = sorted({find_format(name).bits for name in names})
    panels = [(size,) for size in sizes] if len(sizes) <= 2 else [tuple(sizes)]
    axes = {size: "" if i == 0 else str(i + 1) for i, panel in enumerate(panels) for size in panel}
    data = [_front(found, panel, axes[panel[0]]) for panel in panels]
    for i, name in enumerate(names):
        colour = FORMAT_COLOURS[chosen.index(name)] if name in chosen else GREY
        data.append(_through_block_sizes(lines[name], i, axes[find_format(name).bits], colour))
    if bits is not None:
        data.append(_target(found, bits, axes, panels))
    layout: dict[str, Any] = {
        "uirevision": f"pareto {sizes}", "showlegend": False, "margin": {"l": 44, "r": 60, "t": 8, "b": 36}, "annotations": [],
    }  # fmt: skip
    ends = [(0.0, 1.0)] if len(panels) == 1 else [(0.0, 0.54), (0.86, 1.0)]
    for panel, domain in zip(panels, ends, strict=True):
        axis, log = axes[panel[0]], len(panel) > 1
        own = {name: lines[name] for name in names if find_format(name).bits in panel}
        layout[f"xaxis{axis}"] = {
            "title": {"text": "bits per weight" if log else f"bits per weight, codes of {panel[0]}"}, "domain": list(domain),
            "range": _reach([p.score.bits for name in own for p in own[name]]), "nticks": 5, "zeroline": False,
            "anchor": f"y{axis}",
        }  # fmt: skip
        layout[f"yaxis{axis}"] = {
            "title": {"text": "relative RMSE" if not axis else ""}, "tickformat": ".3~%", "anchor": f"x{axis}",
            "zeroline": False, "type": "log" if log else "linear",
        }  # fmt: skip
        layout["annotations"] += _line_names(own, axis, chosen, log)
    return {"data": data, "layout": layout}


def _reach(values: Sequence[float]) -> list[float]:
    """A range that leaves some space at either end."""
    low, high = min(values), max(values)
    space = 0.06 * (high - low) or 0.1
    return [low - space, high + space]


def _line_names(
    lines: Mapping[str, Sequence[ParetoPoint]], axis: str, chosen: Sequence[str], log: bool
) -> list[dict[str, Any]]:
    """The names of lines at their right ends, apart by at least the height of a text in a picture of the usual height."""

    def height(point: ParetoPoint) -> float:
        """Where plotly has the point on the axis; what errs by nothing has no place on one of powers of ten."""
        error = point.score.relative_rmse
        return error if not log else math.log10(error) if error > 0 else math.nan

    last = {name: max(points, key=lambda p: p.score.bits) for name, points in lines.items()}
    heights = [at for points in lines.values() for p in points if math.isfinite(at := height(p))]
    least = 0.042 * (max(heights, default=0.0) - min(heights, default=0.0))
    notes, taken = [], -math.inf
    for name in sorted(last, key=lambda name: last[name].score.relative_rmse):
        score, at = last[name].score, height(last[name])
        if not math.isfinite(at):
            continue
        if len(lines[name]) > 1:  # a single mark stands among the lines, and its name beside it
            at = taken = max(at, taken + least)
        title = escaped(score.spec.definition.title)
        notes.append(
            {
                "text": f"<b>{title}</b>" if name in chosen else title, "x": score.bits, "y": at,
                "xref": f"x{axis}", "yref": f"y{axis}", "xanchor": "left", "xshift": 7, "showarrow": False,
            }
        )  # fmt: skip
    return notes


def _front(found: Pareto, sizes: Sequence[int], axis: str) -> dict[str, Any]:
    front = [score for score in found.front if score.spec.definition.bits in sizes]
    return {
        "type": "scatter", "mode": "lines", "x": np.array([s.bits for s in front]), "xaxis": f"x{axis}", "yaxis": f"y{axis}",
        "y": np.array([s.relative_rmse for s in front]), "name": "front: nothing beats these", "hoverinfo": "skip",
        "line": {"shape": "hv", "color": QUIET, "width": 6},
    }  # fmt: skip


def _through_block_sizes(points: Sequence[ParetoPoint], i: int, axis: str, colour: str) -> dict[str, Any]:
    hover = [
        f"{escaped(p.score.spec.title)}<br>{p.score.bits:.4f} bits per weight, {amount(p.score.nbytes)}<br>"
        f"relative RMSE {percent(p.score.relative_rmse, 3)}, SQNR {number(p.score.sqnr_db, '.2f')} dB"
        + ("<br>on the front" if p.on_front else "")
        for p in points
    ]
    return {
        "type": "scatter", "mode": "lines+markers", "x": np.array([p.score.bits for p in points]), "xaxis": f"x{axis}",
        "y": np.array([p.score.relative_rmse for p in points]), "yaxis": f"y{axis}",
        "name": escaped(points[0].score.spec.definition.title), "hovertext": hover, "hoverinfo": "text",
        "line": {"width": 1 if colour == GREY else 2, "color": colour},
        "marker": {
            "symbol": SYMBOLS[i % len(SYMBOLS)], "size": [10 if p.on_front else 6 for p in points], "line": {"width": 0},
            "color": colour,
        },
    }  # fmt: skip


def _target(found: Pareto, bits: float, axes: Mapping[int, str], panels: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """The duel's bits as a line, over the formats that could have as many."""
    panel = max((panel for panel in panels if panel[0] <= bits), default=panels[0])
    size = panel[0]
    errors = [p.score.relative_rmse for p in found.points if p.score.spec.definition.bits in panel]
    return {
        "type": "scatter", "mode": "lines+text", "x": np.array([bits, bits]),
        "y": np.array([min(errors, default=0.0), max(errors, default=1.0)]), "text": ["", f" duel: {bits:g} bits"],
        "textposition": "middle right", "xaxis": f"x{axes[size]}", "yaxis": f"y{axes[size]}", "hoverinfo": "skip",
        "name": f"duel: {bits:g} bits", "line": {"color": CRIMSON, "dash": "dash", "width": 1.5},
    }  # fmt: skip
