"""What a run really pages, and what it would page on a smaller GPU, simulated.

Covers the truth meter's table and reasons, and the pager's simulation with the GPU's memory as a control; beside it what was
measured, where anything was. Both are ``workbench``'s; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import ipywidgets

from widgets.background.work import Work
from widgets.controls.binding import Quiet
from widgets.controls.front_ends import slider
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, fields, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import pager
from workbench.memory.gpus import GIB
from workbench.memory.pager import PAGE_SIZES, PCIE, PagerSimulation, simulate_paging
from workbench.sources import Source, open_model
from workbench.text import memory_size
from workbench.training.config import TrainConfig
from workbench.training.results.truth import PagingTruth

_BUDGETS = 24
"""Budgets to choose from, between what is too little and what is enough."""
_MAY_PAGE = (("what bitsandbytes pages", "as configured"), ("everything (unlike any QLoRA)", "everything"))


@dataclass(frozen=True)
class Simulated:
    """A simulation, and the budgets worth choosing for it."""

    budgets: tuple[int, ...]
    simulation: PagerSimulation


class RunPaging:
    """``truth`` and ``simulation`` hold the two parts; ``follow`` begins, ``update`` brings the present truth."""

    def __init__(self, failed: Callable[[Exception], None], executor: Executor | None = None) -> None:
        self._work = Work(executor, self._show, failed, debounce=0.1)
        self._config: TrainConfig | None = None
        self._truth: PagingTruth | None = None
        self._found: Simulated | None = None
        self._quiet = Quiet()
        self._summary, self._table = note(), ipywidgets.HTML()
        self.truth = column(heading("What pages, and what does not"), self._summary, self._table)
        self.budget = slider("GPU memory (simulated)", [("…", 0), ("…", 1)])  # until a simulation says which are worth it
        self.may_page = ipywidgets.Dropdown(description="What may page", options=_MAY_PAGE)
        self.page_size = ipywidgets.Dropdown(
            description="Page", options=[("2 MiB, as evicted", PAGE_SIZES[0]), ("64 KiB, as fetched", PAGE_SIZES[1])]
        )
        self.bus = ipywidgets.Dropdown(description="Bus", options=list(PCIE.items()))
        self.plot = Plot({}, summary="No simulation yet.", height=380)
        self._outcome, self._beside = note(), ipywidgets.HTML()
        self.measured = Plot({}, summary="Nothing measured yet.", height=280)
        self.measured.layout.display = "none"
        self.simulation = column(
            note(
                "A model of the driver, not a measurement: the step's working set, page by page, the least recently used "
                "evicted first, at the bus's nominal rate. “Own” marks the memory of the GPU that the run had, if it had one."
            ),
            fields(self.budget, self.may_page, self.page_size, self.bus, width=170),
            ProgressRow(self._work),
            self._outcome,
            self.plot,
            self._beside,
            self.measured,
        )
        self.budget.add_class("wb-span")
        for control in (self.budget, self.page_size, self.bus):
            self._quiet.on_change(control, lambda _: self._simulate(self.budget.value))
        self._quiet.on_change(self.may_page, lambda _: self._simulate(None))

    def follow(self, config: TrainConfig) -> None:
        """Another run: its paging from now on."""
        self._config, self._truth, self._found = config, None, None
        self.measured.layout.display = "none"
        self._simulate(None)

    def update(self, truth: PagingTruth) -> None:
        """What is known now."""
        if truth == self._truth:
            return
        before, self._truth = self._truth, truth
        set_note(self._summary, truth.summary)
        self._table.value = pager.truth_table(truth)
        if truth.gpu is not None and (before is None or before.gpu is None):
            self._simulate(truth.gpu)  # what was measured was measured there
        self._set_beside()

    def close(self) -> None:
        """End the thread."""
        self._work.close()

    def _simulate(self, budget: int | None) -> None:
        if self._config is None:
            return
        how = {"page_size": self.page_size.value, "bandwidth": self.bus.value, "managed": self.may_page.value}
        work = partial(_simulation, self._config, budget, how, self._truth.gpu if self._truth else None)
        self._work.submit("Simulating a step", "moments", lambda progress, cancelled: work())

    def _show(self, found: Simulated) -> None:
        self._found = found
        own = self._truth.gpu if self._truth else None
        options = tuple((memory_size(size) + ", own" * (size == own), size) for size in found.budgets)
        with self._quiet:
            if self.budget.options != options:
                self.budget.options = options
            self.budget.value = found.simulation.budget
        figure, summary = pager.simulation_figure(found.simulation)
        self.plot.show(figure, summary=summary)
        nothing = found.simulation.least == found.simulation.enough and self.may_page.value == _MAY_PAGE[0][1]
        more = " Nothing of this run may page, for the reasons above; choose everything to see what would." if nothing else ""
        set_note(self._outcome, summary + more)
        self._set_beside()

    def _set_beside(self) -> None:
        """What was measured, beside the simulation on show."""
        if self._found is None or self._truth is None:
            return
        self._beside.value = pager.comparison_table(self._found.simulation, self._truth)
        drawn = pager.steps_figure(self._found.simulation, self._truth)
        self.measured.layout.display = "none" if drawn is None else ""
        if drawn is not None:
            self.measured.show(drawn[0], summary=drawn[1])


def _simulation(config: TrainConfig, budget: int | None, how: dict[str, Any], gpu: int | None) -> Simulated:
    """Without a budget: the one halfway between too little and enough. The run's own GPU is a budget to choose, too."""
    src: Source = open_model(config.model, config.model_revision)
    probe = simulate_paging(src, config, 80 * GIB, **how)
    low, high = probe.least, probe.enough
    margin = max((high - low) // 8, high // 100)
    first, last = max(low - margin, 1), high + margin
    spread = {first + (last - first) * i // (_BUDGETS - 1) for i in range(_BUDGETS)}
    budgets = tuple(sorted(spread | ({gpu} if gpu else set())))
    wanted = (low + high) // 2 if budget is None else budget
    chosen = min(budgets, key=lambda size: abs(size - wanted))
    return Simulated(budgets, simulate_paging(src, config, chosen, **how))
