"""A run's memory as plotly figures: what it holds over time, and each step's peak beside its batch.

Plain functions, no widgets: each returns a figure as a mapping and the sentence that says the same to a screen reader.
Everything is measured but the line of the forecast. On a CPU it is the process's resident set, drawn above what interpreter and
libraries take; it seldom falls again: freed memory stays there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from widgets.figures.layout import Described, Figure, axes, level
from widgets.figures.palette import OCHRE, VERMILION
from widgets.figures.run import over_time, shading
from workbench.memory.ledger import GROUPS
from workbench.text import memory_size, memory_unit
from workbench.training.results.history import RunHistory, kept

LIBRARIES, REST = "interpreter and libraries", "activations and the rest"
_FAR = 2.0
"""A line more than this many times as high as everything else is named in the summary instead of drawn."""


def memory_figure(history: RunHistory, key: str = "", host: int | None = None) -> Described:
    """Memory over time, stacked by what holds it, with the phases shaded; lines for the forecast and for the limit.

    ``host``: the bytes of this machine's memory, the limit of a run without a GPU.
    """
    on_gpu = ("worker", "allocated") in history.memory
    x, parts = _gpu_parts(history) if on_gpu else _host_parts(history)
    base = 0.0 if on_gpu else history.libraries or 0.0
    index = kept(np.sum(list(parts.values()), axis=0)) if len(x) else np.zeros(0, np.intp)
    total = np.sum([y[index] for y in parts.values()], axis=0) if len(x) else np.zeros(0)
    lane = ("worker", "managed") if on_gpu else ("supervisor", "rss")
    at, beside = history.memory[lane].curve() if lane in history.memory else (np.zeros(0), np.zeros(0))
    beside = np.where(beside >= base, beside - base, np.nan)
    top = max(float(np.nanmax(total, initial=0.0)), float(np.nanmax(beside, initial=0.0)))
    unit, scale = memory_unit(top)
    traces: list[Figure] = [
        {"type": "scatter", "mode": "lines", "stackgroup": "held", "name": name, "x": x[index].astype(np.float32),
         "y": (y[index] / scale).astype(np.float32), "hovertemplate": f"%{{y:,.2f}} {unit}", "line": {"width": 1}}
        for name, y in parts.items()
    ]  # fmt: skip
    if len(at):
        name = "managed by bitsandbytes, on the GPU or the host" if on_gpu else "all of it, as the supervisor sees it"
        traces.append(
            {"type": "scatter", "mode": "lines", "name": name, "x": at, "y": (beside / scale).astype(np.float32),
             "hovertemplate": f"%{{y:,.2f}} {unit}", "line": {"dash": "dot", "width": 1.5}}
        )  # fmt: skip
    lines, summary = _lines(history, host, on_gpu, top, scale)
    above = f" above interpreter and libraries ({memory_size(base)})" if base else ""
    title = "GPU memory" if on_gpu else f"Memory of the training process{above}, resident, CPU"
    layout = over_time(axes(title, "seconds", unit, key, showlegend=True), history)
    layout["shapes"] = [*shading(history), *lines]
    layout["yaxis"]["range"] = [0, 1.12 * max([top / scale, *(line["y1"] for line in lines)]) or 1]
    now = f"{memory_size(total[-1])} now, {memory_size(top)} at most{above}" if len(index) else "no sample yet"
    what = "GPU memory" if on_gpu else "Memory of the training process (RSS)"
    return {"data": traces, "layout": layout}, f"{what}: {now}. {summary}".strip()


Bytes = NDArray[np.float64]


def _gpu_parts(history: RunHistory) -> tuple[Bytes, dict[str, Bytes]]:
    """(samples,) seconds, and what holds the device's memory, in bytes; they add up to NVML's figure where there is one."""
    x, allocated = history.memory["worker", "allocated"].arrays()
    reserved = history.memory["worker", "reserved"].arrays()[1]
    parts = _held(history, x, allocated) | {"kept by PyTorch's allocator": reserved - allocated}
    if ("worker", "nvml_used") in history.memory:
        seen, used = history.memory["worker", "nvml_used"].arrays()
        rest = np.interp(x, seen, used) - reserved
        parts["context, managed pages, other processes (NVML)"] = np.maximum(rest, 0.0)
    return x, parts


def _host_parts(history: RunHistory) -> tuple[Bytes, dict[str, Bytes]]:
    """The resident set: until the libraries are imported all of it, from then on what came on top."""
    if ("worker", "rss") not in history.memory:
        return np.zeros(0), {}
    x, resident = history.memory["worker", "rss"].arrays()
    if history.libraries is None:
        return x, {LIBRARIES: resident}
    return x, _held(history, x, np.maximum(resident - history.libraries, 0.0))


def _held(history: RunHistory, x: Bytes, within: Bytes) -> dict[str, Bytes]:
    """What of the bytes ``within`` the live tensors hold, by groups of categories, and the rest of them."""
    moments = np.array([at for at, _ in history.held])
    last = np.searchsorted(moments, x, side="right")  # (samples,): 0 before the first moment
    parts, left = {}, within
    for group, categories in GROUPS.items():
        sums = [0, *(sum(held.get(name, 0) for name in categories) for _, held in history.held)]
        if any(sums):
            parts[group] = np.minimum(np.array(sums, float)[last], left)
            left = left - parts[group]
    return parts | {REST: left}


def _lines(history: RunHistory, host: int | None, on_gpu: bool, top: float, scale: float) -> tuple[list[Figure], str]:
    """The lines that fit the picture, and a sentence that names all of them."""
    lines: list[tuple[str, float, str]] = []
    if history.forecast is not None and (on_gpu or history.libraries):
        lines.append(("forecast", history.forecast, OCHRE))
    limit = history.device_total if on_gpu else host and host - (history.libraries or 0)
    if limit:
        lines.append((f"limit, {'the GPU' if on_gpu else 'this machine'}", limit, VERMILION))
    drawn, named = [], []
    for name, at, colour in lines:
        near = at <= _FAR * max(top, 1.0)
        named.append(f"{name}: {memory_size(at)}{'' if near else ', above the picture'}")
        if near:
            drawn.append(level(at / scale, f"{name}: {memory_size(at)}", colour))
    summary = "; ".join(named)
    return drawn, f"{summary[0].upper()}{summary[1:]}." if summary else ""


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
