"""How a tensor's weights fall into the bins of a format."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets import figures
from widgets.panels.base import View
from widgets.plot import Plot
from widgets.session import Analysis
from widgets.style import grid, note, row
from widgets.tables import table
from workbench.measurement import merge_equal_levels


class DistributionView(View):
    """Histogram of the block-normalised weights with levels, decision edges and occupancy of up to three formats."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Distribution", model, **options)

    def build(self) -> list[Any]:
        """The histogram, the occupancy and a table of figures."""
        self.histogram, self.occupancy = Plot(height=380), Plot(height=320)
        self.plots = [self.histogram, self.occupancy]
        self.log_counts = ipywidgets.Checkbox(
            description="Logarithmic counts", indent=False, value=self.session.store.value.log_counts
        )
        self.log_counts.observe(lambda change: self.update(log_counts=change["new"]), "value")
        self.table = ipywidgets.HTML()
        return [
            note(
                "Each weight is divided by the largest magnitude of its block. Solid lines are the levels it may become, "
                "dotted ones the edges where it goes to the next; the strips below are the bins, darker where more fall."
            ),
            row(self.log_counts),
            self.histogram,
            grid(self.occupancy, self.table),
        ]

    def redraw_on(self) -> frozenset[str]:
        """The scale of the counts is a matter of drawing."""
        return frozenset({"log_counts"})

    def draw(self, analysis: Analysis) -> None:
        """All three."""
        log = self.session.store.value.log_counts
        self.log_counts.value = log
        names = " and ".join(e.spec.definition.title for e in analysis.stats)
        shares = [100 * merge_equal_levels(e.spec.definition, e.occupancy)[1] / e.numel for e in analysis.stats]
        fullest = ", ".join(
            f"{e.spec.definition.title} {share.max():.1f} % in its fullest bin"
            for e, share in zip(analysis.stats, shares, strict=True)
        )
        self.histogram.show(
            figures.distribution(analysis.histogram, analysis.stats, log),
            f"Histogram of {analysis.tensor.numel:,} weights divided by the absmax of their block, with the levels of {names}.",
        )
        self.occupancy.show(figures.occupancy(analysis.stats), f"Share of the weights in each bin: {fullest}.")
        self.table.value = table(
            ["", *(figures.title_of(e.spec) for e in analysis.stats)],
            [
                ["bits per weight", *(f"{e.spec.bits_per_weight:.3f}" for e in analysis.stats)],
                ["relative RMSE", *(f"{100 * e.relative_rmse:.2f} %" for e in analysis.stats)],
                ["SQNR", *(f"{e.sqnr_db:.2f} dB" for e in analysis.stats)],
                ["RMSE", *(f"{e.rmse:.3e}" for e in analysis.stats)],
                ["mean error", *(f"{e.mae:.3e}" for e in analysis.stats)],
                ["largest error", *(f"{e.max:.3e}" for e in analysis.stats)],
                ["entropy of the codes", *(f"{e.entropy_bits:.2f} of {e.spec.definition.bits} bits" for e in analysis.stats)],
                ["fullest bin", *(f"{share.max():.2f} %" for share in shares)],
                ["emptiest bin", *(f"{share.min():.2f} %" for share in shares)],
            ],
            "What each format costs on this tensor",
        )
