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
from widgets.controls.style import choice, fields, grid, heading, note, row, set_note
from widgets.drawing.plot import Plot
from widgets.figures import model as model_figures
from widgets.figures.tables import table
from widgets.panels.base import View
from widgets.session import Analysis, choosable
from widgets.state import SCOPES
from workbench.progress import Cancelled, Progress
from workbench.quant.formats import find_format
from workbench.sources import Source
from workbench.surveys.duel import duel, pareto
from workbench.surveys.scores import Duel, Pareto
from workbench.text import amount, number, percent

MOST = 1 << 20
"""Weights of a tensor that are compared; of larger ones a sample is, and said to be."""
OF_ITSELF = 500_000_000
"""Bytes up to which a model on this machine is compared without being asked: some fifty specifications, in two passes."""


@dataclass(frozen=True)
class _Asked:
    """What is compared."""

    source: Source
    tensor: str
    """Empty: the whole model."""
    bits: float
    sample: float | None


class FormatsView(View):
    """Every format at the same bits per weight, and what each of its block sizes costs and gives. No winner is assumed."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._asked: _Asked | None = None
        self._fronts: dict[tuple[Any, ...], Pareto] = {}
        self.duel: Duel | None = None
        self.pareto: Pareto | None = None
        super().__init__("Formats at equal bits", model, **options)

    def build(self) -> list[Any]:
        """What to compare on and at how many bits, the duel and its table, the front."""
        guarded = guard(self.message)
        self.work = Work(self.session.executor, guarded(self._finished), self.message.error, debounce=0.15)
        self.work.on_progress(lambda step: self._offer() if step is None else None)
        self.when_closed(self.work.close)
        self.scope = choice("Compared on", SCOPES)
        self.bits = ipywidgets.BoundedFloatText(description="Duel at most (bits per weight)", min=4, max=16, step=0.125)
        for control, field in ((self.scope, "scope"), (self.bits, "duel_bits")):
            bind(control, self.session.store, field, self.message)
        self.start = ipywidgets.Button(description="Compare", button_style="primary")
        self.start.on_click(guarded(lambda _: self._begin()))
        self.bars, self.front = Plot(height=360), Plot(height=480)
        self.plots = [self.bars, self.front]
        self.told, self.table = note(), ipywidgets.HTML()
        return [
            note(
                "Formats differ in bits per weight, so each enters with the configuration that uses most of the bits allowed: "
                "codes, scales, zero points and second-level scales counted, as a large tensor has them; the table says what "
                "these weights take."
            ),
            fields(self.scope, self.bits, width=220),
            self.told,
            row(self.start),
            ProgressRow(self.work),
            heading("The duel"),
            grid(self.bars, self.table),
            heading("Error against bits: every format and block size"),
            self.front,
        ]

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
            return
        self._asked, self.duel = asked, None
        size = sum(t.nbytes for t in choosable(asked.source))
        cheap = bool(asked.tensor) or (asked.source.path is not None and size <= OF_ITSELF)
        self.start.description = f"Compare ({amount(2 * size)} to read)" if not asked.tensor else "Compare"
        if cheap:
            self._begin()
        else:
            self.work.cancel()
            set_note(self.told, f"Comparing on {asked.source.name} reads all its {amount(size)} twice: press Compare.")
            self._offer()

    def _ask(self, analysis: Analysis) -> _Asked:
        state = self.session.store.value
        numel = analysis.weights.size
        sample = None if numel <= MOST or state.scope == "model" else 1 / -(-numel // MOST)
        return _Asked(analysis.source, analysis.tensor.name if state.scope == "tensor" else "", state.duel_bits, sample)

    def _begin(self) -> None:
        asked, analysis = self._asked, self.session.analysis
        if asked is None or analysis is None:
            return
        known = self._fronts.get((asked.source, asked.tensor, asked.sample))
        on: Any = analysis.measured.tensor if asked.tensor else asked.source
        names = None if asked.tensor else [t.name for t in choosable(asked.source)]

        def compare(progress: Progress, cancelled: Cancelled) -> tuple[_Asked, Duel, Pareto]:
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

    def _finished(self, found: tuple[_Asked, Duel, Pareto]) -> None:
        asked, self.duel, self.pareto = found
        self._fronts = {(asked.source, asked.tensor, asked.sample): self.pareto}
        self._show(asked, self.duel, self.pareto)

    def _offer(self) -> None:
        self.start.layout.display = "none" if self.work.busy or self.duel is not None else ""

    def _show(self, asked: _Asked, fought: Duel, front: Pareto) -> None:
        on = asked.tensor or f"{asked.source.name}, {len(fought.measured.rows)} tensors"
        best = fought.winners()
        names = {s.spec.format: s.spec.definition.title for s in fought.contenders}
        least = " and ".join(names[name] for name in best) or "none"
        sampled = fought.measured.sampled
        told = "measured whole" if sampled is None else f"measured on a sample of {100 * sampled:.1f} %"
        if fought.measured.failed:
            told += f"; {len(fought.measured.failed)} tensors could not be read and are in no number"
        out = "".join(
            f" {find_format(name).title} takes {bits:.4g} bits at least and is left out."
            for name, bits in fought.left_out.items()
        )
        set_note(self.told, f"{on}, {told}. Least error at {asked.bits:g} bits per weight or fewer: {least}.{out}")
        self.bars.show(
            model_figures.duel(fought),
            f"Relative RMSE of {len(fought.contenders)} formats at {asked.bits:g} bits per weight or fewer; least: {least}.",
        )
        self.front.show(
            model_figures.pareto(front, asked.bits),
            f"Relative RMSE against stored bits per weight for {len(front.points)} configurations; on the front: "
            + ", ".join(score.spec.title for score in front.front)
            + ".",
        )
        self.table.value = table(
            ["configuration", "bits per weight", "relative RMSE", "SQNR", ""],
            [
                (
                    s.spec.title, f"{s.bits:.4f}", percent(s.relative_rmse, 3), f"{number(s.sqnr_db, '.2f')} dB",
                    "least" if s.spec.format in best else "",
                )
                for s in fought.contenders
            ],
            f"Formats at {asked.bits:g} bits per weight or fewer on {on}",
        )  # fmt: skip
        self._offer()
