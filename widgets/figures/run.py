"""A run's history as plotly figures: loss, gradients, learning rate, speed, paging, phases. Plain functions, no widgets.

Each returns a figure as a mapping and the sentence that says the same to a screen reader. Host page faults are never called
GPU paging, a prefetch request is never called a migration. Memory is in ``figures/run_memory.py``.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from widgets.figures.layout import Described, Figure, axes
from widgets.figures.palette import BLUE, CHARCOAL, GREEN, GREY, OCHRE, PURPLE, SKY, VERMILION
from workbench.text import counted
from workbench.training.results.history import Curve, Lane, RunHistory, page_view

PHASE_COLOURS = {
    "import": GREY, "load": "#56b4e9", "quantize": BLUE, "attach": "#cc79a7", "dataset": OCHRE,
    "first_forward": "#e69f00", "train": GREEN, "evaluate": "#f0e442", "save": VERMILION, "sample": PURPLE,
}  # fmt: skip
_PHASES_DRAWN = 400
_MARKS = 400
_OTHER_RUNS = ("#8c6bb1", OCHRE, CHARCOAL, PURPLE, SKY, GREEN)

_PAGE_NAMES: dict[Lane, str] = {
    ("host faults", "minor"): "minor faults (no disk)",
    ("host faults", "major"): "major faults (from disk)",
    ("cupti", "h2d"): "migrated host → GPU (CUPTI)",
    ("cupti", "d2h"): "migrated GPU → host (CUPTI)",
    ("cupti", "d2d"): "migrated GPU → GPU (CUPTI)",
}


def loss_figure(history: RunHistory, key: str = "", beside: Mapping[str, RunHistory] = MappingProxyType({})) -> Described:
    """Training loss per step and held-out loss where it was measured, in nats a token; other runs' ``beside``, thinner."""
    x, y = history.step_curve("loss")
    traces: list[Figure] = [{**_line(x, y, "%{y:.4f}"), "name": "training"}] if len(x) or not beside else []
    if history.evals:
        traces.append(_held_out(history, "held out", {"dash": "dot"}))
    for i, (name, other) in enumerate(beside.items()):
        colour = _OTHER_RUNS[i % len(_OTHER_RUNS)]
        line = {"width": 1, "color": colour}
        traces.append({**_line(*other.step_curve("loss"), "%{y:.4f}"), "name": html.escape(name), "line": line})
        if other.evals:
            held_out = _held_out(other, f"{html.escape(name)}, held out", line | {"dash": "dot"})
            traces.append(held_out | {"showlegend": False, "marker": {"size": 6, "symbol": "diamond", "color": colour}})
    summary = f"Training loss {y[-1]:.3f} after {int(x[-1])} steps, from {y[0]:.3f}." if len(x) else "No step yet."
    if len(history.evals) > 1:
        first, last = history.evals[min(history.evals)], history.evals[max(history.evals)]
        summary += f" Held-out loss {first:.3f}, then {last:.3f}."
    if beside:
        summary += f" Beside it {counted(len(beside), 'earlier run')}: {', '.join(beside)}."
    return {"data": traces, "layout": axes("Loss", "step", "nats a token", key, showlegend=True)}, summary


def _held_out(history: RunHistory, name: str, line: Figure) -> Figure:
    n = np.array(sorted(history.evals), np.float32)
    measured = np.array([history.evals[int(i)] for i in n], np.float32)
    trace = _line(n, measured, "%{y:.4f}")
    return trace | {"mode": "lines+markers", "name": name, "marker": {"size": 8, "symbol": "diamond"}, "line": line}


def _line(x: Any, y: Any, hover: str) -> Figure:
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "hovertemplate": hover}


def learning_rate_figure(history: RunHistory, key: str = "") -> Described:
    """Learning rate per step."""
    return _one("Learning rate", "", history.step_curve("lr"), key, ".3g", exponentformat="power")


def gradient_norm_figure(history: RunHistory, key: str = "") -> Described:
    """Norm of the gradients per step, before they are clipped."""
    return _one("Gradient norm, before clipping", "", history.step_curve("grad_norm"), key, ".3g")


def speed_figure(history: RunHistory, key: str = "") -> Described:
    """Tokens a second per step, padding left out."""
    return _one("Speed", "tokens a second", history.speed(), key, ",.0f")


def _one(title: str, y_title: str, curve: Curve, key: str, form: str, **yaxis: Any) -> Described:
    x, y = curve
    layout = axes(title, "step", y_title, key)
    layout["yaxis"] |= {"rangemode": "tozero", **yaxis}
    summary = f"{title} {y[-1]:{form}} {y_title}".rstrip() + "." if len(x) else f"{title}: no step yet."
    return {"data": [_line(x, y, f"%{{y:{form}}}<extra></extra>")], "layout": layout}, summary


def paging_figure(history: RunHistory, key: str = "") -> Described:
    """Paging events over time, named by their source.

    >>> import widgets
    >>> figure, summary = widgets.paging_figure(wb.RunHistory())
    >>> summary
    'Paging events: none yet.'
    """
    view, width = page_view(history), history.bar_width()
    every = f"each {width:g} s"
    if view == "gpu":
        lanes, scale, unit = history.lanes("cupti", "prefetch requests"), 1e6, "MB"
        title = "GPU paging"
    else:
        lanes, scale, unit = history.lanes("host faults"), 1.0, "faults"
        title = "Host page faults (OS), not GPU paging" if view == "host" else "Paging events: none yet"
    traces: list[Figure] = []
    for lane in lanes:
        x, y = history.bars(lane)
        name = _PAGE_NAMES.get(lane) or (
            "requested by prefetch, not a migration" if lane[0] == "prefetch requests" else lane[1]
        )
        traces.append(
            {"type": "bar", "name": html.escape(name), "x": x, "y": (y / scale).astype(np.float32), "width": width,
             "hovertemplate": f"%{{y:,.3~s}} {unit}"}
        )  # fmt: skip
    ends = history.of_steps(history.ends)[1]
    if len(ends):
        every_nth = -(-len(ends) // _MARKS)
        name = "end of a step" if every_nth == 1 else f"end of a step, every {every_nth} steps"
        marks = {"mode": "markers", "name": name, "x": ends[every_nth - 1 :: every_nth], "hovertemplate": "%{x:.1f} s"}
        marks["y"] = np.zeros(len(marks["x"]), np.float32)
        traces.append({"type": "scatter", "marker": {"symbol": "line-ns-open", "size": 10, "color": GREY}, **marks})
    layout = over_time(axes(title, "seconds", f"{unit} {every}", key, barmode="stack", bargap=0, showlegend=True), history)
    totals = ", ".join(f"{history.counts[lane]:,} {_PAGE_NAMES.get(lane, lane[1])}" for lane in lanes)
    return {"data": traces, "layout": layout}, f"{title}: {totals}." if totals else f"{title}."


def phases_figure(history: RunHistory, key: str = "") -> Described:
    """A strip of the run's phases over time; the second row holds those that lie within another."""
    drawn = history.phases[-_PHASES_DRAWN:]
    ends = [history.now if phase.end is None else phase.end for phase in drawn]
    lengths = [end - phase.begin for phase, end in zip(drawn, ends, strict=True)]
    labelled = 0.075 * history.now  # seconds below which a name has no room
    trace: Figure = {
        "type": "bar", "orientation": "h", "showlegend": False,
        "y": [("phase", "inside it")[phase.depth] for phase in drawn],
        "base": np.array([phase.begin for phase in drawn], np.float32),
        "x": np.array(lengths, np.float32),
        "text": [html.escape(phase.name) if length > labelled else "" for phase, length in zip(drawn, lengths, strict=True)],
        "customdata": [html.escape(phase.name) for phase in drawn],
        "textposition": "inside", "insidetextanchor": "middle", "textangle": 0, "constraintext": "none",
        "marker": {"color": [PHASE_COLOURS.get(phase.name, GREY) for phase in drawn]},
        "hovertemplate": "%{customdata}: %{x:.2f} s<extra></extra>",
    }  # fmt: skip
    layout = over_time(axes("Phases", "seconds", "", key, barmode="overlay", bargap=0.15, hovermode="closest"), history)
    layout["yaxis"] |= {
        "autorange": "reversed",
        "categoryorder": "array",
        "categoryarray": ["phase", "inside it"],
        "fixedrange": True,
    }
    summary = ", ".join(f"{phase.name} {length:.1f} s" for phase, length in zip(drawn[-12:], lengths[-12:], strict=True))
    return {"data": [trace], "layout": layout}, f"Phases: {summary}." if summary else "No phase yet."


def over_time(layout: Figure, history: RunHistory) -> Figure:
    """The layout of a picture over the whole run, so that such pictures below one another have one time axis."""
    layout["xaxis"] |= {"range": [0, history.now or 1]}
    layout["margin"] = {"l": 78}
    return layout


def shading(history: RunHistory) -> list[Figure]:
    """For a picture over time: the outermost phases as a background, in the colours of ``phases``."""
    return [
        {"type": "rect", "yref": "paper", "x0": phase.begin, "x1": history.now if phase.end is None else phase.end,
         "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0}, "opacity": 0.13,
         "fillcolor": PHASE_COLOURS.get(phase.name, GREY)}
        for phase in history.phases
        if not phase.depth
    ]  # fmt: skip
