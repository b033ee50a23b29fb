"""What quantization costs the model, and where memory that is left buys most of it back: the tab ``Cost``.

Covers which parts there are, what they share (the rows, the folder that keeps what was measured, one process at a time) and
looking up what was measured before. Nothing is measured before a button is pressed. The parts are files of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, Protocol, TypeVar

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.binding import Quiet, bind
from widgets.controls.segments import Faces, Segments
from widgets.controls.streamed import Streamed, one_at_a_time
from widgets.controls.style import bar, choice, close_tree, column, heading
from widgets.drawing.plot import Plot
from widgets.panels.base import View
from widgets.panels.cost.asked import Asked
from widgets.panels.cost.formats import FormatsPart
from widgets.panels.cost.methods import MethodsPart, RepairsPart
from widgets.panels.cost.mix import MixPart
from widgets.panels.cost.modules import ModulesPart
from widgets.session import Analysis
from widgets.state import COST_PARTS, COST_TEXTS
from workbench.cost.evaluation import Evaluation
from workbench.cost.mixing import Mix
from workbench.cost.sensitivities import Sensitivity

_FIELDS = {
    "cost_bits",
    "cost_text",
    "cost_field",
    "cost_folder",
    "mix_megabytes",
    "mix_gpu",
    "layer",
    "train",
    "max_length",
    "tensor",
} | {"cost_part"}


_WHY = """\
What do the errors of weights do to the model? KL divergence from 16 bits, flipped tokens and loss are measured on held-out \
rows, on this machine, by a process of its own. Nothing starts by itself."""


class Part(Protocol):
    """A part of the view, with one button for work that takes a while."""

    stream: Streamed
    plots: list[Plot]
    widget: Any


P = TypeVar("P", bound=Part)


class CostView(View):
    """Divergence by format, sensitivity by module, a mix for the memory there is, three methods, an adapter's repairs."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._asked: Asked | None = None
        self._bits, self._quiet = "own", Quiet()
        self._before: tuple[Evaluation | None, Sensitivity | None] = (None, None)
        """What was measured before, for parts that are built later."""
        self.parts: tuple[Part, ...] = ()
        super().__init__("What quantization costs the model", model, **options)

    def build(self) -> list[Any]:
        """What all measuring shares, and the parts, each built when it is first opened."""
        guarded, session = guard(self.message), self.session
        self.look = Work(session.executor, guarded(self._found), self.message.error)
        self.when_closed(self.look.close)
        self.rows = ipywidgets.BoundedIntText(description="Rows, at most", min=1, max=100_000)
        self._quiet.on_change(self.rows, guarded(self._rows_changed))
        self.folder = ipywidgets.Text(description="kept in", continuous_update=False)
        self._quiet.on_change(self.folder, guarded(lambda folder: self.update(cost_folder=folder.strip())))
        self.part = Segments("Part", COST_PARTS)
        bind(self.part, session.store, "cost_part", self.message)
        self.under_way = column()
        self.faces = Faces(
            {
                "losses": lambda: self.formats.widget,
                "sensitivity": lambda: self.modules.widget,
                "mix": lambda: self.mix.widget,
                "methods": lambda: self.methods.widget,
                "repairs": lambda: self.repairs.widget,
            }
        )
        self.text = choice("Text", COST_TEXTS)
        bind(self.text, session.store, "cost_text", self.message)
        line = bar(heading("What quantization costs the model", _WHY), self.text, self.rows, self.folder)
        return [line, self.part, self.under_way, self.faces]

    @functools.cached_property
    def formats(self) -> FormatsPart:
        """Divergence by format."""
        part = self._add(FormatsPart(self.session, self.message, self._chosen_mix))
        if self._asked is not None:
            part.draw(self._asked, self._bits, self._before[0])
        return part

    @functools.cached_property
    def modules(self) -> ModulesPart:
        """Sensitivity by module."""
        part = self._add(ModulesPart(self.session, self.message, self._draw_mix))
        if self._asked is not None:
            part.draw(self._asked, self._before[1])
        return part

    @functools.cached_property
    def mix(self) -> MixPart:
        """A mix for the memory there is."""
        part = self._add(MixPart(self.session, self.message, lambda: self.modules.sensitivity))
        self.when_closed(part.look.close)
        if self._asked is not None:
            part.draw()
        return part

    @functools.cached_property
    def methods(self) -> MethodsPart:
        """Three methods side by side."""
        part = self._add(MethodsPart(self.session, self.message, lambda run_dir: self.repairs.suggest(run_dir)))
        if self.session.analysis is not None:
            part.draw(self.session.analysis)
        return part

    @functools.cached_property
    def repairs(self) -> RepairsPart:
        """What an adapter repairs."""
        return self._add(RepairsPart(self.session, self.message))

    def _add(self, part: P) -> P:
        """A part that was just built: its progress shows whichever part is in front."""
        self.parts = (*self.parts, part)
        self.plots = [*self.plots, *part.plots]
        self.under_way.children = (*self.under_way.children, part.stream.progress)
        one_at_a_time(*(one.stream for one in self.parts if isinstance(one, FormatsPart | ModulesPart | MixPart)))
        self.when_closed(lambda: close_tree(part.widget))
        self.when_closed(part.stream.close)
        return part

    def redraw_on(self) -> frozenset[str]:
        """What is asked for, and what the parts show of it."""
        return frozenset(_FIELDS)

    def code(self, analysis: Analysis) -> str:
        """Losses and sensitivities; the mix, the methods and the repairs have lines of their own."""
        asked = Asked.of(analysis.source, self.session.store.value)
        return code.cost(asked.model, asked.data, asked.spec, str(asked.folder), self._bits)

    def draw(self, analysis: Analysis) -> None:
        """What is known of this model on these rows; of another one, what was measured before."""
        state, built = self.session.store.value, vars(self)
        asked, bits = Asked.of(analysis.source, state), state.cost_bits
        new, other_bits = asked != self._asked, bits != self._bits
        self._asked, self._bits = asked, bits
        with self._quiet:
            self.rows.value, self.folder.value = asked.data.max_eval_rows, str(asked.folder)
        if new:
            self.look.cancel()
        if new or other_bits:
            self._before = (None, None if new else self._before[1])
            if "formats" in built:
                self.formats.draw(asked, bits, None)
            if asked.kept:
                self.look.submit("Reading what was measured before", "", lambda progress, cancelled: _known(asked, bits))
        if "modules" in built and new:
            self.modules.draw(asked, None)
        elif "modules" in built:
            self.modules.redraw()
            self._draw_mix()
        for name in ("methods", "repairs"):
            if name in built:
                built[name].draw(analysis)
        self.faces.show(state.cost_part)

    def _chosen_mix(self) -> Mix | None:
        """The mix, where its part has been opened and its sensitivities are complete."""
        return self.mix.mix if "mix" in vars(self) else None

    def _draw_mix(self) -> None:
        if "mix" in vars(self):
            self.mix.draw()

    def _found(self, known: tuple[Asked, str, Evaluation | None, Sensitivity]) -> None:
        """What was measured before, for a part that measures nothing meanwhile."""
        asked, bits, evaluation, sensitivity = known
        if asked != self._asked:
            return
        built, self._before = vars(self), (evaluation if bits == self._bits else None, sensitivity)
        if "formats" in built and bits == self._bits and not self.formats.stream.busy:
            self.formats.draw(asked, bits, evaluation)
        if "modules" in built and not self.modules.stream.busy:
            self.modules.draw(asked, sensitivity)

    def _rows_changed(self, rows: int) -> None:
        state = self.session.store.value
        self.update(**state.changes_to(dataclasses.replace(state.training, max_eval_rows=rows)))


def _known(asked: Asked, bits: str) -> tuple[Asked, str, Evaluation | None, Sensitivity]:
    """What the folder holds. Cancelled from the start, both read what was measured before and start no process."""
    how, evaluation = {"cancelled": lambda: True}, None
    with contextlib.suppress(InterruptedError):  # which configurations have equal bits was never found out
        evaluation = asked.evaluation(bits, **how).run()
    return asked, bits, evaluation, asked.sensitivity(**how).run()
