"""The figures of what quantization costs: divergence beside weight error, output errors, sensitivities, a mix's memory curve.

Plain functions from the values of ``workbench.cost`` to plotly figures, no widgets; ``costs_summary`` says in words what the
first figure shows. Methods and repairs are in figures/methods.py, KL against bits in figures/kl_curve.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from widgets.figures.layout import Figure, escaped
from widgets.figures.model import Shown, cell_map
from widgets.figures.palette import BLUE, CHOSEN, FORMAT_COLOURS, GREY, QUIET, REFERENCE, SYMBOLS
from widgets.state import COST_FIELDS
from workbench.cost.evaluation import ranks_of
from workbench.cost.row_costs import distinguishable
from workbench.cost.sensitivities import outliers_of
from workbench.report.figures import error_bars
from workbench.sources.kinds import order_of
from workbench.surveys.places import Places
from workbench.text import NONE, amount, bracketed, counted, listed, percent, short
from workbench.text import nats as kl_text

if TYPE_CHECKING:
    from workbench.cost.evaluation import Cost
    from workbench.cost.mixing import Mix
    from workbench.cost.sensitivities import ModuleCost


def nats(value: float) -> str:
    """A difference of losses with its sign: +0.0123."""
    return f"{value:+.4f}".replace("-", "−") if math.isfinite(value) else NONE


def quantized(costs: Iterable[Cost]) -> list[Cost]:
    """The costs of formats, the least divergence first; what is no number comes last."""
    measured = [cost for cost in costs if cost.spec is not None]
    return sorted(measured, key=lambda cost: (not math.isfinite(cost.kl), cost.kl))


def disagreements(costs: Iterable[Cost]) -> list[tuple[Cost, Cost]]:
    """Pairs of which the first has less weight error and yet diverges more, beyond the paired interval of the difference."""
    ordered = quantized(costs)
    return [
        (worse, better)
        for i, better in enumerate(ordered)
        for worse in ordered[i + 1 :]
        if worse.relative_rmse < better.relative_rmse and distinguishable(worse.rows.further(better.rows))
    ]


def format_costs_figure(costs: Iterable[Cost]) -> Figure:
    """On the left each format's KL divergence from 16 bits, with its 95 % interval; on the right the weights' relative RMSE.

    The least divergence stands at the top: where the bars on the right do not grow downwards too, the two disagree. A format
    that diverges more than one that errs more on the weights, beyond the paired interval, is hatched.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.
    """
    ordered = quantized(costs)
    names = [_label(cost.name) for cost in ordered]
    kls = np.array([cost.kl for cost in ordered], float)
    low, high = (np.array([cost.kl_interval[i] for cost in ordered], float) for i in (0, 1))
    hatched = {worse.name for worse, _ in disagreements(ordered)}
    hover = [
        f"{escaped(cost.name)}<br>{cost.bits_per_weight:.4g} bits per weight<br>"
        f"KL {kl_text(cost.kl)}, 95 % interval {kl_text(cost.kl_interval[0])} to {kl_text(cost.kl_interval[1])}<br>"
        f"most likely token flips: {percent(cost.flips)}<br>"
        f"loss {cost.loss:.4f}, {nats(cost.increase)}, "
        f"95 % interval {nats(cost.increase_interval[0])} to {nats(cost.increase_interval[1])}<br>"
        f"weights' relative RMSE {percent(cost.relative_rmse)}"
        for cost in ordered
    ]
    data = [
        {
            "type": "bar", "orientation": "h", "y": names, "x": kls, "name": "KL divergence", "hovertext": hover,
            "hoverinfo": "text",
            "error_x": {
                "type": "data", "symmetric": False, "array": high - kls, "arrayminus": kls - low, "thickness": 1.5,
                "width": 5, "color": REFERENCE,
            },
            "marker": {
                "color": FORMAT_COLOURS[0], "line": {"width": 0},
                "pattern": {"shape": ["/" if cost.name in hatched else "" for cost in ordered]},
            },
        },
        error_bars(
            names, [cost.relative_rmse for cost in ordered], [percent(cost.relative_rmse) for cost in ordered], hover,
            hoverinfo="text", xaxis="x2", yaxis="y2", name="weights' relative RMSE",
            marker={"color": GREY, "line": {"width": 0}},
        ),
    ]  # fmt: skip
    widest = max((cost.relative_rmse for cost in ordered), default=1.0) or 1.0
    y = {"autorange": "reversed", "type": "category", "categoryorder": "array", "categoryarray": names}
    layout = {
        "showlegend": False, "bargap": 0.35, "uirevision": f"costs {names}", "margin": {"l": 120, "r": 20, "t": 6, "b": 36},
        "xaxis": {"title": {"text": "KL divergence from 16 bits, nats a token"}, "domain": [0, 0.56], "rangemode": "tozero"},
        "xaxis2": {
            "title": {"text": "weights' relative RMSE"}, "domain": [0.64, 1], "anchor": "y2", "tickformat": ".0%",
            "range": [0, 1.3 * widest],
        },
        "yaxis": {**y, "automargin": True}, "yaxis2": {**y, "anchor": "x2", "matches": "y", "showticklabels": False},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _label(name: str) -> str:
    """A specification as an axis label: its format, and the rest smaller below."""
    title, _, rest = escaped(name).partition(", ")
    return f'{title}<br><span style="font-size:10px">{rest}</span>' if rest else title


def output_errors_figure(rows: Iterable[ModuleCost], selected: str = "") -> Figure:
    """‖(W − Ŵ)x‖ / ‖Wx‖ over the layers, a line a kind, above a band: the weights' own relative RMSE, from least to most.

    Each point carries its module as ``customdata``. Modules outside the layers are left out.

    Args:
        rows: The modules' costs.
        selected: The chosen tensor's name; it is ringed.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.
    """
    known = [row for row in rows if row.layer is not None]
    kinds = sorted({row.kind for row in known}, key=order_of)
    data: list[dict[str, Any]] = _band(known)
    for i, kind in enumerate(kinds):
        of = sorted((row for row in known if row.kind == kind), key=lambda row: (row.layer or 0, row.name))
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": escaped(kind), "customdata": [row.name for row in of],
                "x": np.array([row.layer for row in of], np.int32), "y": np.array([row.output_error for row in of], float),
                "hovertext": [
                    f"{escaped(row.name)}<br>adds {kl_text(row.share)} to the KL<br>"
                    f"output error {percent(row.output_error)}<br>"
                    f"weights' relative RMSE {percent(row.relative_rmse)}<br>outlier channels: {outliers_of(row.channels, 4)}"
                    for row in of
                ],
                "hoverinfo": "text", "line": {"width": 1.5},
                "marker": {
                    "symbol": SYMBOLS[i % len(SYMBOLS)],
                    "size": [13 if row.name == selected else 8 for row in of],
                    "line": {"width": [2.5 if row.name == selected else 0 for row in of], "color": CHOSEN},
                },
            }
        )  # fmt: skip
    layout = {
        "uirevision": "output errors", "hovermode": "closest", "margin": {"l": 52, "r": 12, "t": 28, "b": 36},
        "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": "layer"}, "dtick": 1 if len({r.layer for r in known}) <= 24 else None, "zeroline": False},
        "yaxis": {"title": {"text": "relative error"}, "tickformat": ".0%", "rangemode": "tozero"},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _band(rows: Sequence[ModuleCost]) -> list[dict[str, Any]]:
    """From the least to the largest relative RMSE of each layer's weights."""
    by_layer: dict[int, list[float]] = {}
    for row in rows:
        by_layer.setdefault(row.layer or 0, []).append(row.relative_rmse)
    x = np.array(sorted(by_layer), np.int32)
    ends = [np.array([pick(by_layer[layer]) for layer in sorted(by_layer)], float) for pick in (min, max)]
    shared = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip", "line": {"width": 0.5, "color": QUIET}}
    return [
        {**shared, "y": ends[0], "showlegend": False, "name": "least RMSE"},
        {**shared, "y": ends[1], "fill": "tonexty", "fillcolor": QUIET, "name": "the weights' own relative RMSE"},
    ]


def sensitivity_figure(
    places: Places, rows: Iterable[ModuleCost], field: str, selected: str = "", layer: int | None = None
) -> Figure:
    """Layers × kinds, coloured by what each module costs.

    Args:
        places: Where each module stands.
        rows: The modules' costs.
        field: The field of ``COST_FIELDS`` that colours them.
        selected: The chosen module's name; its cell is marked.
        layer: The listed layer, which is marked too.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.
    """
    shown = [Shown(row.name, cost_of(row, field), cost_of(row, field), _all_of(row)) for row in rows]
    ticks = ".0%" if field in ("output_error", "relative_rmse") else "~s" if field == "saved_bytes" else "~g"
    return cell_map(places, shown, COST_FIELDS[field], ticks, selected=selected, layer=layer)


def cost_of(row: ModuleCost, field: str) -> float:
    """A module's value of a field of ``COST_FIELDS``."""
    return float(getattr(row, field))


def format_cost(value: float, field: str) -> str:
    """Such a value as text."""
    if field in ("output_error", "relative_rmse"):
        return percent(value)
    return amount(value) if field == "saved_bytes" else nats(value) if field == "loss_share" else kl_text(value)


def _all_of(row: ModuleCost) -> str:
    """What is known of a module, for hovering over it."""
    known = {field: f"{title}: {format_cost(cost_of(row, field), field)}" for field, title in COST_FIELDS.items()}
    known["share"] += f" ({' … '.join(map(kl_text, row.share_interval))})"
    return "; ".join([*known.values(), f"Outlier channels: {outliers_of(row.channels, 4)}"])


def memory_curve_figure(mix: Mix, beside: Mix | None = None) -> Figure:
    """KL divergence from 16 bits against the weights' megabytes: the predicted curve from all in 4 bits to all in 16.

    The KL of all in 4 bits is measured; between the ends it is predicted.

    Args:
        mix: The mix that stands on the curve.
        beside: Another mix to stand beside it.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.
    """
    curve, four = mix.curve, mix.in_4_bits
    hover = [
        f"{amount(point.nbytes)}, {counted(len(point.modules), 'module')} in 16 bits<br>predicted {kl_text(point.predicted_kl)}"
        for point in curve
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": "predicted, module after module", "hovertext": hover,
            "hoverinfo": "text", "x": np.array([point.nbytes / 1e6 for point in curve]),
            "y": np.array([max(point.predicted_kl, 0.0) for point in curve]),  # shares near 0 may come out below
            "line": {"shape": "hv", "width": 2, "color": BLUE},
        },
        _point("all in 4 bits, measured", mix.all_4bit.nbytes, four.kl, "square", REFERENCE, "top right", four.kl_interval),
        _point("all in 16 bits", mix.sensitivity.job.nbytes_16bit, 0.0, "circle", REFERENCE, "bottom left"),
    ]  # fmt: skip
    middle = (mix.all_4bit.nbytes + mix.sensitivity.job.nbytes_16bit) / 2
    known = mix.measured
    lower, upper = ("middle", "top") if mix.predicted_kl < four.kl / 2 else ("bottom", "middle")
    below = known is None or mix.predicted_kl < known.kl
    side = _inwards(mix.nbytes, middle)
    at = f"{lower if below else upper} {side}"
    data.append(_point("this mix, predicted", mix.nbytes, mix.predicted_kl, "diamond-open", CHOSEN, at))
    if known is not None:
        at = f"{upper if below else lower} {side}"
        data.append(_point("this mix, measured", mix.nbytes, known.kl, "diamond", CHOSEN, at, known.kl_interval))
    if beside is not None:
        name, known, at = f"as {escaped(short(beside.like))}", beside.measured, f"middle {_inwards(beside.nbytes, middle)}"
        if known is None:
            data.append(_point(f"{name}, predicted", beside.nbytes, beside.predicted_kl, "x-open", REFERENCE, at))
        else:
            data.append(_point(f"{name}, measured", beside.nbytes, known.kl, "x", REFERENCE, at, known.kl_interval))
    highest = np.nanmax([four.kl_interval[1], *(y for trace in data for y in trace["y"])])
    layout = {
        "uirevision": "mix", "showlegend": False, "margin": {"l": 60, "r": 20, "t": 8, "b": 36},
        "xaxis": {"title": {"text": "MB of all weights"}},
        "yaxis": {"title": {"text": "KL, nats a token; line: predicted"}, "range": [-0.12 * highest, 1.15 * highest]},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _inwards(nbytes: float, middle: float) -> str:
    """The side of a mark on which its name has room."""
    return "right" if nbytes < middle else "left"


def _point(
    name: str, nbytes: float, kl: float, symbol: str, colour: str, at: str, interval: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A mark with its name beside it (``at``, as plotly's ``textposition``), and its interval where it is measured."""
    bars = {}
    if interval is not None:
        ends = {"array": np.array([interval[1] - kl]), "arrayminus": np.array([kl - interval[0]])}
        bars = {"error_y": {"type": "data", "symmetric": False, "thickness": 1.5, "width": 5, "color": colour, **ends}}
    return {
        "type": "scatter", "mode": "markers+text", "name": name, "text": [f"  {name}  "],
        "textposition": at, "cliponaxis": False, "x": np.array([nbytes / 1e6]), "y": np.array([kl]),
        "marker": {"symbol": symbol, "size": 13, "color": colour, "line": {"width": 2, "color": colour}},
        "hovertemplate": f"{name}<br>%{{x:.2f}} MB<br>%{{y:.4f}} nats<extra></extra>", **bars,
    }  # fmt: skip


def costs_summary(costs: Iterable[Cost]) -> str:
    """What the bars show, in two sentences: the formats that diverge least, and where divergence and weight error disagree.

    Returns:
        The sentences, in plain text.

    >>> import widgets
    >>> widgets.costs_summary([])
    'No format has been measured yet.'
    """
    ordered = quantized(costs)
    if not ordered:
        return "No format has been measured yet."
    least, pairs = ordered[0], disagreements(ordered)
    ranks = ranks_of(ordered)
    beside = [bracketed(cost.name) for cost in ordered[1:] if ranks[cost.name] == 1]
    text = (
        f"{bracketed(least.name)} diverges least, by {kl_text(least.kl)} nats a token; it flips {percent(least.flips)} of them"
    )
    text += f". Of rank 1 too, since no format diverges less beyond the interval: {listed(beside)}." if beside else "."
    if not pairs:
        return f"{text} Nowhere do weight error and divergence order two formats differently, beyond the intervals."
    worse, better = max(pairs, key=lambda pair: pair[0].kl - pair[1].kl)
    here = f"{counted(len(pairs), 'pair')}, most of all here" if len(pairs) > 1 else "1 pair"
    return (
        f"{text} Weight error and divergence disagree ({here}): "
        f"{bracketed(worse.name)} errs less on the weights than {bracketed(better.name)} "
        f"({percent(worse.relative_rmse)} against {percent(better.relative_rmse)}) "
        f"and diverges more ({kl_text(worse.kl)} against {kl_text(better.kl)})."
    )
