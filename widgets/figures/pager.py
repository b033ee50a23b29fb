"""A simulated step under a GPU's budget as a plotly figure, and the truth about a run's paging as tables. Draws no widgets.

Everything drawn from a ``PagerSimulation`` says "Simulated"; what was measured stands beside it under that name.
"""

from __future__ import annotations

import html
import statistics
from typing import Any

import numpy as np

from widgets.figures.layout import Described, Figure, axes, level
from widgets.figures.palette import CRIMSON, GREY, VERMILION
from widgets.figures.tables import table
from workbench.memory.ledger import PAGED, SCRATCH
from workbench.memory.pager import KEPT, PagerSimulation
from workbench.text import NONE, counted, memory_size, memory_unit
from workbench.training.results.truth import MOVED, PagingTruth

_MOVES = (("h2d", "brought to the GPU", GREY), ("d2h", "evicted to the host", CRIMSON))
_COLOURED = {KEPT: {"color": "#c8c8c8"}, PAGED: {"color": CRIMSON}}
"""Memory that holds nothing is grey, and what may leave is as its evictions are; the others take the page's eight colours."""


def simulation_figure(simulation: PagerSimulation) -> Described:
    """What lies on the device at each moment of the last simulated step, and what moves at it.

    Scratch and context, which take their part of the budget first and never move, are named in the title alone. Where memory
    runs out, a cross above the budget is what the moment that did not fit had to hold.

    Returns:
        The figure, and ``PagerSimulation.summary``.

    >>> import widgets
    >>> simulation = wb.simulate_paging(wb.open_model("builtin"), wb.TrainConfig(), 2**30)
    >>> figure, summary = widgets.simulation_figure(simulation)
    >>> summary[:24]
    'Simulated, with 1.00 GiB'
    """
    last = simulation.step == simulation.step.max(initial=0)
    fixed = simulation.categories.index(SCRATCH)
    always = int(simulation.resident[last, fixed].max(initial=0))
    resident = np.delete(simulation.resident[last], fixed, axis=1)
    names = [name for name in simulation.categories if name != SCRATCH]
    room = max(simulation.budget - always, 0)
    needed = max(simulation.needed - always, 0)
    top = max(float(resident.sum(1).max(initial=0)), float(room), float(needed), 1.0)
    unit, scale = memory_unit(top)
    x = np.arange(int(last.sum()), dtype=np.float32)
    moments = [
        html.escape(f"{phase}, {name}") for phase, name, now in zip(simulation.phase, simulation.name, last, strict=True) if now
    ]
    traces: list[Figure] = []
    for name, held in zip(names, resident.T, strict=True):
        if held.any():
            traces.append(
                {"type": "scatter", "mode": "lines", "stackgroup": "held", "name": name, "x": x, "text": moments,
                 "y": (held / scale).astype(np.float32), "line": {"width": 1, "shape": "hv", **_COLOURED.get(name, {})},
                 "hovertemplate": f"%{{y:,.2f}} {unit}"}
            )  # fmt: skip
    if needed:
        did_not_fit = html.escape(f"{simulation.out_of_memory}: {memory_size(needed)} needed")
        traces.append(
            {"type": "scatter", "mode": "markers", "name": "did not fit", "x": np.array([x.size], np.float32),
             "y": np.array([needed / scale], np.float32), "text": [did_not_fit], "hovertemplate": "%{text}",
             "marker": {"symbol": "x", "size": 11, "color": VERMILION}}
        )  # fmt: skip
    for field, name, colour in _MOVES:
        moved = getattr(simulation, field)[last]
        traces.append(
            {"type": "bar", "name": name, "x": x, "y": (moved / scale).astype(np.float32), "yaxis": "y2", "text": moments,
             "textposition": "none", "marker": {"color": colour}, "hovertemplate": f"%{{y:,.3f}} {unit}, at %{{text}}"}
        )  # fmt: skip
    title = f"Simulated: a step under this budget, {memory_size(always)} of it taken by scratch and the CUDA context"
    layout = axes(title, "moments of a step", unit, "", showlegend=True, barmode="group")
    budget = room / scale
    layout["yaxis"] |= {"domain": [0.42, 1], "range": [0, 1.12 * top / scale]}
    layout["yaxis2"] = {"title": {"text": f"{unit} moved", "standoff": 8}, "domain": [0, 0.3], "rangemode": "tozero"}
    layout["xaxis"] |= {"anchor": "y2", **_phase_ticks(simulation, last)}
    layout["shapes"] = [level(budget, f"left of the budget: {memory_size(room)}", VERMILION)]
    return {"data": traces, "layout": layout}, simulation.summary


def _phase_ticks(simulation: PagerSimulation, last: Any) -> Figure:
    """A tick where each phase of the step begins."""
    phases = [phase for phase, now in zip(simulation.phase, last, strict=True) if now]
    begins = [i for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]
    return {"tickmode": "array", "tickvals": begins, "ticktext": [phases[i] for i in begins]}


def comparison_table(simulation: PagerSimulation, truth: PagingTruth) -> str:
    """Bytes, pages and seconds a step: simulated, and measured where pages could be observed."""
    steps = simulation.per_step
    h2d, d2h = steps[-1].tolist() if len(steps) else (0, 0)
    evictions = int(simulation.evictions[-1]) if len(steps) else 0
    seen = {way: _median([getattr(step, way) for step in truth.steps]) for way in MOVED}
    rows = [
        ("brought to the GPU", memory_size(h2d), seen["h2d"]),
        ("evicted to the host", f"{memory_size(d2h)}, {counted(evictions, 'page')}", seen["evicted"]),
        ("on the bus, at its nominal rate", f"{simulation.bus_seconds:.2g} s", NONE),
    ]
    return table(["each step", "simulated", "measured (median)"], rows, "A step's paging, simulated and measured")


def steps_figure(simulation: PagerSimulation, truth: PagingTruth) -> Described | None:
    """What was brought and evicted in each step, measured, as bars, and what the simulation has each step move, as lines.

    None where no page could be seen to move. A measured move may have any cause, the driver's own prefetches included.
    """
    seen = [step for step in truth.steps if step.h2d is not None]
    if not seen:
        return None
    n = np.array([step.n for step in seen], np.float32)
    moved = {"h2d": [step.h2d or 0 for step in seen], "d2h": [step.evicted or 0 for step in seen]}
    last = simulation.per_step[-1].tolist() if len(simulation.per_step) else [0, 0]
    unit, scale = memory_unit(max(*map(max, moved.values()), *last))
    ends = np.array([n[0] - 0.5, n[-1] + 0.5], np.float32)
    traces: list[Figure] = []
    for (way, name, colour), each_step, dash in zip(_MOVES, last, ("dash", "dot"), strict=True):
        traces += [
            {"type": "bar", "name": f"{name}, measured", "x": n, "y": (np.array(moved[way]) / scale).astype(np.float32),
             "marker": {"color": colour}, "hovertemplate": f"%{{y:,.3f}} {unit}"},
            {"type": "scatter", "mode": "lines", "name": f"{name}, simulated", "x": ends,
             "y": np.full(2, each_step / scale, np.float32), "line": {"color": colour, "width": 2, "dash": dash},
             "hovertemplate": f"%{{y:,.3f}} {unit}"},
        ]  # fmt: skip
    title = f"Each step's paging: measured (bars) beside simulated with {memory_size(simulation.budget)} (lines)"
    layout = axes(title, "step", f"{unit} a step", "", showlegend=True, barmode="group")
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout["xaxis"] |= {"rangemode": "normal"}
    medians = {way: memory_size(statistics.median(values)) for way, values in moved.items()}
    return {"data": traces, "layout": layout}, (
        f"Measured over {counted(len(seen), 'step')}: {medians['h2d']} brought to the GPU and {medians['d2h']} evicted in the "
        f"median step. Simulated: {memory_size(last[0])} and {memory_size(last[1])}."
    )


def truth_table(truth: PagingTruth) -> str:
    """Each figure of the truth meter: the whole run, a step, and how it is known."""
    of_step = {
        "prefetch requested": "requested",
        "migrated host → GPU": "h2d",
        "migrated GPU → host": "d2h",
        "evicted": "evicted",
    }
    rows = [
        (
            r.what,
            "not known" if r.bytes is None else memory_size(r.bytes),
            _median([getattr(step, of_step[r.what]) for step in truth.steps]) if r.what in of_step else NONE,
            r.source,
        )
        for r in truth.readings
    ]
    return table(["what", "the run", "a step (median)", "how it is known"], rows, "Bytes that page", numbers=(1, 2))


def _median(values: list[int | None]) -> str:
    known = [value for value in values if value is not None]
    return memory_size(statistics.median(known)) if known else NONE
