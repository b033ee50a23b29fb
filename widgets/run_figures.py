"""A run's history as plotly figures: loss, learning rate, memory, paging, phases. Plain functions, no widgets.

Each returns a figure as a mapping and the sentence that says the same to a screen reader. Host page faults are never called
GPU paging, a prefetch request is never called a migration, and what only a GPU gives is labelled as not yet run on one.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from widgets.run_history import Lane, Phase, RunHistory, page_view

Figure = dict[str, Any]
Told = tuple[Figure, str]

PHASE_COLOURS = {
    "import": "#8c8c8c", "load": "#56b4e9", "quantize": "#0072b2", "attach": "#cc79a7", "dataset": "#b07d00",
    "first_forward": "#e69f00", "train": "#009e73", "evaluate": "#f0e442", "save": "#d55e00", "sample": "#aa4f8a",
}  # fmt: skip
_OTHER_PHASE = "#8c8c8c"
_PHASES_DRAWN = 400

_MEMORY_NAMES: dict[Lane, str] = {
    ("worker", "rss"): "RSS, by the worker itself",
    ("supervisor", "rss"): "RSS, by the supervisor",
    ("worker", "allocated"): "GPU allocated (PyTorch)",
    ("worker", "reserved"): "GPU reserved (PyTorch)",
    ("worker", "nvml_used"): "GPU used, all processes (NVML)",
    ("worker", "managed"): "managed by bitsandbytes (paged state)",
}
_PAGE_NAMES: dict[Lane, str] = {
    ("host faults", "minor"): "minor faults (no disk)",
    ("host faults", "major"): "major faults (from disk)",
    ("cupti", "h2d"): "migrated host → GPU (CUPTI)",
    ("cupti", "d2h"): "migrated GPU → host (CUPTI)",
    ("cupti", "d2d"): "migrated GPU → GPU (CUPTI)",
}


def _layout(title: str, x: str, y: str, key: str, **more: Any) -> Figure:
    return {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": y}},
        "legend": {"x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"},  # below: it may take two rows
        "uirevision": key,
        "hovermode": "x unified",
        **more,
    }


def loss(history: RunHistory, key: str = "") -> Told:
    """Training loss per step and held-out loss where it was measured, in nats a token."""
    x, y = history.step_curve("loss")
    traces: list[Figure] = [
        {"type": "scatter", "mode": "lines", "name": "training", "x": x, "y": y, "hovertemplate": "%{y:.4f}"},
    ]
    if history.evals:
        n = np.array(sorted(history.evals), np.float32)
        held_out = np.array([history.evals[int(i)] for i in n], np.float32)
        marker = {"size": 8, "symbol": "diamond"}
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "name": "held out", "x": n, "y": held_out,
             "marker": marker, "line": {"dash": "dot"}, "hovertemplate": "%{y:.4f}"}
        )  # fmt: skip
    said = f"Training loss {y[-1]:.3f} after {int(x[-1])} steps, from {y[0]:.3f}." if len(x) else "No step yet."
    if len(history.evals) > 1:
        first, last = history.evals[min(history.evals)], history.evals[max(history.evals)]
        said += f" Held-out loss {first:.3f}, then {last:.3f}."
    return {"data": traces, "layout": _layout("Loss", "step", "nats a token", key, showlegend=True)}, said


def learning_rate(history: RunHistory, key: str = "") -> Told:
    """Learning rate per step."""
    x, y = history.step_curve("lr")
    trace = {"type": "scatter", "mode": "lines", "x": x, "y": y, "hovertemplate": "%{y:.3g}<extra></extra>"}
    layout = _layout("Learning rate", "step", "", key)
    layout["yaxis"] |= {"rangemode": "tozero", "exponentformat": "power"}
    return {"data": [trace], "layout": layout}, f"Learning rate {y[-1]:.3g}." if len(x) else "No step yet."


def memory(history: RunHistory, key: str = "") -> Told:
    """Memory over time with the phases shaded: a GPU's where there is one, else the process's resident set."""
    on_gpu = any(field != "rss" for _, field in history.memory)
    lanes = [lane for lane in _MEMORY_NAMES if lane in history.memory and (lane[1] != "rss") == on_gpu]
    curves = {lane: history.memory[lane].curve() for lane in lanes}
    top = max((float(np.nanmax(y)) for _, y in curves.values() if len(y)), default=0.0)
    unit, scale = ("GB", 1e9) if top >= 1e9 else ("MB", 1e6)
    traces: list[Figure] = [
        {"type": "scatter", "mode": "lines", "name": _MEMORY_NAMES[lane], "x": x, "y": (y / scale).astype(np.float32),
         "hovertemplate": f"%{{y:.2f}} {unit}", "line": {"dash": "dot"} if lane[0] == "supervisor" else {}}
        for lane, (x, y) in curves.items()
    ]  # fmt: skip
    layout = _layout(
        "GPU memory, not yet run on a GPU" if on_gpu else "Memory of the training process",
        "seconds", unit, key, shapes=_shading(history), showlegend=True,
    )  # fmt: skip
    layout["yaxis"]["range"] = [0, 1.18 * top / scale or 1]  # room for the phases' names
    if on_gpu and history.device_total:
        line = {"color": "#d55e00", "width": 1, "dash": "dash"}
        total = history.device_total / scale
        layout["shapes"] = [
            *layout["shapes"],
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": total, "y1": total, "line": line,
             "label": {"text": f"all of the GPU: {total:.1f} {unit}", "textposition": "end"}},
        ]  # fmt: skip
    what = "GPU memory" if on_gpu else "Memory of the training process (RSS)"
    last = next((float(y[-1]) / scale for _, y in curves.values() if len(y)), None)
    return {
        "data": traces,
        "layout": layout,
    }, f"{what}: {last:.2f} {unit} now." if last is not None else f"{what}: no sample yet."


def paging(history: RunHistory, key: str = "") -> Told:
    """Paging events over time, named by their source."""
    view, width = page_view(history), history.bar_width()
    every = f"each {width:g} s"
    if view == "gpu":
        lanes, scale, unit = history.lanes("cupti", "prefetch requests"), 1e6, "MB"
        title = "GPU paging, not yet run on a GPU"
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
    layout = _layout(title, "seconds", f"{unit} {every}", key, barmode="stack", bargap=0, showlegend=True)
    totals = ", ".join(f"{history.counts[lane]:,} {_PAGE_NAMES.get(lane, lane[1])}" for lane in lanes)
    return {"data": traces, "layout": layout}, f"{title}: {totals}." if totals else f"{title}."


def phases(history: RunHistory, key: str = "") -> Told:
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
        "marker": {"color": [PHASE_COLOURS.get(phase.name, _OTHER_PHASE) for phase in drawn]},
        "hovertemplate": "%{customdata}: %{x:.2f} s<extra></extra>",
    }  # fmt: skip
    layout = _layout("Phases", "seconds", "", key, barmode="overlay", bargap=0.15, hovermode="closest")
    layout["yaxis"] |= {
        "autorange": "reversed",
        "categoryorder": "array",
        "categoryarray": ["phase", "inside it"],
        "fixedrange": True,
    }
    said = ", ".join(f"{phase.name} {length:.1f} s" for phase, length in zip(drawn[-12:], lengths[-12:], strict=True))
    return {"data": [trace], "layout": layout}, f"Phases: {said}." if said else "No phase yet."


def _shading(history: RunHistory) -> list[Figure]:
    """The outermost phases as a background, labelled where there is room."""
    span = max(history.now, 1e-9)
    return [
        _shade(phase, phase.end if phase.end is not None else history.now, span) for phase in history.phases if not phase.depth
    ]


def _shade(phase: Phase, end: float, span: float) -> Figure:
    wide = (end - phase.begin) / span > 0.09
    label = {"text": html.escape(phase.name) if wide else "", "textposition": "top center", "font": {"size": 10}}
    return {
        "type": "rect", "yref": "paper", "x0": phase.begin, "x1": end, "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0},
        "fillcolor": PHASE_COLOURS.get(phase.name, _OTHER_PHASE), "opacity": 0.13, "label": label,
    }  # fmt: skip
