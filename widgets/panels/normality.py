"""A part of the Distribution view: how near a tensor's weights are to a normal distribution, and how many are outliers.

Covers the quantile plot, counting the outliers, and its button and progress. The numbers are ``workbench.quant``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np

from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.binding import bind
from widgets.controls.message import Message
from widgets.controls.progress import ProgressRow
from widgets.controls.style import bar, choice, column, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures.normal import quantile_plot
from widgets.figures.tables import table
from widgets.session import Analysis, Session
from widgets.state import QUANTILES_OF
from workbench.quant.normality import Quantiles
from workbench.quant.outliers import Beyond, Outliers
from workbench.text import number


class NormalityPart:
    """``normal`` and ``tails`` are what is known of the tensor on show; ``shown()`` says whether the part is in front."""

    def __init__(self, session: Session, message: Message, shown: Callable[[], bool]) -> None:
        self._session, self._shown = session, shown
        self._normal_of: tuple[Any, ...] = ()
        self._tails_of: tuple[Any, ...] = ()
        self.normal: Quantiles | None = None
        self.tails: Outliers | None = None
        guarded = guard(message)
        self.work = Work(session.executor, guarded(self._found_tails), message.error, debounce=0.4)
        self.work.on_progress(lambda step: self._offer() if step is None else None)
        self._end = session.on_busy(self._make_way)
        self.count = ipywidgets.Button(description="Count the outliers", tooltip="Count what lies beyond 3, 4 and 6 σ")
        self.count.layout.display = "none"
        self.count.on_click(guarded(lambda _: self._count()))
        self.of = choice("Quantiles of", QUANTILES_OF)
        bind(self.of, session.store, "quantiles_of", message)
        self.quantiles = Plot(height=152, waiting="The quantiles come with the first measurement.")
        self.summary, self.tails_summary, self.tails_table = note(), note(), ipywidgets.HTML()
        self.widget = column(
            bar(self.of), self.quantiles, self.summary, self.tails_table, self.tails_summary, self.count, ProgressRow(self.work)
        )

    def draw(self, analysis: Analysis) -> None:
        """Draws the quantiles; the outliers follow once they have been counted."""
        self._draw_quantiles(analysis)
        self._ask_for_tails(analysis)

    def close(self) -> None:
        """Ends the counting; the panel around frees the widgets."""
        self._end()
        self.work.close()

    def _draw_quantiles(self, analysis: Analysis) -> None:
        of = self._session.store.value.quantiles_of
        size = analysis.state.block_size if of == "blocks" else None
        asked = (analysis.source, analysis.tensor.name, size)
        if asked != self._normal_of:
            self._normal_of, self.normal = asked, None
            if np.isfinite(analysis.stats[0].block_absmax).any():
                self.normal = analysis.measured.quantiles(size)
        found = self.normal
        set_note(self.summary, "")
        if found is None:
            self.quantiles.wait("No weight of this tensor is finite.")
        elif math.isnan(found.correlation):
            self.quantiles.wait("All finite weights are equal: they have no distribution.")
        else:
            self.quantiles.show(
                quantile_plot(found, QUANTILES_OF[of]),
                f"Quantiles of the {QUANTILES_OF[of]} against the normal distribution, correlation {found.correlation:.4f}.",
            )
            how = "all finite weights" if found.sampled is None else f"{found.weights:,} weights sampled"
            set_note(self.summary, f"Correlation {found.correlation:.5f} · {how}")

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
        analysis = self._session.analysis
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
        elif not busy and not self._tails_of and self._shown() and self._session.analysis is not None:
            self._ask_for_tails(self._session.analysis)

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
            f"σ = {found.std:.4g} · kurtosis {found.kurtosis:.2f} (normal: 3) · farthest {found.farthest:.1f} σ · RMSE under "
            f"{found.spec.title}",
        )
        self.tails_table.value = table(
            ["beyond", *(f"{b.sigmas:g} σ" for b in found.beyond)],
            [[name, *map(text, found.beyond)] for name, text in _LINES.items()],
            "Outliers by their distance from the mean",
        )


def _rare(share: float) -> str:
    """A share that may be very small."""
    return f"{100 * share:.2g} %" if share >= 1e-6 else f"{1e9 * share:.2g} in 10⁹"


_LINES: dict[str, Callable[[Beyond], str]] = {
    "weights": lambda b: f"{b.weights:,}",
    "share": lambda b: f"{100 * b.share:.3g} %",
    "share if normal": lambda b: _rare(b.normal_share),
    "blocks with one": lambda b: f"{100 * b.block_share:.3g} %",
    "RMSE of those": lambda b: number(b.rmse, ".2e"),
    "RMSE of others": lambda b: number(b.rmse_others, ".2e"),
}
"""The figures of the outliers at each distance."""
