"""``Workbench``: the views over one state.

A view is imported and built when its tab is first opened, or when Python first asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from functools import cached_property
from typing import Any, TypeVar

import ipywidgets

import widgets
from widgets.background.tasks import guard
from widgets.controls.breadcrumb import Breadcrumb
from widgets.controls.progress import ProgressRow
from widgets.controls.style import Panel, column
from widgets.drawing.plot import PlotlyLibrary
from widgets.panels.base import Controls, View
from widgets.session import Session
from widgets.state import TABS, State
from workbench.sources import Source

_V = TypeVar("_V", bound=View)

_IN_TAB = {
    "Model": ("model", "map"), "Distribution": ("distribution",), "Error": ("error",), "Formats": ("formats",),
    "Double quant": ("double_quant",), "Memory": ("memory",), "Cost": ("cost",), "Train": ("train",),
}  # fmt: skip
"""The attributes of ``Workbench`` that a tab shows."""


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
        PlotlyLibrary.shared()  # what takes the page longest goes first
        self.session = Session(state, executor)
        super().__init__("QLoRA Workbench")
        self.controls, self.progress = Controls(self.session), ProgressRow(self.session)
        self.crumbs = Breadcrumb(self.session, self.message)
        self.tabs = ipywidgets.Tab([column() for _ in TABS])
        with self.tabs.hold_sync():  # else a message for each
            for i, title in enumerate(TABS):
                self.tabs.set_title(i, title)
        self.tabs.observe(guard(self.message)(self._chosen), "selected_index")
        self._show_tab(self.session.store.value.tab)
        self.children = (*self.children[:-1], self.crumbs, self.controls, self.progress, self.message, self.tabs)
        self.when_closed(self.session.close)
        self.when_closed(self._close_views)
        self.when_closed(self.session.on_failure(self.message.error))
        self.when_closed(self.session.on_analysis(lambda _: self.message.clear()))
        self.when_closed(self.session.store.observe(self._follow))
        guard(self.message)(self.session.begin)(model)

    @property
    def state(self) -> dict[str, Any]:
        """What is on screen as a small JSON value; ``Workbench(state=…)`` opens the same view."""
        return self.session.store.value.to_dict()

    @cached_property
    def model(self) -> widgets.ModelPicker:
        """Opens a model, and says what it is."""
        return self._made(widgets.ModelPicker(session=self.session), "Model")

    @cached_property
    def map(self) -> widgets.ModelMapView:
        """All its tensors."""
        return self._made(widgets.ModelMapView(session=self.session), "Model")

    @cached_property
    def distribution(self) -> widgets.DistributionView:
        """How the chosen tensor's weights fall into bins."""
        return self._made(widgets.DistributionView(session=self.session), "Distribution")

    @cached_property
    def error(self) -> widgets.BlockErrorView:
        """Where its error sits."""
        return self._made(widgets.BlockErrorView(session=self.session), "Error")

    @cached_property
    def formats(self) -> widgets.FormatsView:
        """Formats at equal bits."""
        return self._made(widgets.FormatsView(session=self.session), "Formats")

    @cached_property
    def double_quant(self) -> widgets.DoubleQuantView:
        """What quantizing the scales saves and costs."""
        return self._made(widgets.DoubleQuantView(session=self.session), "Double quant")

    @cached_property
    def memory(self) -> widgets.MemoryView:
        """Whether the fine-tune fits."""
        return self._made(widgets.MemoryView(session=self.session), "Memory")

    @cached_property
    def cost(self) -> widgets.CostView:
        """What quantization costs the model."""
        return self._made(widgets.CostView(session=self.session), "Cost")

    @cached_property
    def train(self) -> widgets.TrainingCell:
        """Runs it."""
        return widgets.TrainingCell(store=self.session.store, executor=self.session.executor)

    @property
    def views(self) -> tuple[View, ...]:
        """The views that have been built so far, in the order of the tabs."""
        built = [self.__dict__[name] for names in _IN_TAB.values() for name in names if name in self.__dict__]
        return tuple(view for view in built if isinstance(view, View))

    def _made(self, view: _V, tab: str) -> _V:
        view.active = self.session.store.value.tab == tab
        return view

    def _close_views(self) -> None:
        """Those too that were asked for and never shown; the panel closes what is inside it."""
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
        shown = [getattr(self, name) for name in _IN_TAB[tab]]
        if not self.tabs.children[index].children:
            self.tabs.children[index].children = shown
        self.tabs.selected_index = index
        for view in self.views:
            view.active = view in shown
