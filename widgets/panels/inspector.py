"""One block in detail: its weights, codes and errors, and the arithmetic of one weight written out.

Shows what ``workbench.quant.inspect`` finds; the state says which block and weight, and ``BlockErrorView`` passes them on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np

from widgets.controls.binding import Quiet
from widgets.controls.style import fields, note, row, set_note
from widgets.drawing.plot import Plot
from widgets.figures import blocks as figures
from widgets.figures.bins import title_of
from widgets.figures.tables import steps, table
from widgets.session import Analysis
from workbench.quant.inspect import Block, inspect_block

SHOWN = 256
"""Weights that the table lists at most; the plot and the arithmetic have them all."""


class Inspector:
    """The widgets in ``parts``, which a panel takes in; ``update(block=…, weight=…)`` is called for what the reader chooses."""

    block: Block
    """What is shown."""

    def __init__(self, update: Callable[..., None], guarded: Callable[[Callable[..., Any]], Callable[..., None]]) -> None:
        self._update, self._quiet = update, Quiet()
        self.number = ipywidgets.BoundedIntText(description="Block (number)", min=0, max=0, value=0)
        self._quiet.on_change(self.number, guarded(lambda number: update(block=number)))
        self.worst = ipywidgets.Button(description="Worst block", tooltip="Inspect the block with the largest value")
        self.worst.on_click(guarded(lambda _: update(block=None)))
        self.place = ipywidgets.BoundedIntText(description="Weight (place in the block)", min=0, max=0, value=0)
        self._quiet.on_change(self.place, guarded(lambda place: update(weight=place)))
        self.largest = ipywidgets.Button(description="Largest error", tooltip="Follow the weight with the largest error")
        self.largest.on_click(guarded(lambda _: update(weight=None)))
        self.summary, self.table, self.sum = note(), ipywidgets.HTML(), ipywidgets.HTML()
        self.plot = Plot(height=340)
        self.plot.on_click(guarded(self._clicked))
        self.weight = 0
        self.parts = [
            row(fields(self.number), self.worst, fields(self.place), self.largest),
            self.summary,
            self.plot,
            self.sum,
            self.table,
        ]

    def show(self, analysis: Analysis, index: int, weight: int | None) -> None:
        """The ``index``-th block of the leading format, and the arithmetic of a weight of it (None: the largest error's)."""
        e = analysis.stats[0]
        self.block = b = inspect_block(analysis.weights, e, index)
        self.weight = b.worst if weight is None else min(weight, b.weights.size - 1)
        with self._quiet:
            self.number.max, self.number.value = e.block_rmse.size - 1, index
            self.place.max, self.place.value = b.weights.size - 1, self.weight
        set_note(
            self.summary,
            f"Block {index:,} ({figures.place_of(e, index)}): {b.weights.size} weights, {_scale(b)}, "
            f"RMSE {e.block_rmse[index]:.3e}, largest error {e.block_max[index]:.3e}.",
        )
        with np.errstate(invalid="ignore", over="ignore"):
            levels = (np.unique(b.spec.definition.levels) - b.zero) * b.scale
        self.plot.show(
            figures.block_weights(b.weights, b.restored, levels.astype(np.float32), title_of(b.spec), self.weight),
            f"The {b.weights.size} weights of block {index} and the levels they become; weight {self.weight} is marked.",
        )
        self.sum.value = steps(f"Weight {self.weight}, step by step", b.arithmetic(self.weight))
        shown = min(b.weights.size, SHOWN)
        caption = f"Weights, codes and errors of block {index}"
        self.table.value = table(
            ["weight", "value", f"value / {_divisor(b)}", "code", "level", "becomes", "error"],
            [
                (i, f"{x:.6g}", f"{n:+.4f}", int(c), f"{level:+.4f}", f"{r:.6g}", f"{d:+.3e}")
                for i, (x, n, c, level, r, d) in enumerate(
                    zip(b.weights[:shown], b.normalised, b.codes, b.levels, b.restored, b.errors, strict=False)
                )
            ],
            caption + (f", the first {shown}" if shown < b.weights.size else ""),
            numbers=0,
        )

    def _clicked(self, point: dict[str, Any]) -> None:
        if point.get("x") is not None:
            self._update(weight=max(0, min(round(float(point["x"])), self.block.weights.size - 1)))


def _divisor(b: Block) -> str:
    """What a weight is divided by, by name."""
    form = b.spec.definition
    return "absmax" if form.double_quantizable else "step + zero point" if form.zero_point_bits else "scale"


def _scale(b: Block) -> str:
    """The block's scale, before and after its own quantization, in words."""
    if b.nested is not None:
        return f"absmax {b.absmax:.6g} before and {b.scale:.6g} after double quantization (8-bit code {b.nested.code})"
    if b.spec.definition.double_quantizable:
        return f"absmax {b.absmax:.6g}"
    zero = f", zero point {b.zero:.0f}" if b.spec.definition.zero_point_bits else ""
    return f"absmax {b.absmax:.6g}, scale {b.scale:.6g}{zero}"
