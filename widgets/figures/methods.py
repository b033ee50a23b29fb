"""Full fine-tuning, LoRA and QLoRA side by side, and what an adapter repairs: tables and plotly figures. Draws no widgets.

From the values of ``workbench.cost`` (``MethodResult``, ``Repair``), whether all of them are there yet or not. Each figure
comes with the sentence that says the same to a screen reader.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from widgets.figures.layout import Described, Figure, axes
from widgets.figures.model import Shown, cell_map
from widgets.figures.palette import GREEN, SKY, SYMBOLS, VERMILION
from widgets.figures.tables import table
from workbench.cost.method_results import kl_and_interval
from workbench.memory.ledger import GROUPS
from workbench.sources.kinds import order_of
from workbench.surveys.places import Places
from workbench.text import NONE, counted, known_amount, known_memory_size, listed, memory_size, memory_unit, percent

if TYPE_CHECKING:
    from workbench.cost.method_results import MethodResult
    from workbench.cost.repairs import Repair

TITLES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
_COLOURS = {"full": SKY, "lora": VERMILION, "qlora": GREEN}  # on a light page as on a dark one


def methods_table(results: Iterable[MethodResult]) -> str:
    """A line a method: held-out loss, time, memory, what was trained and what is left on disk. All measured, one seed."""
    head = [
        "method", "KL from 16 bits before (95 %)", "flips", "held-out loss before", "after", "a step (median)", "in all",
        "tensors in memory", "whole process, at most", "trained", "left on disk", "",
    ]  # fmt: skip
    return table(head, [_line(result) for result in results], "Methods compared", numbers=range(1, 11))


def _line(result: MethodResult) -> tuple[str, ...]:
    before, after = (NONE if loss is None else f"{loss:.4f}" for loss in (result.loss_before, result.loss_after))
    return (
        TITLES[result.method], kl_and_interval(result),
        NONE if result.flips_before is None else percent(result.flips_before), before, after,
        NONE if result.seconds_per_step is None else f"{result.seconds_per_step:.3g} s", f"{result.seconds:.1f} s",
        known_memory_size(result.tensor_bytes), known_memory_size(result.peak_bytes),
        f"{result.trained:,} ({percent(result.share)})", known_amount(result.saved_bytes),
        "" if result.state == "finished" else f"{result.state}: {result.message}",
    )  # fmt: skip


def methods_curves(results: Sequence[MethodResult], key: str = "methods") -> Described:
    """Held-out loss, drawn through its marks, and thinner the training loss of each step, a colour a method.

    Args:
        results: What each method came to, as ``wb.compare_methods`` gives it.
        key: The picture's ``uirevision``: while it stays, a zoom does.

    Returns:
        The figure, and a sentence with each loss before and after, in nats a token.
    """
    traces: list[Figure] = []
    for result in results:
        title, colour = TITLES[result.method], _COLOURS[result.method]
        for name, curve, more in (
            (f"{title}, training", result.losses, {"mode": "lines", "line": {"width": 1, "color": colour}, "opacity": 0.6}),
            (f"{title}, held out", result.held_out, {
                "mode": "lines+markers", "line": {"width": 2, "color": colour},
                "marker": {"size": 8, "symbol": "diamond", "color": colour},
            }),
        ):  # fmt: skip
            x, y = np.array(curve, np.float32).reshape(-1, 2).T
            traces.append({"type": "scatter", "name": name, "x": x, "y": y, "hovertemplate": "%{y:.4f}", **more})
    said = [
        f"{TITLES[r.method]} from {r.loss_before:.4f} to {r.loss_after:.4f}"
        for r in results
        if r.loss_before is not None and r.loss_after is not None
    ]
    layout = axes("Loss by method, the same rows in the same order", "step", "nats a token", key, showlegend=True)
    return {"data": traces, "layout": layout}, f"Held-out loss: {listed(said)}." if said else "No method has finished yet."


def methods_memory(results: Sequence[MethodResult], key: str = "methods memory") -> Described:
    """A bar a method: the measured bytes of its tensors by groups of the receipt's categories, stacked.

    Interpreter and libraries, which are the same for each, are left out; on a CPU they would dwarf a small model.
    """
    measured = {r.method: {row.category: row.measured or 0 for row in r.receipt.rows} for r in results if r.receipt.step}
    names = [TITLES[method] for method in measured]
    unit, scale = memory_unit(max((sum(_group(sizes, group) for group in GROUPS) for sizes in measured.values()), default=0))
    traces: list[Figure] = []
    for group in GROUPS:
        sizes = [_group(of, group) for of in measured.values()]
        if any(sizes):
            traces.append(
                {"type": "bar", "orientation": "h", "name": group, "y": names, "x": np.array(sizes, np.float64) / scale,
                 "text": [memory_size(size) for size in sizes], "textposition": "none",
                 "hovertemplate": f"{group}: %{{text}}<extra></extra>"}
            )  # fmt: skip
    layout = axes("Memory by method, measured", unit, "", key, showlegend=True, barmode="stack", bargap=0.35)
    layout["yaxis"] |= {"autorange": "reversed", "categoryorder": "array", "categoryarray": names, "automargin": True}
    layout["hovermode"] = "closest"
    layout["legend"] |= {"traceorder": "normal"}
    said = [f"{TITLES[r.method]} {memory_size(r.tensor_bytes)}" for r in results if r.tensor_bytes is not None]
    return {"data": traces, "layout": layout}, f"Tensors in memory: {listed(said)}." if said else "No method was measured yet."


def _group(sizes: dict[str, int], group: str) -> int:
    return sum(sizes.get(category, 0) for category in GROUPS[group])


REPAIR_FIELDS = {
    "taken_back": "output error taken back",
    "along": "undone along the error itself",
}
"""What the figures of repairs may show: a field of ``Repair``, and its name on screen."""


def repairs_map(
    rows: Iterable[Repair], step: int | None = None, selected: str = "", layer: int | None = None, field: str = "taken_back"
) -> Described:
    """Layers × kinds, coloured by a field of ``REPAIR_FIELDS`` at one checkpoint (``step``; None: the last).

    Blue is taken back, red is added: an adapter learns the task. ``selected`` is a module's path.
    """
    known = list(rows)
    step = max((row.step for row in known), default=0) if step is None else step
    chosen = [row for row in known if row.step == step]
    shown = [Shown(row.name, value := float(getattr(row, field)), -value, _repaired(row)) for row in chosen]
    places, title = Places.named(row.name for row in known), REPAIR_FIELDS[field]
    figure = cell_map(places, shown, title, ".0%", reverse=True, selected=selected, layer=layer)
    figure["data"][1] |= {"colorscale": "RdBu", "zmid": 0}
    if not chosen:
        return figure, "Nothing is measured yet."
    worse = sum(row.error_adapted > row.error_base for row in chosen)
    back, along = (statistics.median(getattr(row, name) for row in chosen) for name in REPAIR_FIELDS)
    does = f"takes back {percent(back)} of" if back >= 0 else f"adds {percent(-back)} to"
    return figure, (
        f"After {step} steps the adapter {does} 4 bits' output error (median of {counted(len(chosen), 'module')}), and adds to "
        f"it in {worse} of them; along the error itself it undoes {percent(along)}."
    )


def _repaired(row: Repair) -> str:
    return (
        f"output error {percent(row.error_base)} without the adapter, {percent(row.error_adapted)} with it; "
        f"undone along the error itself: {percent(row.along)}"
    )


def repairs_curves(rows: Iterable[Repair], key: str = "repairs", field: str = "taken_back") -> Described:
    """A field of ``REPAIR_FIELDS`` over the run's checkpoints, a line a kind: its modules' median. Before training it is 0."""
    by_kind: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, {}).setdefault(row.step, []).append(getattr(row, field))
    traces: list[Figure] = []
    for i, kind in enumerate(sorted(by_kind, key=order_of)):
        points = sorted((step, statistics.median(values)) for step, values in by_kind[kind].items())
        x, y = np.array(points, np.float32).T
        marker = {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8}
        traces.append({"type": "scatter", "mode": "lines+markers", "name": html.escape(kind), "x": x, "y": y, "marker": marker})
        traces[-1]["hovertemplate"] = "%{y:.1%}"
    title = REPAIR_FIELDS[field]
    layout = axes(f"{title[0].upper()}{title[1:]}, by kind of module", "step", "of what 4 bits added", key, showlegend=True)
    layout["yaxis"] |= {"tickformat": ".0%", "zeroline": True}
    last = {kind: statistics.median(of[max(of)]) for kind, of in by_kind.items()}
    said = [f"{kind} {percent(last[kind])}" for kind in sorted(last, key=order_of)]
    return {"data": traces, "layout": layout}, f"At the last checkpoint, {title}: {listed(said)}." if said else "Nothing yet."
