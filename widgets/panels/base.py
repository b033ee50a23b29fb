"""What all views of a tensor share: a panel that follows a ``Session``, alone or linked, and the common controls."""

from __future__ import annotations

import abc
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, ClassVar, Self

import ipywidgets

from widgets import code
from widgets.background.tasks import UI, guard
from widgets.controls.binding import Quiet
from widgets.controls.copy_code import CopyCode
from widgets.controls.front_ends import slider
from widgets.controls.progress import ProgressRow
from widgets.controls.style import Panel, fields, set_note
from widgets.drawing.plot import PlotlyLibrary
from widgets.session import Analysis, Session, choosable
from widgets.state import State
from workbench.quant.formats import BLOCK_SIZES, FORMATS
from workbench.sources import Source
from workbench.sources.rule import TRANSPOSED
from workbench.surveys.rows import nonfinite_summary

_NONE = "none"


class View(Panel):
    """A panel that draws each ``Analysis`` of its session.

    Alone (``DistributionView("builtin")``) it has a session and controls of its own; given a ``session`` it shares that one's
    and shows no controls. A view that is not ``active`` draws when it becomes so.
    """

    of_one_tensor = True
    """Whether the view depends on tensor, formats and block size, and so has controls for them when it is alone."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the view needs of an analysis besides its ``stats``, as ``Session.want`` has it."""

    def __init__(
        self,
        title: str,
        model: str | Source | None = None,
        *,
        session: Session | None = None,
        state: State | None = None,
        executor: Executor | None = None,
    ) -> None:
        PlotlyLibrary.shared()
        self._own = session is None
        self.session = session or Session(state, executor)
        self.plots: list[Any] = []
        self._active, self._behind = True, False
        super().__init__(title)
        self.copy = CopyCode()
        children = self.build()
        if self._own and self.of_one_tensor:
            children = [Controls(self.session), *children]
        if self._own:
            children = [ProgressRow(self.session), *children]
        self.children = (*self.children[:-1], self.message, *children, self.copy)
        self.session.want(self.needs, True)
        self.when_closed(self.session.on_analysis(self._take))
        self.when_closed(self.session.store.observe(self._follow))
        if self._own:
            self.when_closed(self.session.close)
            self.when_closed(self.session.on_failure(self.message.error))
            guard(self.message)(self.session.begin)(model)
        elif self.session.analysis is not None:
            self._take(self.session.analysis)

    @classmethod
    def within(cls, session: Session) -> Self:
        """The view as a part of the app."""
        return cls(session=session)  # type: ignore[call-arg]  # every view has a title of its own

    @abc.abstractmethod
    def build(self) -> list[Any]:
        """The view's widgets, top to bottom, still empty."""

    @abc.abstractmethod
    def draw(self, analysis: Analysis) -> None:
        """Shows an analysis; called under ``UI``."""

    def code(self, analysis: Analysis) -> str:
        """The lines of Python that give what ``draw`` shows."""
        return code.model(analysis)

    def redraw_on(self) -> frozenset[str]:
        """Fields of the state that change the drawing without a new measurement."""
        return frozenset()

    @property
    def active(self) -> bool:
        """Whether the view is on screen; only then does it draw."""
        return self._active

    @active.setter
    def active(self, active: bool) -> None:
        self._active = active
        self.session.want(self.needs, active)
        if active and self._behind and self.session.analysis is not None:
            self._take(self.session.analysis)

    def update(self, **changes: Any) -> None:
        """Changes the state that the view shows."""
        self.session.store.update(**changes)

    def _take(self, analysis: Analysis) -> None:
        self._behind = not self._active
        if self._active:  # an error stays until there is something new to draw
            guard(self.message)(self._draw)(analysis)

    def _draw(self, analysis: Analysis) -> None:
        self.draw(analysis)
        self.copy.code = self.code(analysis)

    def _follow(self, _: State, changed: frozenset[str]) -> None:
        if changed & self.redraw_on() and self.session.analysis is not None:
            self._take(self.session.analysis)


class Controls(ipywidgets.VBox):
    """Tensor, formats, block size and double quantization, bound to a session's state in both directions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._quiet = Quiet()
        self._listed: Source | None = None
        self._names: tuple[tuple[str, str], ...] = ()
        state = session.store.value
        names = list(FORMATS)
        self.tensor = ipywidgets.Dropdown(description="Tensor", options=[])
        self.tensor.add_class("wb-span")
        self.lead = ipywidgets.Dropdown(description="Format", options=_titles(names), value=state.formats[0])
        self.second = ipywidgets.Dropdown(description="Compare with", options=[(_NONE, _NONE), *_titles(names)])
        self.third = ipywidgets.Dropdown(description="and with", options=[(_NONE, _NONE), *_titles(names)])
        self.block_size = slider("Block size (weights)", BLOCK_SIZES, state.block_size)
        self.double_quant = ipywidgets.Checkbox(description="Double quantization", indent=False, value=state.double_quant)
        self.status = ipywidgets.HTML()
        inputs = (self.tensor, self.lead, self.second, self.third, self.block_size, self.double_quant)
        super().__init__([fields(*inputs), self.status])
        for control in inputs:
            self._quiet.on_change(control, self._changed)
        self._endings: list[Callable[[], None]] = [
            session.store.observe(lambda after, _: self._show(after)),
            session.on_analysis(self._show_tensor),
        ]
        self._show(state)

    def close(self) -> None:
        """Ends the binding; the panel around it frees the widgets."""
        while self._endings:
            self._endings.pop()()
        super().close()

    def _show(self, state: State) -> None:
        with UI, self._quiet:
            self.lead.value = state.formats[0]
            self.second.value = state.formats[1] if len(state.formats) > 1 else _NONE
            self.third.value = state.formats[2] if len(state.formats) > 2 else _NONE
            self.block_size.value, self.double_quant.value = state.block_size, state.double_quant
            if state.tensor in {value for _, value in self.tensor.options}:
                self.tensor.value = state.tensor

    def _show_tensor(self, analysis: Analysis) -> None:
        if self._listed is not analysis.source:
            self._listed = analysis.source
            self._names = tuple((t.name, t.name) for t in choosable(analysis.source))
        name = analysis.tensor.name
        names = self._names if (name, name) in self._names else (*self._names, (name, name))
        with self._quiet:
            if self.tensor.options != names:
                self.tensor.options = names
            self.tensor.value = name
        shape = " × ".join(map(str, analysis.shape))
        text = f"{name}: {shape} {analysis.tensor.dtype}, {analysis.weights.size:,} weights, measured whole."
        if analysis.packed:
            text += f" The checkpoint holds it in {analysis.packed}: shown is what that dequantizes to, quantized once more."
        elif analysis.tensor.layout == TRANSPOSED:
            text += " It is shown transposed, as bitsandbytes quantizes it."
        set_note(self.status, " ".join(filter(None, [text, nonfinite_summary(analysis.stats)])))

    def _changed(self, _: Any) -> None:
        formats = [self.lead.value, *(f for f in (self.second.value, self.third.value) if f != _NONE)]
        self._session.store.update(
            tensor=self.tensor.value or self._session.store.value.tensor,
            formats=tuple(dict.fromkeys(formats)),
            block_size=self.block_size.value,
            double_quant=self.double_quant.value,
        )


def _titles(names: list[str]) -> list[tuple[str, str]]:
    return [(FORMATS[name].title, name) for name in names]
