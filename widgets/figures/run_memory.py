"""Each step's memory peak beside its batch, as a plotly figure. Draws no widgets; memory over time is the cockpit's."""

from __future__ import annotations

import numpy as np

from widgets.figures.layout import Described, Figure, axes
from workbench.text import memory_unit
from workbench.training.results.history import RunHistory


def batches_figure(history: RunHistory, key: str = "") -> Described:
    """Each step's memory peak above the batch it came from: its longest row, and the tokens that were only padding."""
    n, peak = history.of_steps(history.peaks)
    top = float(np.nanmax(peak, initial=0.0))
    unit, scale = memory_unit(top)
    on_gpu = ("worker", "allocated") in history.memory
    longest, padded = history.step_curve("longest"), history.step_curve("padded")
    source = "allocated" if on_gpu else "resident, sampled 8 times a second"
    step = {"type": "scatter", "mode": "lines", "line": {"shape": "hvh"}}
    traces: list[Figure] = [
        step | {"name": f"memory at most ({source})", "x": n, "y": (peak / scale).astype(np.float32), "mode": "lines+markers",
                "marker": {"size": 4}, "hovertemplate": f"%{{y:,.2f}} {unit}"},
        step | {"name": "padding in the batch", "x": padded[0], "y": padded[1], "yaxis": "y2", "fill": "tozeroy",
                "hovertemplate": "%{y:,} tokens"},
        step | {"name": "longest row", "x": longest[0], "y": longest[1], "yaxis": "y2", "hovertemplate": "%{y:,} tokens"},
    ]  # fmt: skip
    layout = axes("Each step's memory peak, and its batch", "step", unit, key, showlegend=True)
    layout["yaxis"] |= {"domain": [0.56, 1]}
    layout["yaxis2"] = {"title": {"text": "tokens", "standoff": 8}, "domain": [0, 0.44], "rangemode": "tozero"}
    layout["xaxis"] |= {"anchor": "y2"}
    if not len(longest[0]):
        return {"data": traces, "layout": layout}, "Each step's memory peak, and its batch: no step yet."
    at = int(np.nanargmax(longest[1]))
    summary = f"Longest row {longest[1].max():,.0f} tokens, at step {longest[0][at]:,.0f}"
    if len(n):
        summary += f"; highest memory {top / scale:,.2f} {unit}, at step {n[int(np.nanargmax(peak))]:,.0f}"
    return {"data": traces, "layout": layout}, f"{summary}."
