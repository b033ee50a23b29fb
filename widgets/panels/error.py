"""Where the quantization error sits: block by block, and weight by weight in one block."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np

from widgets import block_figures as figures
from widgets.figures import title_of
from widgets.panels.base import View
from widgets.plot import Plot
from widgets.session import Analysis
from widgets.state import ERROR_FIELDS
from widgets.style import fields, grid, heading, note, row, set_note
from widgets.tables import table
from widgets.tasks import guard
from workbench.quantization import quantize
from workbench.scaling import Overview


class BlockErrorView(View):
    """The block map of the leading format, the spread of block errors of all, and an inspector of one block."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Error, block by block", model, **options)

    def build(self) -> list[Any]:
        """Map, spread and inspector."""
        self.map, self.spread, self.inspector = Plot(height=400), Plot(height=400), Plot(height=340)
        self.plots = [self.map, self.spread, self.inspector]
        guarded = guard(self.message)
        self.field = ipywidgets.Dropdown(
            description="Shown for each block",
            options=[(title, name) for name, title in ERROR_FIELDS.items()],
            value=self.session.store.value.error_field,
        )
        self.field.observe(guarded(lambda change: self.update(error_field=change["new"])), "value")
        self.block = ipywidgets.BoundedIntText(description="Block (number)", min=0, max=0, value=0)
        self.block.observe(guarded(self._typed), "value")
        self.worst = ipywidgets.Button(description="Worst block", tooltip="Inspect the block with the largest value")
        self.worst.on_click(guarded(lambda _: self.update(block=None)))
        self.map.on_click(guarded(self._clicked))
        self.told, self.table = note(), ipywidgets.HTML()
        self._typing = True
        return [
            fields(self.field),
            grid(self.map, self.spread),
            heading("One block"),
            row(fields(self.block), self.worst),
            self.told,
            self.inspector,
            self.table,
        ]

    def redraw_on(self) -> frozenset[str]:
        """What the map shows, and which block is inspected."""
        return frozenset({"error_field", "block"})

    def draw(self, analysis: Analysis) -> None:
        """Map, spread and inspector for the analysis and the state's block."""
        state, lead = self.session.store.value, analysis.stats[0]
        self.field.value = state.error_field
        chosen = figures.worst_block(lead, state.error_field) if state.block is None else state.block
        chosen = min(chosen, lead.block_rmse.size - 1)
        values, name = getattr(lead, state.error_field), ERROR_FIELDS[state.error_field]
        self.map.show(
            figures.block_map(lead, state.error_field, chosen),
            f"{name} of each of {values.size:,} blocks under {title_of(lead.spec)}, as a map of the matrix; click one.",
        )
        self.spread.show(
            figures.block_distribution(analysis.stats, state.error_field),
            f"How {name} is spread over the blocks: " + "; ".join(_median(e, state.error_field) for e in analysis.stats) + ".",
        )
        self._inspect(analysis, chosen)

    def _inspect(self, analysis: Analysis, block: int) -> None:
        e = analysis.stats[0]
        size, form = e.spec.block_size, e.spec.definition
        weights = analysis.weights[block * size : (block + 1) * size].astype(np.float32)
        codes = quantize(weights, e.spec, overview=Overview.of(e.block_absmax, size)).codes
        absmax, scale, zero = e.block_absmax[block], e.block_scale[block], e.block_zero[block]
        levels = form.level_of_code[codes] - zero
        with np.errstate(invalid="ignore"):
            restored = levels * scale
        self._typing = False
        self.block.max, self.block.value = e.block_rmse.size - 1, block
        self._typing = True
        per_row = e.blocks_per_row
        place = f"row {block // per_row}, block {block % per_row} of the row" if per_row else "in storage order"
        through = f", {scale:.6g} after double quantization" if e.spec.double_quant else ""
        if not form.double_quantizable:
            through = f", scale {scale:.6g}" + (f", zero point {zero:.0f}" if form.zero_point_bits else "")
        set_note(
            self.told,
            f"Block {block:,} ({place}): {weights.size} weights, absmax {absmax:.6g}{through}, "
            f"RMSE {e.block_rmse[block]:.3e}, largest error {e.block_max[block]:.3e}.",
        )
        self.inspector.show(
            figures.block_weights(weights, restored, (np.unique(form.levels) - zero) * scale, title_of(e.spec)),
            f"The {weights.size} weights of block {block} and the levels they become.",
        )
        shown = min(weights.size, 256)
        with np.errstate(invalid="ignore", divide="ignore"):
            unit, name = (absmax, "absmax") if form.double_quantizable else (scale, "scale")
            normalised = weights / unit if unit else weights
        self.table.value = table(
            ["weight", "value", f"value / {name}", "code", "level", "becomes", "error"],
            [
                (i, f"{w:.6g}", f"{n:+.4f}", int(c), f"{level:+.4f}", f"{r:.6g}", f"{w - r:+.3e}")
                for i, (w, n, c, level, r) in enumerate(zip(weights[:shown], normalised, codes, levels, restored, strict=False))
            ],
            f"Weights, codes and errors of block {block}" + (f", the first {shown}" if shown < weights.size else ""),
            numbers=0,
        )

    def _clicked(self, point: dict[str, Any]) -> None:
        analysis = self.session.analysis
        if analysis is not None and point.get("x") is not None and point.get("y") is not None:
            field = self.session.store.value.error_field
            self.update(block=figures.block_at(analysis.stats[0], field, float(point["x"]), float(point["y"])))

    def _typed(self, change: dict[str, Any]) -> None:
        if self._typing:
            self.update(block=change["new"])


def _median(e: Any, field: str) -> str:
    values = getattr(e, field)
    finite = values[np.isfinite(values)]
    return f"{title_of(e.spec)} median {np.median(finite):.3e}" if finite.size else "no finite block"
