"""What double quantization saves in bytes, and what it costs in error."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets
import numpy as np

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.front_ends import slider
from widgets.controls.style import bar, column, heading, set_heading, set_note, split
from widgets.drawing.plot import Plot
from widgets.figures import scales as figures
from widgets.figures.tables import table
from widgets.panels.base import View
from widgets.session import Analysis
from workbench.memory.savings import double_quant_savings, savings_of_published
from workbench.text import amount, number

_WHY = """\
Every block of weights keeps one float32 absmax. Double quantization stores these in 8 bits, in blocks of their own with a \
float32 scale each, after their mean is taken off. bitsandbytes has blocks of 256.
The pictures: what scales take of each weight; how the absmax values are spread, and by how many percent 8 bits change each; \
how often each of the 256 codes is used. Savings on well-known models are computed from the shapes in their config.json."""

NESTED_SIZES = (32, 64, 128, 256, 512, 1024)


class DoubleQuantView(View):
    """Bits and bytes of the scales with and without double quantization, and the error it adds to the weights."""

    needs = frozenset({"scales"})

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Double quantization", model, **options)

    def build(self) -> list[Any]:
        """Three small pictures beside what they come to in numbers; tensor by tensor below."""
        self.overhead = Plot(height=92, waiting="Bytes and errors come with the first measurement.")
        self.spread, self.codes = Plot(height=148), Plot(height=148)
        self.plots = [self.overhead, self.spread, self.codes]
        now = min(NESTED_SIZES, key=lambda size: abs(size - self.session.store.value.nested_block_size))
        self.nested = slider("Nested block size (scales a second-level scale)", NESTED_SIZES, now)
        self.nested.observe(guard(self.message)(lambda change: self.update(nested_block_size=change["new"])), "value")
        self.key, self.sum, self.table, self.tensors, self.sizes = (ipywidgets.HTML() for _ in range(5))
        pictures, figures = column(self.overhead, self.spread, self.codes), column(self.key, self.table, self.sizes)
        pictures.add_class("wb-pictures")
        figures.add_class("wb-figures")
        self.sizes.add_class("wb-short")
        self.below = heading("")
        line = bar(heading("Bytes saved, error added", _WHY), self.nested)
        return [line, self.sum, split(pictures, figures, wide=True), self.below, self.tensors]

    def code(self, analysis: Analysis) -> str:
        """The two errors, the codes, and the bytes saved."""
        return code.double_quant(analysis, analysis.scales) if analysis.scales else ""

    def draw(self, analysis: Analysis) -> None:
        """Draws the plots and the tables."""
        if analysis.scales is None:  # made before this view was on screen; the next one comes
            return
        plain, doubled, scales = analysis.scales.plain, analysis.scales.doubled, analysis.scales.nested
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
            figures.absmax_spread(plain.block_absmax, scales),
            f"How the {plain.block_absmax.size:,} absmax values are spread, and by how many percent each one changes.",
        )
        self.codes.show(
            figures.nested_codes(scales),
            f"How often each of the 256 codes stands for an absmax: {np.unique(scales.codes).size} of them are used.",
        )
        model = double_quant_savings(analysis.source, block, nested)
        before, after = plain.spec.storage(plain.numel), spec.storage(plain.numel)
        added = 100 * (doubled.rmse / plain.rmse - 1) if plain.rmse else 0.0
        self.key.value = (
            f'<div class="wb-key"><b>{plain.spec.bits_per_weight:.4g} → {spec.bits_per_weight:.4g}</b>bits per weight · '
            f"{_signed(model.saved)} saved on {html.escape(analysis.source.name)}</div>"
        )
        self.table.value = table(
            [plain.spec.definition.title, "without", "with", "difference"],
            [
                ["codes of this tensor", amount(before["codes"]), amount(after["codes"]), "none"],
                _bytes("its scales", sum(before.values()) - before["codes"], sum(after.values()) - after["codes"]),
                _bytes("scales of the model", model.absmax, model.nested),
                ["its RMSE", number(plain.rmse, ".3e"), number(doubled.rmse, ".3e"), f"{number(added, '+.3f')} %"],
                [
                    "its largest error",
                    *(number(v, ".3e") for v in (plain.max, doubled.max)),
                    number(doubled.max - plain.max, "+.1e"),
                ],
            ],
            f"What double quantization saves and costs under {plain.spec.definition.title}",
        )
        set_heading(self.below, "What it saves, tensor by tensor", aside=f"{model.weights:,} quantized weights")
        self.tensors.value = table(
            ["tensor", "scales", "with", "saved"],
            [
                *((r.tensor, amount(r.absmax), amount(r.nested), _signed(r.saved)) for r in model.tensors),
                ("in all", amount(model.absmax), amount(model.nested), _signed(model.saved)),
            ],
            f"What double quantization saves on {analysis.source.name}, tensor by tensor",
        )
        self.sizes.value = table(
            ["also, from their shapes", "weights", "saved"],
            [
                (name.rpartition("/")[2], f"{s.weights / 1e9:.2f} billion", _signed(s.saved))
                for name, s in savings_of_published(block, nested).items()
            ],
            "What double quantization saves on models from 0.5 to 70 billion weights",
        )


def _signed(saved: int) -> str:
    """Bytes saved; with a plus where it takes more, as it does on very small tensors."""
    return amount(saved) if saved >= 0 else f"+{amount(-saved)} more"


def _bytes(name: str, without: int, with_it: int) -> list[str]:
    return [
        name,
        amount(without),
        amount(with_it),
        f"−{amount(without - with_it)}" if without >= with_it else f"+{amount(with_it - without)}",
    ]
