"""``Workbench``: the views over one state."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets.breadcrumb import Breadcrumb
from widgets.panels.base import Controls
from widgets.panels.distribution import DistributionView
from widgets.panels.double_quant import DoubleQuantView
from widgets.panels.error import BlockErrorView
from widgets.panels.formats import FormatsView
from widgets.panels.memory import MemoryView
from widgets.panels.model import ModelPicker
from widgets.panels.model_map import ModelMapView
from widgets.panels.train import TrainingCell
from widgets.progress import ProgressRow
from widgets.session import Session
from widgets.state import TABS, State
from widgets.style import Panel, column
from widgets.tasks import guard
from workbench.sources import Source


class Workbench(Panel):
    """The whole app. ``model`` is what ``wb.open_model`` takes; ``state`` opens a view that ``app.state`` described."""

    def __init__(
        self,
        model: str | Source | None = None,
        *,
        state: State | Mapping[str, Any] | None = None,
        executor: Executor | None = None,
    ) -> None:
        if state is not None and not isinstance(state, State):
            state = State.from_dict(state)
        self.session = Session(state, executor)
        super().__init__("QLoRA Workbench")
        self.controls, self.progress = Controls(self.session), ProgressRow(self.session)
        self.crumbs = Breadcrumb(self.session, self.message)
        self.model, self.map = ModelPicker(session=self.session), ModelMapView(session=self.session)
        self.distribution = DistributionView(session=self.session)
        self.error = BlockErrorView(session=self.session)
        self.formats = FormatsView(session=self.session)
        self.double_quant = DoubleQuantView(session=self.session)
        self.memory = MemoryView(session=self.session)
        self.train = TrainingCell(self.session.store.value.model)
        self.views = (self.model, self.map, self.distribution, self.error, self.formats, self.double_quant, self.memory)
        self._tab_of = dict(zip(self.views, ("Model", *TABS), strict=False))
        self.tabs = ipywidgets.Tab([column(self.model, self.map), *self.views[2:], self.train])
        for i, title in enumerate(TABS):
            self.tabs.set_title(i, title)
        self.tabs.observe(guard(self.message)(self._chosen), "selected_index")
        self._show_tab(self.session.store.value.tab)
        self.children = (*self.children[:-1], self.crumbs, self.controls, self.progress, self.message, self.tabs)
        self.when_closed(self.session.close)
        self.when_closed(self.session.on_failure(self.message.error))
        self.when_closed(self.session.on_analysis(lambda _: self.message.clear()))
        self.when_closed(self.session.store.observe(self._follow))
        guard(self.message)(self.session.begin)(model)

    @property
    def state(self) -> dict[str, Any]:
        """What is on screen as a small JSON value; ``Workbench(state=…)`` opens the same view."""
        return self.session.store.value.to_dict()

    def _follow(self, state: State, changed: frozenset[str]) -> None:
        if "model" in changed:
            self.train.use_model(state.model)
        if "tab" in changed:
            self._show_tab(state.tab)

    def _chosen(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self.session.store.update(tab=TABS[change["new"]])

    def _show_tab(self, tab: str) -> None:
        self.tabs.selected_index = TABS.index(tab)
        for view in self.views:
            view.active = self._tab_of[view] == tab
