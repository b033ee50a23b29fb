"""A run's history as plotly figures, for reports and for several runs side by side: loss and paging. Draws no widgets.

Each function returns a figure as a mapping and the sentence that says the same to a screen reader. Host page faults are never
called GPU paging, a prefetch request is never called a migration. Each step's batch is in ``figures/run_memory.py``; a run as
it goes on is ``drawing/cockpit.py``'s.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from widgets.figures.layout import Described, Figure, axes
from widgets.figures.palette import CHARCOAL, GREEN, GREY, OCHRE, PURPLE, SKY
from workbench.text import counted
from workbench.training.results.history import Lane, RunHistory, page_view

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


def paging_figure(history: RunHistory, key: str = "") -> Described:
    """Paging events over time, named by their source.

    Args:
        history: The run's history.
        key: The layout's ``uirevision``: the reader's zoom is kept while it stays the same.

    Returns:
        The figure, and a sentence with the totals.

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
    layout = _over_time(axes(title, "seconds", f"{unit} {every}", key, barmode="stack", bargap=0, showlegend=True), history)
    totals = ", ".join(f"{history.counts[lane]:,} {_PAGE_NAMES.get(lane, lane[1])}" for lane in lanes)
    return {"data": traces, "layout": layout}, f"{title}: {totals}." if totals else f"{title}."


def _over_time(layout: Figure, history: RunHistory) -> Figure:
    """The layout of a picture over the whole run."""
    layout["xaxis"] |= {"range": [0, history.now or 1]}
    layout["margin"] = {"l": 78}
    return layout
