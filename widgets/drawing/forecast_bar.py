"""``ForecastBar``: a forecast of memory as one stacked bar against a GPU's, its verdict, and what would change it.

Shows what ``widgets.figures.memory.forecast_bar`` makes of a forecast; the GPU is chosen in its corner, and each change is a
button. Computes nothing. forecast_bar.js draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anywidget
import traitlets

from widgets.background.listeners import Listeners
from widgets.drawing.drawing import script


class ForecastBar(anywidget.AnyWidget):
    """``show`` what a forecast comes to; ``gpu`` is the reader's choice among ``gpus``."""

    _esm = script("drawing/element.js", "drawing/forecast_bar.js")
    _css = script("drawing/forecast_bar.css")

    gpu = traitlets.Unicode().tag(sync=True)
    gpus = traitlets.List(traitlets.Unicode()).tag(sync=True)
    content = traitlets.Dict().tag(sync=True)
    """Empty: nothing is forecast yet."""
    problem = traitlets.Unicode().tag(sync=True)
    """Why there is no forecast; empty: there is one, or there will be."""
    legend = traitlets.Bool(True).tag(sync=True)
    """Whether each part's bytes stand below the bar; a ledger may say it in its place."""

    def __init__(self, gpus: Iterable[str], gpu: str, *, legend: bool = True) -> None:
        self._ways: tuple[Mapping[str, Any], ...] = ()
        self._applied = Listeners()
        super().__init__(gpus=list(gpus), gpu=gpu, legend=legend)
        self.on_msg(self._receive)

    def show(self, content: Mapping[str, Any], ways: Iterable[Mapping[str, Any]] = ()) -> None:
        """A forecast, and the fields that each of its ``ways`` changes."""
        self._ways = tuple(ways)
        with self.hold_sync():
            self.content, self.problem = dict(content), ""

    def fail(self, why: str) -> None:
        """There is no forecast."""
        self._ways = ()
        with self.hold_sync():
            self.content, self.problem = {}, why

    def on_apply(self, callback: Callable[[Mapping[str, Any]], None]) -> None:
        """Call ``callback(fields)`` when the reader takes one of the changes."""
        self._applied.add(callback)

    def apply(self, index: int) -> None:
        """Take a change, as a press of its button does."""
        self._applied(self._ways[index])

    def close(self) -> None:
        """Forget the callbacks and free the widget."""
        self._applied.clear()
        self.unobserve_all()
        super().close()

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        shown = [way["label"] for way in self.content.get("ways", ())]
        if message.get("type") == "apply" and message.get("label") in shown:  # else a button of a forecast from before
            self.apply(shown.index(message["label"]))
