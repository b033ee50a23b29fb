"""Formats against each other: the duel at equal bits and the Pareto front, for the chosen tensor or the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.binding import bind
from widgets.controls.progress import ProgressRow
from widgets.controls.style import bar, choice, heading, note, set_note, split
from widgets.drawing.plot import Plot
from widgets.figures import model as model_figures
from widgets.figures.palette import FORMAT_COLOURS
from widgets.figures.tables import Cell, table
from widgets.panels.base import View
from widgets.session import Analysis, choosable
from widgets.state import SCOPES
from workbench.progress import Cancelled, Progress
from workbench.quant.formats import find_format
from workbench.quant.spec import QuantSpec
from workbench.sources import Source
from workbench.surveys.duel import duel, pareto
from workbench.surveys.scores import Duel, Pareto
from workbench.text import amount, percent

_WHY = """\
Every format at every block size it has: how far its weights are from the original (relative RMSE) against what it stores for \
a weight. Marks on the grey step are on the front: nothing beats them at as many bits. Formats chosen above have their colours.

The table is a duel at equal bits: formats differ in bits per weight, so each enters with the block size and scales that err \
least within the bits allowed. Codes, scales, zero points and second-level scales are counted, as a large tensor has them; the \
table says what these weights take. Bars: relative RMSE."""

MOST = 1 << 20
"""Weights of a tensor that are compared whole; of a larger one a sample is compared, and the view says so."""
OF_ITSELF = 500_000_000
"""Bytes up to which a model on this machine is compared without the button: some fifty specifications, in two passes."""


@dataclass(frozen=True)
class _Comparison:
    """What is compared."""

    source: Source
    tensor: str
    """Empty: the whole model."""
    bits: float
    sample: float | None


class FormatsView(View):
    """Every format at the same bits per weight, and what each of its block sizes costs and gives. No winner is assumed."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._asked: _Comparison | None = None
        self._fronts: dict[tuple[Any, ...], Pareto] = {}
        self.duel: Duel | None = None
        self.pareto: Pareto | None = None
        super().__init__("Formats at equal bits", model, **options)

    def build(self) -> list[Any]:
        """What to compare on and at how many bits; error against bits, and the duel beside it."""
        guarded = guard(self.message)
        self.work = Work(self.session.executor, guarded(self._finished), self.message.error, debounce=0.15)
        self.work.on_progress(lambda step: self._offer() if step is None else None)
        self.when_closed(self.work.close)
        self.scope = choice("Compared on", SCOPES)
        self.bits = ipywidgets.BoundedFloatText(description="at most (bits per weight)", min=4, max=16, step=0.125)
        for control, field in ((self.scope, "scope"), (self.bits, "duel_bits")):
            bind(control, self.session.store, field, self.message)
        self.start = ipywidgets.Button(description="Compare", button_style="primary")
        self.start.on_click(guarded(lambda _: self._begin()))
        self.front = Plot(height=400, waiting="Error against bits comes with the comparison.")
        self.front.add_class("wb-front")
        self.plots = [self.front]
        self.summary, self.table = note(), ipywidgets.HTML()
        self.table.add_class("wb-duel")
        line = bar(heading("Error against bits", _WHY), self.scope, self.bits, self.start)
        return [line, ProgressRow(self.work), self.summary, split(self.front, self.table, wide=True)]

    def redraw_on(self) -> frozenset[str]:
        """What is compared, and the bits of the duel."""
        return frozenset({"scope", "duel_bits"})

    def code(self, analysis: Analysis) -> str:
        """The duel and the front."""
        asked = self._ask(analysis)
        return code.formats(analysis, self.session.store.value.scope, asked.bits, asked.sample)

    def draw(self, analysis: Analysis) -> None:
        """Compares anew where something else is asked; a large model only when the reader says so."""
        asked = self._ask(analysis)
        if asked == self._asked:
            if self.duel is not None and self.pareto is not None:  # other formats may be chosen
                self._picture(asked, self.duel, self.pareto)
            return
        self._asked, self.duel, self.pareto = asked, None, None
        size = sum(t.nbytes for t in choosable(asked.source))
        cheap = bool(asked.tensor) or (asked.source.path is not None and size <= OF_ITSELF)
        self.start.description = f"Compare ({amount(2 * size)} to read)" if not asked.tensor else "Compare"
        if cheap:
            self._begin()
        else:
            self.work.cancel()
            self.table.value = ""
            self.front.wait(f"Comparing on {asked.source.name} reads all its {amount(size)} twice: press Compare.")
            set_note(self.summary, "")
            self._offer()

    def _ask(self, analysis: Analysis) -> _Comparison:
        state = self.session.store.value
        numel = analysis.weights.size
        sample = None if numel <= MOST or state.scope == "model" else 1 / -(-numel // MOST)
        return _Comparison(analysis.source, analysis.tensor.name if state.scope == "tensor" else "", state.duel_bits, sample)

    def _begin(self) -> None:
        asked, analysis = self._asked, self.session.analysis
        if asked is None or analysis is None:
            return
        known = self._fronts.get((asked.source, asked.tensor, asked.sample))
        on: Any = analysis.measured.tensor if asked.tensor else asked.source
        names = None if asked.tensor else [t.name for t in choosable(asked.source)]

        def compare(progress: Progress, cancelled: Cancelled) -> tuple[_Comparison, Duel, Pareto]:
            how: dict[str, Any] = {"sample": asked.sample, "tensors": names, "cancelled": cancelled}
            passes = 1 if known else 2
            first = 0

            def moved(done: int, total: int) -> None:
                progress(first + done, passes * total)

            if not asked.tensor:
                how["progress"] = moved
            fought = duel(on, asked.bits, **how)
            if known is not None:
                return asked, fought, known
            first = sum(row.tensor.nbytes for row in fought.measured.rows)
            return asked, fought, pareto(on, **how)

        self.work.submit(f"Comparing formats on {asked.tensor or asked.source.name}", "bytes", compare)
        self._offer()

    def _finished(self, found: tuple[_Comparison, Duel, Pareto]) -> None:
        asked, self.duel, self.pareto = found
        self._fronts = {(asked.source, asked.tensor, asked.sample): self.pareto}
        self._show(asked, self.duel, self.pareto)

    def _offer(self) -> None:
        self.start.layout.display = "none" if self.work.busy or self.duel is not None else ""

    def _show(self, asked: _Comparison, fought: Duel, front: Pareto) -> None:
        on = _named(asked, fought)
        best = fought.winners()
        names = {s.spec.format: s.spec.definition.title for s in fought.contenders}
        least = " and ".join(names[name] for name in best) or "none"
        sampled = fought.measured.sampled
        measured = "measured whole" if sampled is None else f"measured on a sample of {100 * sampled:.1f} %"
        if fought.measured.failed:
            measured += f"; {len(fought.measured.failed)} tensors could not be read and are in no number"
        out = "".join(
            f" {find_format(name).title} takes {bits:.4g} bits at least and is left out."
            for name, bits in fought.left_out.items()
        )
        set_note(self.summary, f"{on}, {measured}. Least error at {asked.bits:g} bits per weight or fewer: {least}.{out}")
        self._picture(asked, fought, front)
        self._offer()

    def _picture(self, asked: _Comparison, fought: Duel, front: Pareto) -> None:
        """The picture and the table, in which the formats chosen above have their colours."""
        chosen = self.session.store.value.formats
        self.front.show(
            model_figures.pareto_figure(front, asked.bits, chosen),
            f"Relative RMSE against stored bits per weight for {len(front.points)} configurations; on the front: "
            + ", ".join(score.spec.title for score in front.front)
            + ".",
        )
        colours = dict(zip(chosen, FORMAT_COLOURS, strict=False))
        least, most = fought.winners(), max((s.relative_rmse for s in fought.contenders), default=1.0) or 1.0
        self.table.value = table(
            ["configuration", "blocks", "bits a weight", "relative RMSE"],
            [
                (
                    Cell(_configuration(s.spec, s.spec.format in least), colours.get(s.spec.format, "")), s.spec.block_size,
                    f"{s.bits:.4f}", Cell(percent(s.relative_rmse, 3), share=s.relative_rmse / most),
                )
                for s in fought.contenders
            ],
            f"Formats at {asked.bits:g} bits per weight or fewer on {_named(asked, fought)}",
        )  # fmt: skip


def _named(asked: _Comparison, fought: Duel) -> str:
    return asked.tensor or f"{asked.source.name}, {len(fought.measured.rows)} tensors"


def _configuration(spec: QuantSpec, least: bool) -> str:
    """A specification in words but for its block size, which has a column of its own."""
    return spec.title.replace(f", blocks of {spec.block_size}", "") + (" (least)" if least else "")
