"""What stands under the cockpit: small tabs with the paging truth, the receipt, samples, batches, log and settings of a run.

Each is built when it is first opened, and only those that are built are kept up to date. ``live`` says what there is to show.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import ipywidgets

from widgets.controls.front_ends import Tabs
from widgets.controls.style import column, fold
from widgets.drawing.plot import Plot
from widgets.figures.run_memory import batches_figure
from widgets.panels.train import words
from widgets.panels.train.paging import RunPaging
from widgets.panels.train.receipt import RunReceipt
from workbench.training.config import TrainConfig
from workbench.training.folder import RunStatus
from workbench.training.results.history import RunHistory
from workbench.training.results.receipts import Receipt
from workbench.training.results.truth import PagingTruth
from workbench.training.runs import Run


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a run by now."""

    run: Run
    config: TrainConfig
    status: RunStatus
    history: RunHistory
    truth: PagingTruth
    receipt: Receipt
    log: str


class Part(Protocol):
    """One of the tabs."""

    widget: Any

    def show(self, known: Known) -> None:
        """Bring it up to date."""


class _Paging:
    def __init__(self, failed: Callable[[Exception], None], executor: Executor | None) -> None:
        self.part = RunPaging(failed, executor)
        self.widget = column(
            self.part.truth, fold("Simulated: the same run on a smaller GPU", self.part.simulation, subtitle="not measured")
        )
        self._run: Run | None = None

    def show(self, known: Known) -> None:
        if known.run is not self._run:
            self._run = known.run
            self.part.follow(known.config)
        self.part.update(known.truth)


class _Receipt:
    def __init__(self) -> None:
        self.part = RunReceipt()
        self.widget = self.part.widget

    def show(self, known: Known) -> None:
        self.part.update(known.receipt)


class _Batches:
    def __init__(self) -> None:
        self.widget = Plot({}, summary="No step yet.", height=300)

    def show(self, known: Known) -> None:
        figure, summary = batches_figure(known.history, str(known.run.dir))
        self.widget.show(figure, summary=summary)


class _Words:
    def __init__(self, say: Callable[[Known], str]) -> None:
        self.widget = ipywidgets.HTML()
        self._say = say

    def show(self, known: Known) -> None:
        self.widget.value = self._say(known)


class RunDetails:
    """``widget`` holds the tabs; ``show`` brings what is known now, ``open`` opens a tab by its title."""

    def __init__(self, failed: Callable[[Exception], None], executor: Executor | None = None) -> None:
        self._makers: dict[str, Callable[[], Part]] = {
            "Paging truth": lambda: _Paging(failed, executor),
            "Receipt": _Receipt,
            "Samples": lambda: _Words(lambda known: words.results(known.run, known.status, known.history)),
            "Batches": _Batches,
            "Log": lambda: _Words(lambda known: words.log(known.log, known.history)),
            "Settings": lambda: _Words(lambda known: words.settings_table(known.run, known.config, known.history)),
        }
        self.parts: dict[str, Part] = {}
        """Those that have been opened, by title."""
        self._known: Known | None = None
        self._failed = failed
        self.widget = Tabs([(title, column()) for title in self._makers])
        self.widget.selected_index = 0
        self.widget.add_class("wb-small-tabs")
        self.widget.observe(lambda _: self._opened(), "selected_index")

    def show(self, known: Known) -> None:
        """What is known now, in every tab that has been opened."""
        self._known = known
        for part in self.parts.values():
            part.show(known)
        self._opened()

    def open(self, title: str) -> Part:
        """Open a tab."""
        self.widget.selected_index = list(self._makers).index(title)
        self._opened()
        return self.parts[title]

    def close(self) -> None:
        """End the simulation's thread, where there is one."""
        paging = self.parts.get("Paging truth")
        if isinstance(paging, _Paging):
            paging.part.close()

    def _opened(self) -> None:
        """Build the tab on show, once there is something to show."""
        index = self.widget.selected_index
        title = None if index is None else list(self._makers)[index]
        if title is None or title in self.parts or self._known is None:
            return
        part = self.parts[title] = self._makers[title]()
        try:
            part.show(self._known)
        except Exception as error:  # a callback's exception reaches no cell
            self._failed(error)
        self.widget.children[index].children = [part.widget]
