"""How a tensor's weights fall into the bins of a format, how normal they are, and how many lie far out."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets
import numpy as np

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.binding import bind
from widgets.controls.progress import ProgressRow
from widgets.controls.style import choice, column, fields, grid, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import bins
from widgets.figures.normal import quantile_plot
from widgets.figures.tables import table
from widgets.panels.base import View
from widgets.session import Analysis
from widgets.state import QUANTILES_OF
from workbench.quant.measure import merge_equal_levels
from workbench.quant.normality import Quantiles
from workbench.quant.outliers import Outliers
from workbench.text import number


class DistributionView(View):
    """Histogram of the block-normalised weights with levels and occupancy of up to three formats; quantiles; outliers."""

    needs = frozenset({"bins"})

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._normal_of: tuple[Any, ...] = ()
        self._tails_of: tuple[Any, ...] = ()
        self.normal: Quantiles | None = None
        self.tails: Outliers | None = None
        super().__init__("Distribution", model, **options)

    def build(self) -> list[Any]:
        """The histogram, the occupancy and a table of figures; the quantiles and the outliers."""
        guarded = guard(self.message)
        self.work = Work(self.session.executor, guarded(self._found_tails), self.message.error, debounce=0.4)
        self.work.on_progress(lambda step: self._offer() if step is None else None)
        self.when_closed(self.work.close)
        self.when_closed(self.session.on_busy(self._make_way))
        self.count = ipywidgets.Button(description="Count the outliers", tooltip="Count what lies beyond 3, 4 and 6 σ")
        self.count.layout.display = "none"
        self.count.on_click(guarded(lambda _: self._count()))
        self.histogram, self.occupancy, self.quantiles = Plot(height=380), Plot(height=320), Plot(height=320)
        self.plots = [self.histogram, self.occupancy, self.quantiles]
        self.log_counts = ipywidgets.Checkbox(description="Logarithmic counts", indent=False)
        self.of = choice("Against the normal", QUANTILES_OF)
        for control, field in ((self.log_counts, "log_counts"), (self.of, "quantiles_of")):
            bind(control, self.session.store, field, self.message)
        self.table, self.tails_table = ipywidgets.HTML(), ipywidgets.HTML()
        self.summary, self.tails_summary = note(), note()
        return [
            note(
                "Each weight is divided by the largest magnitude of its block. Solid lines are the levels it may become, "
                "dotted ones the edges where it goes to the next; the strips below are the bins, darker where more fall."
            ),
            fields(self.log_counts),
            self.histogram,
            grid(self.occupancy, self.table),
            heading("How normal the weights are, and how many are outliers"),
            fields(self.of, width=220),
            grid(self.quantiles, column(self.summary, self.tails_summary, self.count, ProgressRow(self.work))),
            self.tails_table,
        ]

    def redraw_on(self) -> frozenset[str]:
        """The scale of the counts, and what is set against the normal."""
        return frozenset({"log_counts", "quantiles_of"})

    def code(self, analysis: Analysis) -> str:
        """The measurements, the histogram, the quantiles and the outliers."""
        return code.distribution(analysis, self.session.store.value.quantiles_of == "blocks")

    def draw(self, analysis: Analysis) -> None:
        """Draws everything but the outliers, which follow once they have been counted."""
        log = self.session.store.value.log_counts
        names = " and ".join(e.spec.definition.title for e in analysis.stats)
        shares = [100 * merge_equal_levels(e.spec.definition, e.occupancy)[1] / e.numel for e in analysis.stats]
        fullest = ", ".join(
            f"{e.spec.definition.title} {share.max():.1f} % in its fullest bin"
            for e, share in zip(analysis.stats, shares, strict=True)
        )
        errors = analysis.bin_errors
        self.histogram.show(
            bins.distribution(analysis.histogram, analysis.stats, log, errors),
            f"Histogram of {analysis.weights.size:,} weights divided by the absmax of their block, with the levels of {names}.",
        )
        self.occupancy.show(bins.occupancy(analysis.stats, errors), f"Share of the weights in each bin: {fullest}.")
        self.table.value = table(
            ["", *(bins.title_of(e.spec) for e in analysis.stats)],
            [
                ["bits per weight", *(f"{e.spec.bits_per_weight:.3f}" for e in analysis.stats)],
                ["relative RMSE", *(f"{number(100 * e.relative_rmse, '.2f')} %" for e in analysis.stats)],
                ["SQNR", *(f"{number(e.sqnr_db, '.2f')} dB" for e in analysis.stats)],
                ["RMSE", *(number(e.rmse, ".3e") for e in analysis.stats)],
                ["mean error", *(number(e.mae, ".3e") for e in analysis.stats)],
                ["largest error", *(number(e.max, ".3e") for e in analysis.stats)],
                ["entropy of the codes", *(f"{e.entropy_bits:.2f} of {e.spec.definition.bits} bits" for e in analysis.stats)],
                ["fullest bin", *(f"{share.max():.2f} %" for share in shares)],
                ["emptiest bin", *(f"{share.min():.2f} %" for share in shares)],
            ],
            "What each format costs on this tensor",
        )
        self._draw_quantiles(analysis)
        self._ask_for_tails(analysis)

    def _draw_quantiles(self, analysis: Analysis) -> None:
        of = self.session.store.value.quantiles_of
        size = analysis.state.block_size if of == "blocks" else None
        asked = (analysis.source, analysis.tensor.name, size)
        if asked != self._normal_of:
            self._normal_of, self.normal = asked, None
            if np.isfinite(analysis.stats[0].block_absmax).any():
                self.normal = analysis.measured.quantiles(size)
        found = self.normal
        if found is None:
            self.quantiles.fail("No weight of this tensor is finite.")
            set_note(self.summary, "")
            return
        if math.isnan(found.correlation):
            self.quantiles.fail("All finite weights are equal: they have no distribution.")
            set_note(self.summary, "")
            return
        self.quantiles.show(
            quantile_plot(found, QUANTILES_OF[of]),
            f"Quantiles of the {QUANTILES_OF[of]} against the normal distribution, correlation {found.correlation:.4f}.",
        )
        how = "all finite weights" if found.sampled is None else f"a sample of {found.weights:,} weights"
        set_note(
            self.summary,
            f"Quantiles of {how}: correlation with the normal {found.correlation:.5f}. NF4's levels are quantiles of a normal "
            "distribution; where the curve is steeper than the line the tails are heavier than that.",
        )

    def _ask_for_tails(self, analysis: Analysis) -> None:
        spec = analysis.stats[0].spec
        asked = (analysis.source, analysis.tensor.name, spec)
        if asked == self._tails_of:
            return
        self._tails_of, self.tails = asked, None
        if not np.isfinite(analysis.stats[0].block_absmax).any():
            self.work.cancel()
            self.count.layout.display, self.tails_table.value = "none", ""
            set_note(self.tails_summary, "No weight of this tensor is finite: there are no outliers to count.")
            return
        self._count()

    def _count(self) -> None:
        analysis = self.session.analysis
        if analysis is None:
            return
        self.count.layout.display = "none"
        measured, stats = analysis.measured, analysis.stats[0]
        before = "The table is still the one before. " if self.tails_table.value else ""
        set_note(self.tails_summary, f"{before}Counting the outliers under {stats.spec.title}…")
        self.work.submit(
            f"Counting the outliers of {analysis.tensor.name}",
            "",
            lambda _, cancelled: measured.outliers(stats, cancelled),
        )

    def _make_way(self, busy: bool) -> None:
        """Leaves the cores to what is measured next; outliers that were being counted are counted after it."""
        if busy and self.work.busy:
            self._tails_of = ()
            self.work.cancel()
        elif not busy and not self._tails_of and self.active and self.session.analysis is not None:
            self._ask_for_tails(self.session.analysis)

    def _offer(self) -> None:
        """Shows the button where nothing was counted and no count is under way: it was cancelled, or failed."""
        if self.tails is None and self._tails_of and not self.work.busy:
            self.count.layout.display = ""
            set_note(self.tails_summary, "The outliers have not been counted.")

    def _found_tails(self, found: Outliers) -> None:
        self.tails = found
        if math.isnan(found.farthest):
            self.tails_table.value = ""
            set_note(self.tails_summary, f"All finite weights are equal ({found.mean:.4g}): none lies far from the mean.")
            return
        set_note(
            self.tails_summary,
            f"Beyond k standard deviations of the mean (σ = {found.std:.4g}); kurtosis {found.kurtosis:.2f}, a normal "
            f"distribution has 3; the farthest weight lies at {found.farthest:.1f} σ. A block with an outlier has a larger "
            f"scale, and all its weights larger errors. {found.spec.title}.",
        )
        self.tails_table.value = table(
            ["beyond", "weights", "share", "share if normal", "blocks with one", "RMSE of those", "RMSE of the others"],
            [
                (
                    f"{b.sigmas:g} σ", f"{b.weights:,}", f"{100 * b.share:.3g} %", _rare(b.normal_share),
                    f"{100 * b.block_share:.3g} %", number(b.rmse, ".3e"), number(b.rmse_others, ".3e"),
                )
                for b in found.beyond
            ],
            "Outliers by their distance from the mean",
        )  # fmt: skip


def _rare(share: float) -> str:
    """A share that may be very small."""
    return f"{100 * share:.2g} %" if share >= 1e-6 else f"{1e9 * share:.2g} in a billion"
