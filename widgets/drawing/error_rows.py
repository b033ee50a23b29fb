"""``ErrorRows``: a model's tensors, the blocks of one, the weights of a block and one weight, as linked rows of one drawing.

The second row is a ``BlockMap`` with all that it can do, its matrix lying down: the longer side goes across. The others are
small enough to travel whole, their arrays as binary. Nothing is computed here; what the rows take is made by
widgets/figures/blocks.py. error_rows.js, error_rows_canvas.js and error_rows_view.js are the other half of this file.

The mouse: a click chooses a tensor, a block, a weight. The keyboard: Tab goes from row to row, arrows move within a row, Enter
chooses, P puts a picture into the notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from widgets.drawing.blockmap import BlockMap
from widgets.drawing.drawing import Callback, script
from widgets.drawing.wire import encode


class Chosen(NamedTuple):
    """What the reader asked for."""

    what: str
    """``cell`` (row, column), ``block``, ``weight``, ``field``, or ``measure``: the model is to be measured, or no longer."""
    value: Any


class ErrorRows(BlockMap):
    """The rows; see the module. ``show`` and ``mark`` send only what differs; methods may be called from any thread."""

    _esm = script(
        "drawing/element.js",
        "drawing/drawing.js",
        "drawing/blockmap_canvas.js",
        "drawing/blockmap.js",
        "drawing/error_rows_canvas.js",
        "drawing/error_rows.js",
        "drawing/error_rows_view.js",
    )
    _css = script("drawing/error_rows.css")

    def __init__(self) -> None:
        super().__init__(height=0)

    def show_rows(self, summary: str, selected: int, values: NDArray[Any] | None, per_row: int, row: str, **parts: Any) -> None:
        """Show a tensor, one of its blocks and a weight of that; clears an error.

        ``values`` (blocks,), None where those on show stay, ``per_row`` and what a ``row`` is called are the block map's;
        ``parts``: see ``widgets.figures.blocks``, and ``name``, what the values are.
        """
        with self._lock:
            before = self._state["content"]
            if values is None:
                shown = before["map"] | {"selected": self._within(selected)}
            else:
                lying = -(-values.size // per_row) > per_row
                shown = self._map(values, per_row, parts["name"], "", row, "block", selected, lying=lying)
            self._become(before | encode(parts) | {"map": shown, "summary": summary, "error": ""})

    def show_model(self, model: dict[str, Any]) -> None:
        """Show what is known of the model by now."""
        with self._lock:
            self._become(self._state["content"] | {"model": encode(model)})

    def mark(self, cell: tuple[int, int]) -> None:
        """Outline another tensor of the model, before its blocks are there."""
        with self._lock:
            content = self._state["content"]
            self._become(content | {"model": content["model"] | {"selected": list(cell)}})

    @property
    def content(self) -> dict[str, Any]:
        """What the page holds, its arrays as numpy's."""
        shown: dict[str, Any] = _arrays(self._state["content"])
        return shown

    def on_choice(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(Chosen(what, value))`` for what the reader chooses; returns a function that ends that."""
        return self._chosen.add(callback)

    def _picked(self, block: int) -> None:
        self._choose(Chosen("block", block))

    def _receive(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        if message.get("type") == "choose":
            self._choose(Chosen(message["what"], message.get("value")))
        else:
            super()._receive(widget, message, buffers)


def _arrays(node: Any) -> Any:
    if isinstance(node, dict):
        if "$array" in node:
            return np.frombuffer(node["data"], node["$array"]).reshape(node["shape"])
        return {key: _arrays(item) for key, item in node.items()}
    return [_arrays(item) for item in node] if isinstance(node, list) else node
