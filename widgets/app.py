"""``Workbench``: the views over one state, in tabs under one header.

A view is imported and built when its tab is first opened, or when Python first asks for it. Which there are is in ``views.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

from widgets.background.tasks import guard
from widgets.controls.front_ends import Tabs
from widgets.controls.style import Panel, column
from widgets.drawing.plot import PlotlyLibrary
from widgets.panels.base import View
from widgets.panels.controls import Controls
from widgets.session import Session
from widgets.state import State
from widgets.views import TABS, VIEWS
from workbench.sources import Source

_ENTRIES = {entry.attribute: entry for entry in VIEWS}


class Workbench(Panel):
    """The whole app.

    Its views are attributes: ``app.model``, ``app.map``, ``app.distribution``, ``app.error``, ``app.formats``,
    ``app.double_quant``, ``app.memory``, ``app.cost`` and ``app.train``.

    Args:
        model: What ``wb.open_model`` takes.
        state: Opens a view that ``app.state`` described.
        executor: For tests; without it the work has a thread of its own.
    """

    def __init__(
        self,
        model: str | Source | None = None,
        *,
        state: State | Mapping[str, Any] | None = None,
        executor: Executor | None = None,
    ) -> None:
        if state is not None and not isinstance(state, State):
            state = State.from_dict(state)
        PlotlyLibrary.shared()  # what takes the page longest goes first
        self.session = Session(state, executor)
        super().__init__("QLoRA Workbench")
        controls = Controls(self.session, self.message)
        self.header, self.download = controls.header, controls.download
        self.tabs = Tabs([(title, column()) for title in TABS])
        self.tabs.observe(guard(self.message)(self._chosen), "selected_index")
        self._in_front: list[Any] = []
        self._show_tab(self.session.store.value.tab)
        self.children = (*self.children[:-1], self.header, self.message, self.download, self.tabs)
        self.when_closed(self.session.close)
        self.when_closed(controls.close)
        self.when_closed(self._close_views)
        self.when_closed(self.session.on_failure(self.message.error))
        self.when_closed(self.session.on_analysis(lambda _: self.message.clear()))
        self.when_closed(self.session.store.observe(self._follow))
        guard(self.message)(self.session.begin)(model)

    @property
    def state(self) -> dict[str, Any]:
        """What is on screen as a small JSON value; ``Workbench(state=…)`` opens the same view."""
        return self.session.store.value.to_dict()

    def __getattr__(self, name: str) -> Any:
        if name not in _ENTRIES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        view = _ENTRIES[name].load().within(self.session)
        if isinstance(view, View):
            view.active = self.session.store.value.tab == _ENTRIES[name].tab
        view.copy.observe(lambda _: self._hand_over(), "code")
        self.__dict__[name] = view
        return view

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_ENTRIES]

    @property
    def views(self) -> tuple[View, ...]:
        """The views that have been built so far, in the order of the tabs."""
        return tuple(view for name in _ENTRIES if isinstance(view := self.__dict__.get(name), View))

    def _close_views(self) -> None:
        """Close every view that was built, also those never shown: the panel closes only what is inside it."""
        for view in self.views:
            view.close()

    def _follow(self, state: State, changed: frozenset[str]) -> None:
        if "tab" in changed:
            self._show_tab(state.tab)

    def _chosen(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self.session.store.update(tab=TABS[change["new"]])

    def _show_tab(self, tab: str) -> None:
        index = TABS.index(tab)
        shown = [getattr(self, entry.attribute) for entry in VIEWS if entry.tab == tab]
        if not self.tabs.children[index].children:
            self.tabs.children[index].children = shown
        self.tabs.selected_index = index
        for view in self.views:
            view.active = view in shown
        self._in_front = shown
        self._hand_over()
        self.header.of_one_tensor = all(getattr(view, "of_one_tensor", False) for view in shown)

    def _hand_over(self) -> None:
        """Give the header the lines behind what is in front: those of the last view in the tab that has any."""
        codes = [view.copy.code for view in self._in_front if view.copy.code]
        self.header.code = codes[-1] if codes else ""
