"""The figures of a whole model and of formats against each other: the model map, the duel, the Pareto front. No widgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from widgets.figures import QUIET, Figure
from widgets.state import MAP_FIELDS
from widgets.tables import amount
from workbench.kinds import kind_of, layer_of
from workbench.scores import Duel, Pareto
from workbench.sources import TensorInfo
from workbench.survey_rows import Row

_USUAL = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")
"""The order in which kinds stand; others follow in the checkpoint's order."""


@dataclass(frozen=True)
class Places:
    """Where each tensor stands on the map: the columns are kinds, the rows layers, those outside the layers last."""

    kinds: tuple[str, ...]
    layers: tuple[int | None, ...]
    of: Mapping[str, tuple[int, int]]
    """Tensor name → (row, column). Several may share a cell: the experts of a layer."""

    @classmethod
    def arrange(cls, tensors: Iterable[TensorInfo]) -> Places:
        """A cell for each layer and kind that there is."""
        found = {t.name: (layer_of(t.name), kind_of(t.name)) for t in tensors}
        present = dict.fromkeys(kind for _, kind in found.values())
        kinds = tuple([kind for kind in _USUAL if kind in present] + [kind for kind in present if kind not in _USUAL])
        layers = tuple(sorted({layer for layer, _ in found.values()}, key=lambda layer: (layer is None, layer)))
        return cls(kinds, layers, {name: (layers.index(a), kinds.index(b)) for name, (a, b) in found.items()})

    def in_cell(self, x: float, y: float) -> list[str]:
        """The tensors of the cell at (x, y)."""
        return [name for name, place in self.of.items() if place == (round(y), round(x))]


def value_of(row: Row, field: str) -> float:
    """What the map shows of a tensor: NaN after an error."""
    if row.error is not None:
        return math.nan
    totals = row.totals[0]
    if field == "nbytes":
        return float(totals.spec.nbytes(totals.numel))
    return float(row.kurtosis if field == "kurtosis" else getattr(totals, field))


def badness(row: Row, field: str) -> float:
    """The same, so that more is worse: a small SQNR is bad."""
    value = value_of(row, field)
    return -value if field == "sqnr_db" else value


def told(value: float, field: str) -> str:
    """A value of the map as text."""
    if math.isnan(value):
        return "not known"
    if field == "nbytes":
        return amount(value)
    return {"relative_rmse": f"{100 * value:.2f} %", "sqnr_db": f"{value:.2f} dB"}.get(field, f"{value:.3g}")


def model_map(places: Places, rows: Sequence[Row], field: str, selected: str = "", layer: int | None = None) -> Figure:
    """Layers × kinds, coloured by a field of the rows that there are; a cell of several tensors shows the worst of them.

    The chosen tensor's cell is outlined, and the listed layer. SQNR's colours run backwards: bright is worse, as elsewhere.
    """
    shape = (len(places.layers), len(places.kinds))
    z, text = np.full(shape, np.nan, np.float32), np.full(shape, "", object)
    shown: dict[tuple[int, int], float] = {}
    for row in rows:
        at = places.of.get(row.tensor.name)
        if at is None:
            continue
        bad = badness(row, field)
        if at in shown and not (math.isnan(shown[at]) or bad > shown[at]):
            continue
        shown[at], z[at] = bad, value_of(row, field)
        what = row.error or f"{MAP_FIELDS[field]}: {told(value_of(row, field), field)}"
        text[at] = f"{_plain(row.tensor.name)}<br>{_plain(what)}"
    data: list[dict[str, Any]] = [
        {
            "type": "heatmap", "z": z, "x0": 0, "dx": 1, "y0": 0, "dy": 1, "xgap": 2, "ygap": 1 if shape[0] < 60 else 0,
            "colorscale": "Viridis", "reversescale": field == "sqnr_db", "hoverongaps": False,
            "text": text.tolist(), "hovertemplate": "%{text}<extra></extra>", "name": MAP_FIELDS[field],
            "colorbar": {
                "title": {"text": MAP_FIELDS[field], "side": "right"}, "thickness": 14,
                "tickformat": ".1%" if field == "relative_rmse" else "~s" if field == "nbytes" else "",
            },
        }
    ]  # fmt: skip
    if selected in places.of:
        y, x = places.of[selected]
        data.append(
            {
                "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False, "name": "chosen tensor",
                "x": np.array([x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5]),
                "y": np.array([y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5]), "line": {"color": "#ff2d55", "width": 3},
            }
        )  # fmt: skip
    if layer in places.layers:
        y = places.layers.index(layer)
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": np.array([-0.72]), "y": np.array([y]), "hoverinfo": "skip",
                "marker": {"symbol": "triangle-right", "size": 11, "color": "#ff2d55"}, "showlegend": False,
                "name": "listed layer", "cliponaxis": False,
            }
        )  # fmt: skip
    step = max(1, -(-shape[0] // 24))
    ticks = [i for i in range(shape[0]) if i % step == 0 or places.layers[i] is None]
    layout = {
        "uirevision": f"map {shape}",
        "xaxis": {
            "tickvals": list(range(shape[1])), "ticktext": list(map(_plain, places.kinds)), "range": [-0.8, shape[1] - 0.5],
            "showgrid": False, "zeroline": False, "title": {"text": "kind of tensor"},
        },
        "yaxis": {
            "tickvals": ticks, "ticktext": ["outside" if (n := places.layers[i]) is None else str(n) for i in ticks],
            "range": [shape[0] - 0.5, -0.5], "showgrid": False, "zeroline": False, "title": {"text": "layer"},
        },
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _plain(text: str) -> str:
    """Text from a model as plotly shows it as it is: plotly reads some tags in every label."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_DASHES = (
    "circle",
    "square",
    "diamond",
    "cross",
    "x",
    "triangle-up",
    "triangle-down",
    "star",
    "hexagram",
    "pentagon",
    "bowtie",
)


def duel(found: Duel) -> Figure:
    """A bar for each contender, its relative RMSE, in the order of the formats; the least error is named, not coloured in."""
    best = found.winners()
    names = [score.spec.definition.title for score in found.contenders]
    text = [
        f"{100 * score.relative_rmse:.2f} %" + (" · least" if score.spec.format in best else "") for score in found.contenders
    ]
    hover = [
        f"{_plain(s.spec.title)}<br>{s.bits:.4f} bits per weight<br>relative RMSE {100 * s.relative_rmse:.3f} %<br>"
        f"SQNR {s.sqnr_db:.2f} dB"
        for s in found.contenders
    ]
    values = np.array([score.relative_rmse for score in found.contenders])
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    data = [
        {
            "type": "bar", "orientation": "h", "y": list(map(_plain, names)), "x": values, "text": text,
            "textposition": "outside", "cliponaxis": False, "hovertext": hover, "hoverinfo": "text", "name": "contenders",
            "marker": {
                "color": "#2a86c8", "line": {"width": 0},
                "pattern": {"shape": ["/" if s.spec.format in best else "" for s in found.contenders]},
            },
        }
    ]  # fmt: skip
    layout = {
        "showlegend": False, "bargap": 0.35,
        "xaxis": {"title": {"text": "relative RMSE"}, "tickformat": ".1%", "range": [0, 1.3 * top]},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "margin": {"l": 120, "r": 20, "t": 20, "b": 48},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def pareto(found: Pareto, bits: float | None = None) -> Figure:
    """Relative RMSE against stored bits per weight, a line a format through its block sizes, the front as a grey step."""
    lines: dict[str, list[Any]] = {}
    for point in found.points:
        lines.setdefault(point.score.spec.format, []).append(point)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "x": np.array([s.bits for s in found.front]),
            "y": np.array([s.relative_rmse for s in found.front]), "name": "front: nothing beats these", "hoverinfo": "skip",
            "line": {"shape": "hv", "color": QUIET, "width": 6},
        }
    ]  # fmt: skip
    for i, points in enumerate(lines.values()):
        hover = [
            f"{_plain(p.score.spec.title)}<br>{p.score.bits:.4f} bits per weight, {amount(p.score.nbytes)}<br>"
            f"relative RMSE {100 * p.score.relative_rmse:.3f} %, SQNR {p.score.sqnr_db:.2f} dB"
            + ("<br>on the front" if p.on_front else "")
            for p in points
        ]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": np.array([p.score.bits for p in points]),
                "y": np.array([p.score.relative_rmse for p in points]), "name": _plain(points[0].score.spec.definition.title),
                "hovertext": hover, "hoverinfo": "text", "line": {"width": 1},
                "marker": {
                    "symbol": _DASHES[i % len(_DASHES)], "size": [11 if p.on_front else 7 for p in points],
                    "line": {"width": 0},
                },
            }
        )  # fmt: skip
    if bits is not None:
        errors = [p.score.relative_rmse for p in found.points if p.score.relative_rmse > 0]
        low, high = min(errors, default=0.1), max(errors, default=1.0)
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": np.array([bits, bits]), "y": np.array([low, high]),
                "line": {"color": "#c2185b", "dash": "dash", "width": 1.5}, "name": f"duel: {bits:g} bits", "hoverinfo": "skip",
            }
        )  # fmt: skip
    layout = {
        "uirevision": "pareto",
        "xaxis": {"title": {"text": "stored bits per weight"}},
        "yaxis": {"title": {"text": "relative RMSE (logarithmic)"}, "type": "log", "tickformat": ".2~%"},
        "legend": {"orientation": "v", "x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"},
        "margin": {"l": 76, "r": 20, "t": 20, "b": 48},
    }  # fmt: skip
    return {"data": data, "layout": layout}
