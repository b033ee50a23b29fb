"""What quantization costs the model, and where memory that is left buys most of it back: the tab ``Cost``.

Covers which parts there are, what they share (the rows, the folder that keeps what was measured, one process at a time) and
looking up what was measured before. Nothing is measured before a button is pressed. The parts are files of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.binding import Quiet
from widgets.controls.streamed import Streamed, one_at_a_time
from widgets.controls.style import fields, note
from widgets.drawing.plot import Plot
from widgets.panels.base import View
from widgets.panels.cost.asked import Asked
from widgets.panels.cost.formats import FormatsPart
from widgets.panels.cost.methods import MethodsPart, RepairsPart
from widgets.panels.cost.mix import MixPart
from widgets.panels.cost.modules import ModulesPart
from widgets.session import Analysis
from workbench.cost.evaluation import Evaluation
from workbench.cost.sensitivities import Sensitivity

_FIELDS = {"cost_bits", "cost_field", "cost_folder", "mix_megabytes", "mix_gpu", "layer", "train", "max_length", "tensor"}


class Part(Protocol):
    """A part of the view, with one button for work that takes a while."""

    stream: Streamed
    plots: list[Plot]
    widget: Any


class CostView(View):
    """Loss by format, sensitivity by module, a mix for the memory there is, three methods, and what an adapter repairs."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._asked: Asked | None = None
        self._equal, self._quiet = False, Quiet()
        super().__init__("What quantization costs the model", model, **options)

    def build(self) -> list[Any]:
        """What all measuring shares, then the parts."""
        guarded, session = guard(self.message), self.session
        self.look = Work(session.executor, guarded(self._found), self.message.error)
        self.rows = ipywidgets.BoundedIntText(description="Held-out rows, at most", min=1, max=100_000)
        self._quiet.on_change(self.rows, guarded(self._rows_changed))
        self.folder = ipywidgets.Text(description="Kept in the folder", continuous_update=False)
        self.folder.add_class("wb-span")
        self._quiet.on_change(self.folder, guarded(lambda folder: self.update(cost_folder=folder.strip())))
        self.formats = FormatsPart(session, self.message)
        self.mix = MixPart(session, self.message, lambda: self.modules.sensitivity)
        self.modules = ModulesPart(session, self.message, self.mix.draw)
        self.repairs = RepairsPart(session, self.message)
        self.methods = MethodsPart(session, self.message, self.repairs.suggest)
        self.parts: tuple[Part, ...] = (self.formats, self.modules, self.mix, self.methods, self.repairs)
        one_at_a_time(self.formats.stream, self.modules.stream, self.mix.stream)
        for close in (self.look.close, *(part.stream.close for part in self.parts)):
            self.when_closed(close)
        self.plots = [plot for part in self.parts for plot in part.plots]
        return [
            note(
                "What do the errors of weights do to the model? Losses are measured on held-out rows, in nats a token, on this "
                "machine, by a process of its own. Nothing starts by itself."
            ),
            fields(self.rows, self.folder, width=220),
            *(part.widget for part in self.parts),
        ]

    def redraw_on(self) -> frozenset[str]:
        """What is asked for, and what the parts show of it."""
        return frozenset(_FIELDS)

    def code(self, analysis: Analysis) -> str:
        """Losses and sensitivities; the mix, the methods and the repairs have lines of their own."""
        asked = Asked.of(analysis.source, self.session.store.value)
        return code.cost(asked.model, asked.data, asked.spec, str(asked.folder), self._equal)

    def draw(self, analysis: Analysis) -> None:
        """What is known of this model on these rows; of another one, what was measured before."""
        state = self.session.store.value
        asked, equal = Asked.of(analysis.source, state), state.cost_bits == "equal"
        new, other_bits = asked != self._asked, equal != self._equal
        self._asked, self._equal = asked, equal
        with self._quiet:
            self.rows.value, self.folder.value = asked.data.max_eval_rows, str(asked.folder)
        if new:
            self.look.cancel()
            self.modules.draw(asked, None)
        else:
            self.modules.redraw()
            self.mix.draw()
        if new or other_bits:
            self.formats.draw(asked, equal, None)
            if asked.kept:
                self.look.submit("Reading what was measured before", "", lambda progress, cancelled: _known(asked, equal))
        self.methods.draw(analysis)
        self.repairs.draw(analysis)

    def _found(self, known: tuple[Asked, bool, Evaluation, Sensitivity]) -> None:
        """What was measured before, for a part that measures nothing meanwhile."""
        asked, equal, evaluation, sensitivity = known
        if asked != self._asked:
            return
        if equal == self._equal and not self.formats.stream.busy:
            self.formats.draw(asked, equal, evaluation)
        if not self.modules.stream.busy:
            self.modules.draw(asked, sensitivity)

    def _rows_changed(self, rows: int) -> None:
        state = self.session.store.value
        self.update(**state.changes_to(dataclasses.replace(state.training, max_eval_rows=rows)))


def _known(asked: Asked, equal: bool) -> tuple[Asked, bool, Evaluation, Sensitivity]:
    """What the folder holds. Cancelled from the start, both read what was measured before and start no process."""
    how = {"cancelled": lambda: True}
    return asked, equal, asked.evaluation(equal, **how).run(), asked.sensitivity(**how).run()
