"""The live view of one training run: curves, memory, paging, phases, what came of it, log.

Reads a run through ``workbench.training`` and shows what changed, at most four times a second, from a thread; so it keeps
moving while a cell is busy, where the kernel allows that, and elsewhere through ``run.watch()``. Steering the run is
``panels/train/view.py``'s part; figures and words come from ``figures/run.py``, ``figures/run_memory.py`` and ``words.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from types import MappingProxyType

import ipywidgets
import psutil

from widgets.background.tasks import UI, Ticker
from widgets.controls.style import column, fold, grid, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import run as run_figures
from widgets.figures import run_memory
from widgets.figures.layout import Described
from widgets.panels.train import words
from widgets.panels.train.paging import RunPaging
from widgets.panels.train.receipt import RunReceipt
from workbench.training.folder import ENDED, GONE, RunStatus
from workbench.training.results.history import RunHistory
from workbench.training.results.receipt_meter import ReceiptMeter
from workbench.training.results.receipts import Receipt
from workbench.training.results.truth import PagingMeter, PagingTruth
from workbench.training.runs import Run

INTERVAL = 0.25
"""Seconds between updates at least."""
POINTS_A_SECOND = 40_000
"""Points that are sent at most: long curves rest longer between updates."""

_HEIGHTS = {
    "loss": 300, "gradient_norm": 300, "learning_rate": 220, "speed": 220, "memory": 340, "phases": 150, "batches": 320,
    "paging": 260,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Glance:
    """Everything that one look at a run changes on the page, made off the page's thread."""

    number: int
    status: RunStatus
    figures: Mapping[str, Described]
    truth: PagingTruth
    receipt: Receipt
    headline: str
    paging: str
    results: str
    log: str


class Following:
    """A run under observation, and all that was read of it so far. Safe to use from any thread."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.history = RunHistory()
        self.status: RunStatus | None = None
        self.beside: Mapping[str, RunHistory] = MappingProxyType({})
        self._paging, self._receipt = PagingMeter(self.config), ReceiptMeter()
        self._log = ""
        self._reader = run.reader()
        self._lock = threading.Lock()
        self._number = 0
        self._due = 0.0

    def look(self, anyway: bool = False) -> Glance | None:
        """What the run looks like now; None where nothing is new (unless ``anyway``) or the last look was just now."""
        with self._lock:
            if time.monotonic() < self._due and not anyway:
                return None
            return self._glance() if self._read() or anyway else None

    def _read(self) -> bool:
        """Take in what is new; whether there was anything."""
        status = self.run.status  # before the events: an ended run writes no more of them
        events, log = ([], self._log) if status.state == GONE else (self._reader.poll(), words.tail(self.run.log))
        if not events and status == self.status and log == self._log:
            return False
        self.history.feed(events)
        self._paging.feed(events)
        self._receipt.feed(events)
        self.status, self._log = status, log
        return True

    def _glance(self) -> Glance:
        history, run, status = self.history, self.run, self.status or self.run.status
        key = str(run.dir)
        figures = {
            "loss": run_figures.loss_figure(history, key, self.beside),
            "memory": run_memory.memory_figure(history, key, psutil.virtual_memory().total),
            "batches": run_memory.batches_figure(history, key),
        } | {
            name: getattr(run_figures, f"{name}_figure")(history, key)
            for name in ("gradient_norm", "learning_rate", "speed", "paging", "phases")
        }  # fmt: skip
        points = sum(len(trace["x"]) for figure, _ in figures.values() for trace in figure["data"])
        self._due = time.monotonic() + points / POINTS_A_SECOND
        self._number += 1
        return Glance(
            number=self._number,
            status=status,
            figures=figures,
            truth=self._paging.truth(),
            receipt=self._receipt.receipt(),
            headline=words.headline(run, self.config, status, history),
            paging=words.paging(history),
            results=words.results(run, status, history),
            log=words.log(self._log, history),
        )


class RunView:
    """``widget`` holds the view; ``follow(run)`` fills it, ``close()`` ends its threads, and the panel closes the widgets."""

    def __init__(
        self, changed: Callable[[RunStatus], None], failed: Callable[[Exception], None], executor: Executor | None = None
    ) -> None:
        self._changed, self._failed = changed, failed
        self._ticker: Ticker | None = None
        self._following: Following | None = None
        self._beside: Mapping[str, RunHistory] = MappingProxyType({})
        self._shown = 0
        self.plots = {name: Plot({}, summary="No run yet.", height=height) for name, height in _HEIGHTS.items()}
        self.paging, self.receipt = RunPaging(failed, executor), RunReceipt()
        self._headline, self._results, self._log = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._paging_note = note()
        plots = self.plots
        self.widget = column(
            self._headline,
            grid(plots["loss"], plots["gradient_norm"]),
            grid(plots["learning_rate"], plots["speed"]),
            plots["memory"],
            plots["phases"],
            plots["batches"],
            plots["paging"],
            self._paging_note,
            self.paging.truth,
            fold("Simulated: the same run on a smaller GPU", self.paging.simulation),
            self.receipt.widget,
            self._results,
            heading("Log"),
            self._log,
        )
        self.widget.layout.display = "none"

    def follow(self, run: Run) -> None:
        """Show a run, what it did so far at once, and what it does from now on until it has ended.

        ``run.watch()`` brings the view up to date until another run is followed, so also where this one is resumed.
        """
        self._leave()
        following = self._following = Following(run)
        run.views.append(self._look)
        self._lay_over(following)
        self._shown = 0
        self.paging.follow(following.config)
        self._look(anyway=True)
        self.widget.layout.display = ""
        if following.status is None or following.status.state not in ENDED:
            self._ticker = Ticker(following.look, self._apply, interval=INTERVAL, failed=self._failed)
            self._ticker.start()

    def overlay(self, beside: Mapping[str, RunHistory]) -> bool:
        """Lay other runs' losses over that of the run on show, now and of later ones; whether there is one."""
        self._beside = beside
        if self._following is None:
            return False
        self._lay_over(self._following)
        self._look(anyway=True)
        return True

    def _lay_over(self, following: Following) -> None:
        own = following.run.dir.name
        following.beside = {name: history for name, history in self._beside.items() if name != own}

    def close(self) -> None:
        """Stop following."""
        self._leave()
        self.paging.close()

    def _end(self) -> None:
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None

    def _leave(self) -> None:
        self._end()
        if self._following is not None:
            self._following.run.views.remove(self._look)
            self._following = None

    def _look(self, anyway: bool = False) -> None:
        """Bring the view up to date from within a call, without waiting for the thread."""
        following = self._following
        if following is not None and (seen := following.look(anyway)) is not None:
            with UI:
                self._apply(seen)

    def _apply(self, seen: Glance) -> None:
        if seen.number <= self._shown:
            return  # a later look was applied before this one
        self._shown = seen.number
        for name, (figure, summary) in seen.figures.items():
            self.plots[name].show(figure, summary=summary)
        self._headline.value, self._results.value, self._log.value = seen.headline, seen.results, seen.log
        set_note(self._paging_note, seen.paging)
        self.paging.update(seen.truth)
        self.receipt.update(seen.receipt)
        self._changed(seen.status)
        if seen.status.state in ENDED:
            self._end()
