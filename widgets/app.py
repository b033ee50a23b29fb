"""``Workbench``: the views over one state."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets.panels.base import Controls
from widgets.panels.distribution import DistributionView
from widgets.panels.double_quant import DoubleQuantView
from widgets.panels.error import BlockErrorView
from widgets.panels.memory import MemoryView
from widgets.panels.model import ModelPicker
from widgets.panels.train import TrainingCell
from widgets.progress import ProgressRow
from widgets.session import Session
from widgets.state import State
from widgets.style import Panel
from widgets.tasks import guard
from workbench.sources import Source

TABS = ("Model", "Distribution", "Error", "Double quant", "Memory", "Train")


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
        self.model = ModelPicker(session=self.session)
        self.distribution = DistributionView(session=self.session)
        self.error = BlockErrorView(session=self.session)
        self.double_quant = DoubleQuantView(session=self.session)
        self.memory = MemoryView(session=self.session)
        self.train = TrainingCell(self.session.store.value.model)
        self.views = (self.model, self.distribution, self.error, self.double_quant, self.memory)
        self.tabs = ipywidgets.Tab([*self.views, self.train])
        for i, title in enumerate(TABS):
            self.tabs.set_title(i, title)
        self.tabs.selected_index = 1
        self.tabs.observe(lambda _: self._activate(), "selected_index")
        self._activate()
        self.children = (*self.children[:-1], self.controls, self.progress, self.message, self.tabs)
        self.when_closed(self.session.close)
        self.when_closed(self.session.on_failure(self.message.error))
        self.when_closed(self.session.on_analysis(lambda _: self.message.clear()))
        self.when_closed(self.session.store.observe(self._train_what_is_open))
        guard(self.message)(self.session.begin)(model)

    @property
    def state(self) -> dict[str, Any]:
        """What is on screen as a small JSON value; ``Workbench(state=…)`` opens the same view."""
        return self.session.store.value.to_dict()

    def _train_what_is_open(self, state: State, changed: frozenset[str]) -> None:
        if "model" in changed:
            self.train.use_model(state.model)

    def _activate(self) -> None:
        for i, view in enumerate(self.views):
            view.active = i == self.tabs.selected_index
