"""How a tensor's weights fall into the bins of a format, how normal they are, and how many lie far out."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets import code
from widgets.controls.binding import bind
from widgets.controls.segments import Faces, Segments
from widgets.controls.style import bar, column, heading, split
from widgets.drawing.plot import Plot
from widgets.figures import bins
from widgets.figures.tables import table
from widgets.panels.base import View
from widgets.panels.normality import NormalityPart
from widgets.session import Analysis
from widgets.state import DISTRIBUTION_FIGURES
from workbench.quant.measure import merge_equal_levels
from workbench.text import number

_WHY = """\
Each weight is divided by the largest magnitude (absmax) of its block. In the histogram solid lines are a format's levels, \
dotted ones the edges between its bins: a weight between two edges becomes the level between them.
Below, a bin is as wide as it is and as high as the share of the weights that fall into it; the dashed line is the share that \
each would have if all were equally full. The table shows the bins under the pointer; arrow keys go from bin to bin.

How normal: NF4's levels are quantiles of a normal distribution. Where the curve of quantiles is steeper than the line, the \
tails are heavier than that. A block with an outlier has a larger scale, and all its weights larger errors."""


class DistributionView(View):
    """The block-normalised weights over the bins of up to three formats, what each costs; quantiles and outliers."""

    needs = frozenset({"bins"})

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Distribution", model, **options)

    def build(self) -> list[Any]:
        """The picture on the left; on the right one of two kinds of figures, the second built when first opened."""
        store = self.session.store
        self.bins = Plot(height=350, waiting="The histogram comes with the first measurement.")
        self.bins.add_class("wb-bins")
        self.plots = [self.bins]
        self.log_counts = ipywidgets.Checkbox(description="log counts", indent=False)
        bind(self.log_counts, store, "log_counts", self.message)
        self.figures = Segments("Figures", DISTRIBUTION_FIGURES)
        bind(self.figures, store, "distribution_figures", self.message)
        self.table = ipywidgets.HTML()
        self.normality: NormalityPart | None = None
        self.faces = Faces({"numbers": lambda: self.table, "normal": self._build_normality})
        self.faces.add_class("wb-figures")
        title = heading("Weight ÷ absmax of its block", _WHY, "solid: levels · dotted: edges of bins")
        return [split(column(bar(title, self.log_counts), self.bins), column(self.figures, self.faces))]

    def _build_normality(self) -> Any:
        self.normality = NormalityPart(self.session, self.message, self._shows_normality)
        self.when_closed(self.normality.close)
        self.plots = [self.bins, self.normality.quantiles]
        return self.normality.widget

    def _shows_normality(self) -> bool:
        return self.active and self.session.store.value.distribution_figures == "normal"

    def redraw_on(self) -> frozenset[str]:
        """The scale of the counts, which figures stand beside them, and what is set against the normal."""
        return frozenset({"log_counts", "distribution_figures", "quantiles_of"})

    def code(self, analysis: Analysis) -> str:
        """The measurements, the histogram, the quantiles and the outliers."""
        return code.distribution(analysis, self.session.store.value.quantiles_of == "blocks")

    def draw(self, analysis: Analysis) -> None:
        """Draws the bins and the figures that are in front; outliers follow once they have been counted."""
        state = self.session.store.value
        titles = [e.spec.definition.title for e in analysis.stats]
        shares = [100 * merge_equal_levels(e.spec.definition, e.occupancy)[1] / e.numel for e in analysis.stats]
        fullest = ", ".join(f"{title} {share.max():.1f} %" for title, share in zip(titles, shares, strict=True))
        self.bins.show(
            bins.distribution(analysis.histogram, analysis.stats, state.log_counts, analysis.bin_errors),
            f"Histogram of {analysis.weights.size:,} weights divided by the absmax of their block, over the bins of "
            f"{' and '.join(titles)}; in the fullest: {fullest}.",
        )
        self.faces.show(state.distribution_figures)
        if state.distribution_figures == "normal" and self.normality is not None:
            self.normality.draw(analysis)
        self.table.value = table(
            ["", *(bins.title_of(e.spec) for e in analysis.stats)],
            [
                ["bits per weight", *(f"{e.spec.bits_per_weight:.3f}" for e in analysis.stats)],
                ["relative RMSE", *(f"{number(100 * e.relative_rmse, '.2f')} %" for e in analysis.stats)],
                ["SQNR", *(f"{number(e.sqnr_db, '.2f')} dB" for e in analysis.stats)],
                ["RMSE", *(number(e.rmse, ".2e") for e in analysis.stats)],
                ["mean error", *(number(e.mae, ".2e") for e in analysis.stats)],
                ["largest error", *(number(e.max, ".2e") for e in analysis.stats)],
                ["entropy of the codes", *(f"{e.entropy_bits:.2f} of {e.spec.definition.bits} bits" for e in analysis.stats)],
                ["fullest bin", *(f"{share.max():.2f} %" for share in shares)],
                ["emptiest bin", *(f"{share.min():.2f} %" for share in shares)],
            ],
            "What each format costs on this tensor",
        )
