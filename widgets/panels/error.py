"""Where the quantization error sits: block by block, and weight by weight in one block."""

from __future__ import annotations

from typing import Any

import numpy as np

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.binding import Ranking, bind
from widgets.controls.style import choice, fields, grid, heading
from widgets.drawing.blockmap import BlockMap
from widgets.drawing.plot import Plot
from widgets.figures import blocks as figures
from widgets.figures.bins import title_of
from widgets.panels.base import View
from widgets.panels.inspector import Inspector
from widgets.session import Analysis
from widgets.state import ERROR_FIELDS

_LISTED = 20


class BlockErrorView(View):
    """The block map of the leading format, the spread over blocks of all, the worst blocks, and an inspector of one block."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Error, block by block", model, **options)

    def build(self) -> list[Any]:
        """Map, spread, list and inspector."""
        self.map, self.spread = BlockMap(height=400), Plot(height=400)
        self._mapped: tuple[Any, str] | None = None
        guarded = guard(self.message)
        self.field = choice("Shown for each block", ERROR_FIELDS)
        bind(self.field, self.session.store, "error_field", self.message)
        self.list = Ranking("Worst blocks", 8, guarded(lambda block: self.update(block=block)))
        self.map.on_select(guarded(lambda block: self.update(block=block)))
        self.inspector = Inspector(self.update, guarded)
        self.plots = [self.map, self.spread, self.inspector.plot]
        return [
            fields(self.field),
            grid(self.map, self.spread),
            fields(self.list, width=340),
            heading("One block"),
            *self.inspector.parts,
        ]

    def redraw_on(self) -> frozenset[str]:
        """What the map shows, which block is inspected, and which weight of it."""
        return frozenset({"error_field", "block", "weight"})

    def code(self, analysis: Analysis) -> str:
        """The map's values, the worst blocks, the block and the weight."""
        return code.block(analysis, self.session.store.value.error_field, self.inspector.block.index, self.inspector.weight)

    def draw(self, analysis: Analysis) -> None:
        """Map, spread, list and inspector for the analysis, the state's block and its weight."""
        state, lead = self.session.store.value, analysis.stats[0]
        worst = figures.worst_blocks(lead, state.error_field, _LISTED)
        chosen = worst[0] if state.block is None else min(state.block, lead.block_rmse.size - 1)
        values, name = getattr(lead, state.error_field), ERROR_FIELDS[state.error_field]
        if self._mapped is not None and self._mapped[0] is lead and self._mapped[1] == state.error_field:
            self.map.select(chosen)
        else:
            self._mapped = (lead, state.error_field)
            whole_rows = lead.blocks_per_row is not None
            self.map.show(
                values,
                figures.map_row_length(lead),
                name=name,
                summary=f"{name} of each of {values.size:,} blocks under {title_of(lead.spec)}, as a map; choose one.",
                rows="row of the matrix" if whole_rows else f"line of {figures.map_row_length(lead)} blocks",
                columns="block of the row" if whole_rows else "block of the line, in storage order",
                selected=chosen,
            )
        self.spread.show(
            figures.block_distribution(analysis.stats, state.error_field),
            f"How {name} is spread over the blocks: " + "; ".join(_median(e, state.error_field) for e in analysis.stats) + ".",
        )
        self._list(lead, state.error_field, worst, chosen)
        self.inspector.show(analysis, chosen, state.weight)

    def _list(self, e: Any, field: str, worst: list[int], chosen: int) -> None:
        values = getattr(e, field)
        wide = max(len(f"{b:,}") for b in worst)
        lines = [(f"{values[b]:.3e}   block {b:>{wide},}   {figures.place_of(e, b)}", b) for b in worst]
        self.list.show(f"Worst blocks by {ERROR_FIELDS[field]}", lines, chosen)


def _median(e: Any, field: str) -> str:
    values = getattr(e, field)
    finite = values[np.isfinite(values)]
    return f"{title_of(e.spec)} median {np.median(finite):.3e}" if finite.size else "no finite block"
