"""What double quantization saves in bytes, and what it costs in error."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets import figures
from widgets.panels.base import View
from widgets.plot import Plot
from widgets.session import Analysis
from widgets.style import fields, grid, note, set_note
from widgets.tables import amount, table
from workbench.memory import double_quant_savings

NESTED_SIZES = (32, 64, 128, 256, 512, 1024)


class DoubleQuantView(View):
    """Bits and bytes of the scales with and without double quantization, and the error it adds to the weights."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Double quantization", model, **options)

    def build(self) -> list[Any]:
        """The sum, the two plots, the table."""
        self.overhead, self.spread = Plot(height=300), Plot(height=300)
        self.plots = [self.overhead, self.spread]
        self.nested = ipywidgets.SelectionSlider(
            description="Nested block size (scales a second-level scale)",
            options=NESTED_SIZES,
            value=min(NESTED_SIZES, key=lambda size: abs(size - self.session.store.value.nested_block_size)),
            continuous_update=False,
        )
        self.nested.add_class("wb-span")
        self.nested.observe(lambda change: self.update(nested_block_size=change["new"]), "value")
        self.sum, self.table = note(), ipywidgets.HTML()
        return [
            note(
                "Every block of weights keeps one float32 absmax. Double quantization stores these in 8 bits, in blocks of "
                "their own with a float32 scale each, after their mean is taken off. bitsandbytes has blocks of 256."
            ),
            fields(self.nested),
            self.sum,
            grid(self.overhead, self.spread),
            self.table,
        ]

    def draw(self, analysis: Analysis) -> None:
        """All of it."""
        plain, doubled = analysis.plain, analysis.doubled
        spec = doubled.spec
        block, nested = spec.block_size, spec.nested_block_size
        if nested in NESTED_SIZES:
            self.nested.value = nested
        saved = plain.spec.bits_per_weight - spec.bits_per_weight
        for_scales = spec.bits_per_weight - spec.definition.bits
        lead = analysis.stats[0].spec.definition
        instead = (
            "" if lead.double_quantizable else f"{lead.title} keeps no absmax that could be quantized again; NF4 is shown. "
        )
        set_note(
            self.sum,
            f"{instead}Bits per weight for scales: 32/{block} = {32 / block:.4g}  →  8/{block} + 32/({block}·{nested}) = "
            f"{for_scales:.4f}. Saved: {saved:.4f} bits per weight, on {plain.spec.bits_per_weight:.4g} in all.",
        )
        self.overhead.show(
            figures.scale_overhead(spec),
            f"Scales take {32 / block:.4g} bits per weight; with double quantization {for_scales:.4f}.",
        )
        self.spread.show(
            figures.absmax_spread(plain.block_absmax, analysis.nested),
            f"How the {plain.block_absmax.size:,} absmax values are spread, and by how many percent each one changes.",
        )
        model = double_quant_savings(analysis.source, block, nested)
        before, after = plain.spec.storage(plain.numel), spec.storage(plain.numel)
        added = 100 * (doubled.rmse / plain.rmse - 1) if plain.rmse else 0.0
        self.table.value = table(
            ["", "without", "with", "difference"],
            [
                ["codes of this tensor", amount(before["codes"]), amount(after["codes"]), "none"],
                _bytes("scales of this tensor", sum(before.values()) - before["codes"], sum(after.values()) - after["codes"]),
                _bytes(f"scales of the model's {model.weights:,} quantized weights", model.absmax, model.nested),
                ["RMSE of this tensor's weights", f"{plain.rmse:.5e}", f"{doubled.rmse:.5e}", f"{added:+.3f} %"],
                ["largest error", f"{plain.max:.5e}", f"{doubled.max:.5e}", f"{doubled.max - plain.max:+.2e}"],
            ],
            f"What double quantization saves and costs under {plain.spec.definition.title}",
        )


def _bytes(name: str, without: int, with_it: int) -> list[str]:
    return [
        name,
        amount(without),
        amount(with_it),
        f"−{amount(without - with_it)}" if without >= with_it else f"+{amount(with_it - without)}",
    ]
