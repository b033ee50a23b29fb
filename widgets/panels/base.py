"""What all views share: a panel that follows a ``Session``, alone under a header of its own, or as a part of the app."""

from __future__ import annotations

import abc
from concurrent.futures import Executor
from typing import Any, ClassVar, Self

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.copy_code import Lines
from widgets.controls.style import Panel
from widgets.drawing.plot import PlotlyLibrary
from widgets.panels.controls import Controls
from widgets.session import Analysis, Session
from widgets.state import State
from workbench.sources import Source


class View(Panel):
    """A panel that draws each ``Analysis`` of its session.

    ``copy.code`` holds the lines behind what it shows, for the header to copy. A view that is not ``active`` draws when it
    becomes so.

    Args:
        title: The panel's title.
        model: What ``wb.open_model`` takes. Alone (``DistributionView("builtin")``) it has a session and a header of its own.
        session: The session to share; the view then has no header.
        state: The state that a session of its own begins with.
        executor: For tests; without it the work has a thread of its own.
    """

    of_one_tensor = True
    """Whether the view depends on layer and tensor: where not, these are quiet in the app's header.

    Alone such a view has the model to choose, and nothing else.
    """

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
        self.copy = Lines()
        top: tuple[Any, ...] = (self.message,)
        if self._own:
            controls = Controls(self.session, self.message, whole=self.of_one_tensor)
            self.when_closed(controls.close)
            self.header, self.download = controls.header, controls.download
            self.copy.observe(lambda change: self.header.set_trait("code", change["new"]), "code")
            top = (self.header, self.message, self.download)
        self.children = (*self.children[:-1], *top, *self.build())
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
