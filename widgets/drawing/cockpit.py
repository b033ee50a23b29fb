"""``Cockpit``: a training run on one clock, with its loss, memory, paging and phases in lanes under a bar that steers it.

The page gets each row of the run once (``workbench.training.results.timeline``), and draws, reads out and replays by itself:
replay asks the kernel nothing. Here are what is sent, and the buttons' names as they come back. Which run, what is said of it,
and what its buttons do is the business of ``panels/train``; the cockpit*.js beside this file are its other half.

The mouse: pointing reads all lanes at that moment, dragging zooms, a double click shows the whole. The keyboard, once the lanes
have the focus: Left and Right go from step to step, + and − zoom, Home shows the whole run, End follows, P puts a picture into
the notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from widgets.drawing.drawing import Drawing, script
from widgets.drawing.wire import appended, diff, encode

ACTIONS = ("pause", "stop", "resume", "edit", "new")
TABLES = ("steps", "evals", "samples", "pages", "phases")
HEIGHT = 449
"""Pixels from the bar's top to the clock's bottom, where the readout stands beside the lanes and the run goes on."""

_PARTS = ("run", "layout", "canvas", "lanes", "paging", "bar", "readout", "replay")
_NO_RUN: Mapping[str, Any] = {
    "run": "", "state": "", "ended": False, "settings": "", "label": "", "actions": [], "total": None, "left": None,
    "names": [], "layers": [], "device": "", "forecast": None, "capacity": None, "libraries": None, "managed": 0,
    "measures": False, "why": "", "simulated": None, "fetch": None,
}  # fmt: skip


class Cockpit(Drawing):
    """One run on the page; see the module for what the reader can do. Methods may be called from any thread."""

    _esm = script(
        "drawing/element.js", "drawing/drawing.js", *(f"drawing/cockpit_{part}.js" for part in _PARTS), "drawing/cockpit.js"
    )
    _css = script("drawing/cockpit.css")

    def __init__(self) -> None:
        super().__init__({**_NO_RUN, "tables": {name: {} for name in TABLES}}, "", HEIGHT)

    def begin(self, run: str, **facts: Any) -> None:
        """Show another run, nothing of which is known yet but the facts; ``run`` names it."""
        with self._lock:
            self._become(
                {**_NO_RUN, **encode(facts), "run": run, "tables": {name: {} for name in TABLES}, "summary": "", "error": ""}
            )

    def update(self, tails: Mapping[str, Mapping[str, np.ndarray]], summary: str = "", **facts: Any) -> None:
        """Add rows to the run's tables, column by column, and change what else is known of it; only that is sent."""
        with self._lock:
            before = self._state["content"]
            tables, operations = dict(before["tables"]), []
            for name, tail in tails.items():
                tables[name], more = appended(tables[name], tail, ["tables", name])
                operations += more
            known = {key: value for key, value in before.items() if key != "tables"}
            now = {**known, **encode(facts), "summary": summary, "error": ""}
            self._publish({**now, "tables": tables}, operations + diff(known, now))

    def on_action(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(name)`` when the reader presses a button of ``ACTIONS``; returns a function that ends that."""
        return self._chosen.add(callback)

    def _receive(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        if message.get("type") in ACTIONS:
            self._choose(message["type"])
        else:
            super()._receive(widget, message, buffers)
