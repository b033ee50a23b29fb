"""``Plot``: any plotly figure in one small widget, with plotly.js sent once a document.

plotly.js comes from the installed plotly package and needs no network: one model holds it gzipped, every plot refers to
that model, and the browser inflates it once. What a plot shares with other drawings (state, summary, error, picture) is in
widgets/drawing/drawing.py. It does not build figures (see widgets/figures/bins.py) and does not cross-link plots.

The mouse and the keyboard both reach the points: Left and Right go along a trace, Up and Down to another, Enter clicks, P puts
a picture into the notebook.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import anywidget
import traitlets
from ipywidgets import widget_serialization

from widgets.background.tasks import at_once
from widgets.drawing import plotly_js
from widgets.drawing.drawing import DEFAULT_HEIGHT, Callback, Drawing, script
from widgets.drawing.plotly_js import package_data
from widgets.drawing.wire import encode, encode_figure
from widgets.figures.palette import DARK_COLOURS, LIGHT_COLOURS


def _theme(name: str, colours: tuple[str, ...]) -> dict[str, Any]:
    """A plotly template for figures on the page's own background."""
    template: dict[str, Any] = encode(json.loads(package_data(f"templates/{name}.json")))
    # Labels may overflow: to hide those that do, plotly measures every label of an axis once for each of them, at each redraw.
    own = {"title": {"standoff": 6, "font": {"size": 11}}, "ticklabeloverflow": "allow"}
    axes = {axis: template["layout"].get(axis, {}) | own for axis in ("xaxis", "yaxis")}
    layout = (
        template["layout"]
        | axes
        | {
            "colorway": list(colours),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 52, "r": 8, "t": 24, "b": 36},  # room for a legend in one row
            "font": {**template["layout"].get("font", {}), "size": 11},
            "title": {
                "x": 0,
                "xref": "paper",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 8},
                "font": {"size": 14},
            },
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        }
    )
    return template | {"layout": layout}


class PlotlyLibrary(anywidget.AnyWidget):
    """The one model a document gets that gives it plotly.js and the two themes; it has no view.

    A page asks for plotly.js once, when its first plot is shown: as a part of the model's state it would go into each notebook
    that is saved with widgets. The page takes about a second to evaluate it, and begins before it has the figure.
    """

    _esm = "export default {};"
    _view_name = traitlets.Unicode(None, allow_none=True).tag(sync=True)  # type: ignore[assignment]
    version = traitlets.Unicode().tag(sync=True)
    themes = traitlets.Dict().tag(sync=True)

    _shared: ClassVar[PlotlyLibrary | None] = None
    _making = threading.Lock()

    @classmethod
    def shared(cls) -> PlotlyLibrary:
        """The open instance; a new one where there is none or where it was closed."""
        with cls._making:
            if cls._shared is None or cls._shared.comm is None:
                _, version = plotly_js.gzipped()
                themes = {"light": _theme("plotly_white", LIGHT_COLOURS), "dark": _theme("plotly_dark", DARK_COLOURS)}
                cls._shared = cls(version=version, themes=themes)
                cls._shared.on_msg(cls._give)
                at_once(cls._shared)
            return cls._shared

    def _give(self, content: dict[str, Any], buffers: Any) -> None:
        """Answers a page's greeting; sends the page that asked, and any other that is waiting, plotly.js gzipped."""
        if content.get("type") == "hello":
            self.send({"type": "here"})
        elif content.get("type") == "plotly":
            self.send({"type": "plotly"}, [plotly_js.gzipped()[0]])

    def __repr__(self) -> str:
        return f"PlotlyLibrary({self.version!r})"


class Plot(Drawing):
    """A plotly figure on the page.

    Methods may be called from any thread. A figure keeps the reader's zoom through ``show`` unless its ``layout.uirevision``
    changes.

    Traces over one x axis can be read off in a table below the figure: those whose ``meta`` is a list of column names and whose
    ``customdata`` has a text for each point, its cells parted by tabs. The table shows each such trace at the x under the
    pointer, or of the point that the keys have come to; nothing of it asks the kernel.

    Args:
        figure: A plotly ``Figure``, or a mapping with ``data`` and ``layout``, whose arrays may be numpy arrays.
        summary: What the figure says, in words.
        height: Pixels; None is the figure's own, else 320.
        waiting: Where there is no figure, the sentence in its place: what it waits for, or why there is none.
    """

    _esm = script("drawing/element.js", "drawing/drawing.js", "drawing/plotly_once.js", "drawing/plot.js")
    library = traitlets.Instance(PlotlyLibrary, allow_none=True).tag(sync=True, **widget_serialization)

    def __init__(self, figure: Any = None, summary: str = "", height: int | None = None, waiting: str = "") -> None:
        tree = encode_figure(figure if figure is not None else {})
        own_height = tree["layout"].pop("height", None)
        height = int(height or own_height or DEFAULT_HEIGHT)
        super().__init__(tree | {"waiting": waiting}, summary, height, library=PlotlyLibrary.shared())

    def show(self, figure: Any, summary: str | None = None) -> None:
        """Replace the figure, sending only what differs from the present one; clears an error.

        Args:
            figure: A figure, as the class takes it.
            summary: The summary; None: the present one stays.
        """
        tree = encode_figure(figure)
        tree["layout"].pop("height", None)
        with self._lock:
            self._become(tree | {"summary": self.summary if summary is None else summary, "error": "", "waiting": ""})

    def wait(self, waiting: str) -> None:
        """Take the figure away and say in its place what it waits for; clears an error."""
        with self._lock:
            self._become({"data": [], "layout": {}, "summary": waiting, "error": "", "waiting": waiting})

    def on_click(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(point)`` for a click; a point is a dict of curve, name, index, x, y, z and customdata."""
        return self._chosen.add(callback)

    def close(self) -> None:
        """Remove the plot from every page and free its models; closing twice is harmless."""
        super().close()
        if self.library is not None:
            self.library = None  # the library itself stays for the other plots

    def _receive(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        if message.get("type") == "click":
            self._choose(message["detail"])
        else:
            super()._receive(widget, message, buffers)
