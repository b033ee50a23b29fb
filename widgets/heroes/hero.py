"""``Hero``: one picture that computes what follows a drag by itself, on numbers that Python sends once.

Covers what all heroes share: the data, the state that the reader drags, and the shape in which arrays travel. What each draws
is its own script's business; hero.js, handle.js and quantize.js hold what several of them need. The scripts know nothing of
Jupyter: ``render`` takes anything with ``get("data")`` and ``get("state")``, so that a page without a kernel can show them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import ArrayLike, NDArray

from widgets.drawing import notebook
from widgets.drawing.drawing import script
from workbench.errors import FormatError
from workbench.quant.quantize import as_weights

MOST = 1 << 18
"""Weights of a hero at most: a page goes through all of them while a handle is dragged."""
STYLE = script("drawing/colab.css", "heroes/hero.css")


class Hero(notebook.Noted, anywidget.AnyWidget):
    """A picture to drag; ``state`` is what the reader set, and setting it moves the picture."""

    _css = STYLE

    data = traitlets.Dict().tag(sync=True)
    """What the page computes with. Arrays are base64 (``packed``): Colab drops the buffers of a widget's first message."""
    state = traitlets.Dict().tag(sync=True)
    """The handles' places, by name; JSON."""

    def __init__(self, data: dict[str, Any], state: dict[str, Any]) -> None:
        self.made_in = notebook.present_cell()
        super().__init__(data=data, state=state)

    def close(self) -> None:
        """Remove the picture from every page and free its models; closing twice is harmless."""
        layout = self.layout
        super().close()
        if layout is not None:
            layout.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.state.items())})"


def hero_script(name: str, *more: str) -> str:
    """The JavaScript module of the hero in ``heroes/<name>.js``, with what all of them share before it, and ``more`` files."""
    shared = ("hero.js", "handle.js", "quantize.js", "double_quantize.js")
    return script("drawing/element.js", *more, *(f"heroes/{each}" for each in (*shared, f"{name}.js")))


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """An array as JSON: its dtype, shape and little-endian bytes in base64. bfloat16 stays what it is."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(little.tobytes()).decode()}


def checked(weights: ArrayLike, least: int) -> NDArray[Any]:
    """Weights that a page can hold. Raises FormatError where they are too few or too many, or not finite."""
    array = np.asarray(weights)
    as_weights(array)  # raises where the dtype holds no weights
    if not least <= array.size <= MOST:
        remedy = f"Give from {least:,} to {MOST:,} weights: some rows of the tensor."
        raise FormatError(f"{array.size:,} weights cannot be drawn here.", where="weights", remedy=remedy)
    if not np.isfinite(array.astype(np.float32)).all():
        raise FormatError("There are weights that are not finite.", where="weights", remedy="Choose rows without them.")
    return array if array.dtype.name == "bfloat16" else array.astype(np.float32)


def among(value: Any, allowed: Iterable[Any], what: str) -> Any:
    """``value``, if it is one of ``allowed``; else FormatError with all that there are."""
    there = list(allowed)
    if not any(value is one or (type(value) is type(one) and value == one) for one in there):
        raise FormatError(f"There is no {what} {value!r} here.", remedy=f"Choose one of: {', '.join(map(str, there))}.")
    return value
