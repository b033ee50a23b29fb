"""``BlockMap``: one value for each block of a matrix, however many there are, on a canvas.

The page gets what its screen can show: Python pools the visible part of the whole map at that resolution, each cell the
largest of its blocks, in 8 bits. Zooming in asks for the part anew, until a cell is a block. The exact values stay in Python,
which gives that of the block under the pointer or the cursor. It does not compute the values; curves and bars are
widgets/drawing/plot.py's.

::

    map = BlockMap(height=400)
    map.show(
        e.block_rmse, per_row=e.blocks_per_row, name="RMSE", rows="row of the matrix", columns="block of the row",
        summary="RMSE of each of 704,512 blocks as a map of the matrix; choose one.",
    )
    map.on_select(lambda block: ...)    # the number of the block that the reader chose: its index in the values
    map.select(17)                      # marks a block, without a callback
    map.selected; map.fail(error); map.picture(); map.close()

The mouse: a click chooses the worst block under it, dragging zooms to a box, Shift and dragging moves the part, Ctrl and the
wheel zoom, a double click shows the whole. The keyboard, once the map has the focus: arrows go from block to block (with Shift
ten cells), Enter chooses, + and − zoom, Home shows the whole, P puts a picture into the notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from widgets.drawing.drawing import DEFAULT_HEIGHT, Callback, Drawing, script
from widgets.drawing.wire import encode
from workbench.quant.measure import pool_blocks

TOP, NO_BLOCK, NOT_FINITE = 253, 254, 255
"""Codes of a cell: 0 to ``TOP`` from the least to the largest value; no block there; a block whose value is not finite."""

MAX_CELLS = 200_000
"""Cells of one view at most, a byte each."""

_START = (320, 480)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class _Values:
    """What a map shows; immutable, since the page's requests may come on any thread."""

    blocks: NDArray[np.float32]
    """float32 (blocks,)."""
    per_row: int
    lying: bool
    """Whether the matrix lies down: its rows go across the picture, its blocks down."""
    name: str
    unit: str
    row: str
    block: str
    """What one row and one block of a row are called."""
    low: float
    high: float
    bad: NDArray[np.float32] | None
    """float32 (blocks,): 1 where a value is not finite; None where all are."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the picture: what stands below one another, and side by side."""
        return self._turned(-(-self.blocks.size // self.per_row), self.per_row)

    def view(self, rows: tuple[int, int], columns: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
        """The part of the map inside the window, pooled to at most ``size`` (height, width) cells, as the page takes it."""
        window = (self.per_row, *self._turned(*size), *self._turned(rows, columns))
        cells, covered = pool_blocks(self.blocks, *window)
        tall, wide = self._turned(*covered)
        span = self.high - self.low
        with np.errstate(invalid="ignore"):
            scaled = (cells - self.low) * (TOP / span if span else 0.0)
            codes = np.where(np.isfinite(cells), np.rint(scaled), NO_BLOCK).astype(np.uint8)
        if self.bad is not None:  # a block that could not be measured must not hide behind its neighbours
            codes[pool_blocks(self.bad, *window)[0] > 0] = NOT_FINITE
        codes = np.ascontiguousarray(codes.T if self.lying else codes)
        return {"rows": rows, "columns": columns, "tall": tall, "wide": wide, "cells": codes.reshape(-1)}

    def worst(self, rows: tuple[int, int], columns: tuple[int, int]) -> int | None:
        """The block with the largest value inside a window, one without a finite value before all others; None: no block."""
        down, across = self._turned(rows, columns)
        places = np.add.outer(np.arange(*down) * self.per_row, np.arange(*across)).reshape(-1)
        places = places[places < self.blocks.size]
        if not places.size:
            return None
        values = self.blocks[places]
        return int(places[np.argmax(np.where(np.isfinite(values), values, np.inf))])

    def describe(self, block: int, among: int = 1) -> str:
        """A block's place and value in words."""
        row, column = divmod(block, self.per_row)
        place = f"{self.row} {row:,}, {self.block} {column:,}"
        value = float(self.blocks[block])
        number = f"{value:.4g} {self.unit}".strip() if np.isfinite(value) else "no finite value"
        return f"{place}: {self.name} {number}" + (f", the largest of {among:,} blocks here" if among > 1 else "")

    def _turned(self, down: _T, across: _T) -> tuple[_T, _T]:
        return (across, down) if self.lying else (down, across)


class BlockMap(Drawing):
    """A map of block values, zoomed and read in place; see the module for how to use it and what the reader can do.

    Methods may be called from any thread. ``error`` and ``summary`` are those of every drawing.
    """

    _esm = script(
        "drawing/element.js",
        "drawing/drawing.js",
        "drawing/blockmap_canvas.js",
        "drawing/blockmap.js",
        "drawing/blockmap_alone.js",
    )

    def __init__(self, height: int = DEFAULT_HEIGHT, **more: Any) -> None:
        self._values: _Values | None = None
        self._number = 0
        self._size = _START
        super().__init__({"map": None} | more, "", height)

    @property
    def selected(self) -> int | None:
        """The marked block."""
        shown = self._state["content"]["map"]
        return shown["selected"] if shown else None

    def show(
        self,
        values: NDArray[Any],
        per_row: int,
        *,
        name: str,
        summary: str,
        unit: str = "",
        rows: str = "row",
        columns: str = "block",
        selected: int | None = None,
    ) -> None:
        """Show block values (blocks,), ``per_row`` of them in a row, the last row perhaps short; clears an error.

        ``name`` and ``unit`` say what the values are, ``rows`` and ``columns`` title the axes, their first words naming one
        row and one block. Values that are not finite are shown as such. A map of the same shape keeps the reader's zoom.
        Raises ValueError if ``per_row`` is below 1 or there is no value.
        """
        with self._lock:
            content = self._map(values, per_row, name, unit, rows, columns, selected)
            self._become({"map": content, "summary": summary, "error": ""})

    def select(self, block: int | None) -> None:
        """Mark a block, None: none; the reader's zoom moves only as far as is needed to see it."""
        with self._lock:
            if shown := self._state["content"]["map"]:
                self._become(self._state["content"] | {"map": shown | {"selected": self._within(block)}})

    def on_select(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback(block)`` when the reader has chosen a block, which is marked; returns a function that ends that."""
        return self._chosen.add(callback)

    def _map(
        self, values: NDArray[Any], per_row: int, name: str, unit: str, rows: str, columns: str, selected: int | None,
        *, lying: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Take in other values; returns what the page needs of them. The caller holds the lock."""
        blocks = np.ascontiguousarray(values, np.float32).reshape(-1)
        if per_row < 1 or not blocks.size:
            raise ValueError(f"A block map needs values and rows: {blocks.size} values, {per_row} in a row.")
        finite = np.isfinite(blocks)
        whole = bool(finite.all())
        low = float(np.min(blocks, initial=np.inf, where=finite))
        high = float(np.max(blocks, initial=-np.inf, where=finite))
        if low > high:
            low = high = 0.0
        shown = _Values(
            blocks=blocks, per_row=per_row, lying=lying, name=name, unit=unit, row=rows.split()[0], block=columns.split()[0],
            low=low, high=high, bad=None if whole else (~finite).astype(np.float32),
        )  # fmt: skip
        self._values, self._number = shown, self._number + 1
        down, across = (columns, rows) if lying else (rows, columns)
        return {
            "number": self._number, "shape": list(shown.shape), "lying": lying, "count": blocks.size, "name": name,
            "unit": unit, "rows": down, "columns": across, "low": low, "high": high,
            "bad": 0 if whole else int((~finite).sum()),
            "selected": self._within(selected), "overview": self._overview(shown),
        }  # fmt: skip

    def _within(self, block: int | None) -> int | None:
        return None if block is None or self._values is None else max(0, min(int(block), self._values.blocks.size - 1))

    def _overview(self, values: _Values) -> Any:
        rows, columns = values.shape
        return encode(values.view((0, rows), (0, columns), self._size))

    def _receive(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        kind, values = message.get("type"), self._values
        if kind not in ("view", "describe", "pick"):
            super()._receive(widget, message, buffers)
        elif values is not None and message.get("number") == self._number:  # else about a map that is gone
            rows, columns = (_clip(message[axis], end) for axis, end in zip(("rows", "columns"), values.shape, strict=True))
            if kind == "view":
                self._refine(values, rows, columns, message)
            elif (block := values.worst(rows, columns)) is None:
                return
            elif kind == "describe":
                among = (rows[1] - rows[0]) * (columns[1] - columns[0])
                self.send({"type": "described", "id": message["id"], "text": values.describe(block, among)})
            else:
                self.select(block)
                self._picked(block)

    def _picked(self, block: int) -> None:
        """Tell who listens that the reader chose this block."""
        self._choose(block)

    def _refine(self, values: _Values, rows: tuple[int, int], columns: tuple[int, int], message: dict[str, Any]) -> None:
        """Answer with a part of the map; the whole of it becomes what every page starts from."""
        size = _bounded(int(message["height"]), int(message["width"]))
        if (rows, columns) == ((0, values.shape[0]), (0, values.shape[1])):
            with self._lock:
                self._size = size
                shown = self._state["content"]["map"]
                if values is self._values and shown:
                    self._become(self._state["content"] | {"map": shown | {"overview": self._overview(values)}})
            self.send({"type": "refined", "id": message["id"]})
            return
        view = values.view(rows, columns, size)
        cells = view.pop("cells")
        self.send({"type": "refined", "id": message["id"], "view": view}, [cells.tobytes()])


def _clip(ends: Any, count: int) -> tuple[int, int]:
    first = max(0, min(int(ends[0]), count - 1))
    return first, max(first + 1, min(int(ends[1]), count))


def _bounded(height: int, width: int) -> tuple[int, int]:
    """The size that the page asks for, at least 1 × 1 and at most ``MAX_CELLS`` cells."""
    height, width = max(height, 1), max(width, 1)
    shrink = min(1.0, (MAX_CELLS / (height * width)) ** 0.5)
    return max(1, int(height * shrink)), max(1, int(width * shrink))
