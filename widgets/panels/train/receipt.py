"""The receipt of a run's memory: every category's forecast beside what was measured, as bars and as a table.

Covers showing it, the residual included. ``workbench.receipt`` makes it; nothing is computed here.
"""

from __future__ import annotations

import ipywidgets
import numpy as np

from widgets.controls.style import column, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures.layout import Described, Figure, axes
from widgets.figures.palette import BLUE, GREY, OCHRE
from widgets.figures.tables import table
from workbench.memory.ledger import LIBRARIES, UNEXPLAINED
from workbench.text import NONE, known_memory_size, memory_size, memory_unit
from workbench.training.results.receipts import HOW, MEASURED, Receipt, ReceiptRow

_ROW = 34
"""Pixels of a bar's row."""
_FRAME = 130
_COLOURS = {"forecast": OCHRE, "measured": BLUE}


class RunReceipt:
    """``widget`` holds bars and table; ``update`` brings the present receipt. Before anything is measured it takes no room."""

    def __init__(self) -> None:
        self.plot = Plot({}, summary="No receipt yet.", height=_FRAME)
        self._note, self._table, self._hows = note(), ipywidgets.HTML(), note()
        self.widget = column(heading("Receipt: where the memory went"), self._note, self.plot, self._table, self._hows)
        self.widget.layout.display = "none"
        self._shown: Receipt | None = None

    def update(self, receipt: Receipt) -> None:
        """Show it, if it is another one."""
        if receipt == self._shown:
            return
        self._shown = receipt
        self.widget.layout.display = "" if receipt.totals else "none"
        figure, summary = bars(receipt)
        self.plot.height = _FRAME + _ROW * max(len(trace["y"]) for trace in figure["data"])
        self.plot.show(figure, summary=summary)
        set_note(self._note, receipt.note)
        self._table.value = receipt_table(receipt)
        set_note(self._hows, hows(receipt))


def shown(receipt: Receipt) -> list[ReceiptRow]:
    """The rows with a forecast or a measurement."""
    return [row for row in receipt.rows if row.forecast or row.measured]


def bars(receipt: Receipt) -> Described:
    """Two bars a category, on a common scale; what no category explains has one of its own.

    Interpreter and libraries are in the table only: on a CPU they would dwarf a small model.
    """
    rows = [row for row in shown(receipt) if row.category != LIBRARIES]
    top = max((size for row in rows for size in (row.forecast, row.measured) if size), default=0)
    unit, scale = memory_unit(top)
    names = [row.title for row in rows]
    traces: list[Figure] = []
    for field in ("measured", "forecast"):  # plotly draws the last one on top of its pair
        sizes = [getattr(row, field) for row in rows]
        colours = [GREY if row.category == UNEXPLAINED else _COLOURS[field] for row in rows]
        traces.append(
            {"type": "bar", "orientation": "h", "name": field, "y": names,
             "x": np.array([(size or 0) / scale for size in sizes], np.float32),
             "text": [known_memory_size(size) for size in sizes], "textposition": "outside", "cliponaxis": False,
             "marker": {"color": colours}, "hovertemplate": "%{y}: %{text}"}
        )  # fmt: skip
    layout = axes("Forecast beside measured", unit, "", "", showlegend=True, barmode="group", bargap=0.25)
    layout["yaxis"] |= {"autorange": "reversed", "categoryorder": "array", "categoryarray": names, "automargin": True}
    layout["hovermode"] = "closest"
    least = min((row.measured or 0 for row in rows), default=0)
    layout["xaxis"]["range"] = [1.2 * min(least, 0) / scale, 1.2 * top / scale or 1]  # room for the figures behind the bars
    layout["legend"] |= {"traceorder": "reversed"}
    if receipt.total is None:
        return {"data": traces, "layout": layout}, "No receipt yet."
    total = receipt.totals[0]
    summary = f"Of {memory_size(total.bytes)} ({total.name}) the categories explain {memory_size(total.explained)}"
    return {"data": traces, "layout": layout}, f"{summary}; {memory_size(total.unexplained)} are not explained."


def receipt_table(receipt: Receipt) -> str:
    """Every category, then the totals that were measured whole, each with what the categories explain of it."""
    lines = [
        (r.title, known_memory_size(r.forecast), known_memory_size(r.measured), _difference(r), _known(r.how), r.note)
        for r in shown(receipt)
    ]
    for total in receipt.totals:
        explained = f"{memory_size(total.explained)} explained, {memory_size(total.unexplained)} not; {total.note}"
        lines.append((f"in all: {total.name}", NONE, memory_size(total.bytes), NONE, _known(total.how), explained))
    head = ["category", "forecast", "measured", "measured − forecast", "how it is known", "what it is"]
    return table(head, lines, "Receipt of the run's memory", numbers=(1, 2, 3))


def _known(how: str) -> str:
    """In a word or two; ``hows`` says the rest."""
    return f"measured ({how})" if how in MEASURED else how or HOW[how]


def hows(receipt: Receipt) -> str:
    """What the words in brackets stand for, of those that the table has."""
    used = dict.fromkeys([row.how for row in shown(receipt)] + [total.how for total in receipt.totals])
    return " ".join(f"{how}: {MEASURED[how]}." for how in used if how in MEASURED)


def _difference(row: ReceiptRow) -> str:
    if row.forecast is None or row.measured is None:
        return NONE
    difference = row.measured - row.forecast
    return "0" if not difference else f"{'+' if difference > 0 else '−'}{memory_size(abs(difference))}"
