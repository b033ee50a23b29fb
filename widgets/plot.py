"""``Plot``: any plotly figure in one small widget, with plotly.js sent once a document.

plotly.js comes from the installed plotly package and needs no network: one model holds it gzipped, every plot refers to
that model, and the browser inflates it once. ``show`` sends only what changed, as one message with binary buffers, while
Python and the browser both keep the current figure, so that a reloaded page, a second tab or a saved notebook shows what is
true now. It does not build figures (see widgets/figures.py) and does not cross-link plots.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import pathlib
import threading
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import anywidget
import traitlets
from ipywidgets import widget_serialization

from widgets.wire import detach, diff, encode_figure, template_json

# Okabe and Ito's colours, which stay apart for colour-blind readers; lighter ones on a dark page.
LIGHT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4f8a", "#b07d00", "#3a9bd1", "#5c5c5c")
DARK_COLOURS = ("#56b4e9", "#ff9b45", "#2fc79a", "#e39ac4", "#f0e442", "#8fa8ff", "#b8b8b8")

DEFAULT_HEIGHT = 320
EVENTS = ("click", "hover", "select", "zoom")

Callback = Callable[[Any], None]


@functools.cache
def _plotly_js() -> tuple[bytes, str]:
    """plotly.js gzipped, and a short hash by which a page knows that it has it already."""
    import plotly

    source = (pathlib.Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    return gzip.compress(source, 6, mtime=0), hashlib.sha256(source).hexdigest()[:16]


def _theme(name: str, colours: tuple[str, ...]) -> dict[str, Any]:
    """A plotly template for figures on the page's own background."""
    template: dict[str, Any] = template_json(name)
    axes = {axis: template["layout"].get(axis, {}) | {"title": {"standoff": 8}} for axis in ("xaxis", "yaxis")}
    layout = (
        template["layout"]
        | axes
        | {
            "colorway": list(colours),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 60, "r": 20, "t": 36, "b": 40},
            "font": {**template["layout"].get("font", {}), "size": 12},
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
    """The one model a document gets that holds plotly.js and the two themes; it has no view."""

    _esm = "export default {};"
    _view_name = traitlets.Unicode(None, allow_none=True).tag(sync=True)  # type: ignore[assignment]
    gzipped = traitlets.Bytes().tag(sync=True)
    version = traitlets.Unicode().tag(sync=True)
    themes = traitlets.Dict().tag(sync=True)

    _shared: ClassVar[PlotlyLibrary | None] = None
    _making = threading.Lock()

    @classmethod
    def shared(cls) -> PlotlyLibrary:
        """The living instance; a new one where there is none or where somebody closed it."""
        with cls._making:
            if cls._shared is None or cls._shared.comm is None:
                gzipped, version = _plotly_js()
                themes = {"light": _theme("plotly_white", LIGHT_COLOURS), "dark": _theme("plotly_dark", DARK_COLOURS)}
                cls._shared = cls(gzipped=gzipped, version=version, themes=themes)
            return cls._shared

    def __repr__(self) -> str:
        return f"PlotlyLibrary({self.version!r})"


class Plot(anywidget.AnyWidget):
    """A plotly figure on the page.

    ``figure`` is a plotly ``Figure`` or a mapping with ``data`` and ``layout``, whose arrays may be numpy arrays;
    ``summary`` is the sentence a screen reader gets in place of the drawing; ``height`` in pixels is kept free from the
    start, so that nothing jumps (None: the figure's own height, else 320). Methods may be called from any thread.

    A figure keeps the reader's zoom through ``show`` unless its ``layout.uirevision`` changes.
    """

    _esm = pathlib.Path(__file__).parent / "plot.js"
    library = traitlets.Instance(PlotlyLibrary, allow_none=True).tag(sync=True, **widget_serialization)
    height = traitlets.Int(DEFAULT_HEIGHT).tag(sync=True)
    _key = traitlets.Unicode().tag(sync=True)
    _listening = traitlets.List(traitlets.Unicode()).tag(sync=True)
    # The state as both sides hold it; its value lives in _state, so that a patch does not also send the whole of it.
    _current = traitlets.Dict().tag(sync=True, to_json=lambda _, plot: plot._state)

    def __init__(self, figure: Any = None, summary: str = "", height: int | None = None) -> None:
        tree = encode_figure(figure if figure is not None else {})
        own_height = tree["layout"].pop("height", None)
        self._lock = threading.RLock()
        self._callbacks: dict[str, list[Callback]] = {event: [] for event in EVENTS}
        self._state: dict[str, Any] = {"revision": 0, "content": tree | {"summary": summary, "error": ""}}
        super().__init__(
            library=PlotlyLibrary.shared(), height=int(height or own_height or DEFAULT_HEIGHT), _key=uuid.uuid4().hex
        )
        self.on_msg(self._receive)

    @property
    def summary(self) -> str:
        """What a screen reader says of the plot."""
        return str(self._state["content"]["summary"])

    @property
    def error(self) -> str:
        """The message that stands in the plot, or an empty string."""
        return str(self._state["content"]["error"])

    def show(self, figure: Any, summary: str | None = None) -> None:
        """Replace the figure, sending only what differs from the present one; clears an error."""
        tree = encode_figure(figure)
        tree["layout"].pop("height", None)
        with self._lock:
            self._become(tree | {"summary": self.summary if summary is None else summary, "error": ""})

    def fail(self, error: BaseException | str) -> None:
        """Show an error as text in the plot; it stays until the next ``show``."""
        text = error if isinstance(error, str) else (str(error) or type(error).__name__)
        with self._lock:
            self._become(self._state["content"] | {"error": text})

    def on_click(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(point)`` for a click; a point is a dict of curve, name, index, x, y, z and customdata."""
        return self._subscribe("click", callback)

    def on_hover(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(point)`` when the pointer rests on a point, at most twenty times a second."""
        return self._subscribe("hover", callback)

    def on_select(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(points)`` with the list of points inside a box or lasso; empty when the selection is dropped."""
        return self._subscribe("select", callback)

    def on_zoom(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(ranges)`` after a zoom: axis name ("xaxis", "yaxis2") to [low, high], or None where it was reset."""
        return self._subscribe("zoom", callback)

    def close(self) -> None:
        """Remove the plot from every page and free its models; closing twice is harmless."""
        for callbacks in self._callbacks.values():
            callbacks.clear()
        layout, library = self.layout, self.library
        super().close()
        if layout is not None:
            layout.close()
        if library is not None:
            self.library = None  # the library itself stays for the other plots

    def _become(self, content: dict[str, Any]) -> None:
        """Make ``content`` the current state and tell the pages; the caller holds the lock."""
        operations = diff(self._state["content"], content)
        if not operations:
            return
        before = self._state["revision"]
        self._state = {"revision": before + 1, "content": content}
        buffers: list[bytes] = []
        patch = [[path, verb, *(detach(value, buffers) for value in values)] for path, verb, *values in operations]
        self.send({"type": "patch", "from": before, "to": before + 1, "operations": patch}, buffers)

    def _subscribe(self, event: str, callback: Callback) -> Callable[[], None]:
        self._callbacks[event].append(callback)
        self._listening = [name for name in EVENTS if self._callbacks[name]]

        def unsubscribe() -> None:
            if callback in self._callbacks[event]:
                self._callbacks[event].remove(callback)
                self._listening = [name for name in EVENTS if self._callbacks[name]]

        return unsubscribe

    def _receive(self, _: Any, message: dict[str, Any], buffers: Any) -> None:
        kind = message.get("type")
        if kind == "hello":  # a page that opened, or missed a patch: send everything unless it is up to date
            with self._lock:
                if message.get("revision") != self._state["revision"]:
                    self.send_state("_current")
        elif kind in EVENTS:
            for callback in tuple(self._callbacks[kind]):
                try:
                    callback(message["detail"])
                except Exception as error:  # nobody else would show it: a callback's exception reaches no cell
                    self.fail(error)

    def __repr__(self) -> str:
        return f"Plot: {self.summary}" if self.summary else "Plot"
