"""The live view of one training run: the cockpit, and the small tabs under it.

Reads a run through ``workbench.training`` and shows what is new, at most four times a second, from a thread; so it keeps moving
while a cell is busy, where the kernel allows that, and elsewhere through ``run.watch()``. What the cockpit's buttons do is
``panels/train/view.py``'s part; what stands in the tabs is ``details.py``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from types import MappingProxyType
from typing import Any

import psutil

from widgets.background.tasks import UI, Latest, Ticker
from widgets.controls.style import column
from widgets.drawing.cockpit import Cockpit
from widgets.drawing.plot import Plot
from widgets.figures.run import loss_figure
from widgets.panels.train import words
from widgets.panels.train.details import Known, RunDetails
from workbench.errors import WorkbenchError
from workbench.memory.pressure import Pressure, under_pressure
from workbench.training.config import TrainConfig
from workbench.training.folder import ENDED, GONE, RunStatus
from workbench.training.recorded import note_of
from workbench.training.results.history import RunHistory
from workbench.training.results.receipt_meter import ReceiptMeter
from workbench.training.results.timeline import Tails, Timeline
from workbench.training.results.truth import PagingMeter
from workbench.training.runs import Run

INTERVAL = 0.25
"""Seconds between updates at least."""


class Following:
    """A run under observation, and all that was read of it so far. Safe to use from any thread."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config
        self.history = RunHistory()
        self.status: RunStatus | None = None
        self._timeline = Timeline()
        self._paging, self._receipt = PagingMeter(self.config), ReceiptMeter()
        self._log = ""
        self._reader = run.reader()
        self._lock = threading.Lock()
        self._untaken = True

    def look(self) -> bool | None:
        """Read what is new; None where nothing is that was not taken."""
        with self._lock:
            status = self.run.status  # before the events: an ended run writes no more of them
            if status.state == GONE:
                events, log = [], self._log
            else:
                events, log = self._reader.poll(), words.tail(self.run.log)
            if not events and status == self.status and log == self._log:
                return self._untaken or None
            self.history.feed(events)
            self._paging.feed(events)
            self._receipt.feed(events)
            self._timeline.feed(events, ended=status.state in ENDED)
            self.status, self._log = status, log
            self._untaken = True
            return True

    def take(self) -> tuple[Known, Tails, dict[str, Any]] | None:
        """What is known by now, the rows that were not sent yet, and the cockpit's other facts; None: all was sent."""
        with self._lock:
            if not self._untaken:
                return None
            self._untaken = False
            status = self.status or self.run.status
            known = Known(
                run=self.run, config=self.config, status=status, history=self.history, truth=self._paging.truth(),
                receipt=self._receipt.receipt(), log=self._log,
            )  # fmt: skip
            facts = _facts(known) | {"names": list(self._timeline.names), "managed": self._timeline.managed}
            return known, self._timeline.tails(), facts


def _facts(known: Known) -> dict[str, Any]:
    """What the cockpit says beside the rows."""
    history, config, status = known.history, known.config, known.status
    on_gpu = ("worker", "allocated") in history.memory
    total = history.total_steps or (config.max_steps if config.max_steps > 0 else None)
    ended = status.state in ENDED
    host = psutil.virtual_memory().total - (history.libraries or 0)
    capabilities = history.hello.get("capabilities", {})
    decided = "cuda" in capabilities.get("paged optimizer state", {}).get("facts", {})
    return {
        "state": status.state, "ended": ended, "total": total, "alert": "" if ended else history.alert,
        "left": None if ended or total is None else history.seconds_left(total),
        "device": history.device, "layers": words.layers(on_gpu), "forecast": history.forecast,
        "capacity": history.device_total if on_gpu else host, "libraries": None if on_gpu else history.libraries,
        "measures": bool(capabilities.get("cupti", {}).get("works")), "why": known.truth.summary if decided else "",
        "summary": words.summary(known.run, status, history), "fetch": words.fetching(status, history),
        "doing": "" if ended else words.doing(history),
    }  # fmt: skip


class RunView:
    """``widget`` holds the view; ``follow(run)`` fills it, ``close()`` ends its threads, and the panel closes the widgets.

    ``cockpit`` is the cockpit in it, whose buttons are those of ``offers`` that suit the run's state; ``details`` the tabs.
    """

    def __init__(
        self,
        changed: Callable[[RunStatus], None],
        failed: Callable[[Exception], None],
        executor: Executor | None = None,
        *,
        offers: tuple[str, ...] = ("pause", "stop", "resume"),
    ) -> None:
        self._changed, self._failed, self._offers = changed, failed, frozenset(offers)
        self._ticker: Ticker | None = None
        self._following: Following | None = None
        self._beside: Mapping[str, RunHistory] = MappingProxyType({})
        self._pressing = Latest(executor, apply=self._press, failed=lambda _: None)
        self._pressed = False
        self.cockpit, self.details = Cockpit(), RunDetails(failed, executor)
        self._compared = column()
        self.widget = column(self.cockpit, self.details.widget, self._compared)
        self.widget.add_class("wb-run-view")
        self.widget.layout.display = "none"

    def follow(self, run: Run) -> None:
        """Show a run, what it did so far at once, and what it does from now on until it has ended.

        ``run.watch()`` brings the view up to date until another run is followed, so also where this one is resumed.
        """
        self._leave()
        following = self._following = Following(run)
        run.views.append(self._look)
        self._pressed = False
        self.cockpit.begin(
            str(run.dir), settings=words.settings(following.config), label=note_of(run), layers=words.layers(False)
        )
        following.look()
        with UI:
            self._apply(True)
        self.widget.layout.display = ""
        if following.status is None or following.status.state not in ENDED:
            self._ticker = Ticker(following.look, self._apply, interval=INTERVAL, failed=self._failed)
            self._ticker.start()

    def overlay(self, beside: Mapping[str, RunHistory]) -> bool:
        """Lay other runs' losses over that of the run on show, now and of later ones; whether there is one."""
        self._beside = beside
        if self._following is None:
            return False
        self._compare(self._following)
        return True

    def close(self) -> None:
        """Stop following."""
        self._leave()
        self._pressing.close()
        self.details.close()

    def _end(self) -> None:
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None

    def _leave(self) -> None:
        self._end()
        if self._following is not None:
            self._following.run.views.remove(self._look)
            self._following = None

    def _look(self) -> None:
        """Bring the view up to date from within a call, without waiting for the thread."""
        if self._following is not None and self._following.look():
            with UI:
                self._apply(True)

    def _apply(self, _: bool) -> None:
        """Show what was read and not shown yet."""
        following = self._following
        if following is None or (taken := following.take()) is None:
            return
        known, tails, facts = taken
        offered = [name for name in words.actions(known.status) if name in self._offers]
        self.cockpit.update(tails, actions=offered, **facts)
        self.details.show(known)
        if self._beside:
            self._compare(following)
        if facts["why"] and not facts["measures"] and facts["device"] == "cpu" and not self._pressed:
            self._pressed = True
            self._pressing.submit(_pressure, following.config)
        self._changed(known.status)
        if known.status.state in ENDED:
            self._end()

    def _press(self, found: tuple[TrainConfig, Pressure | None]) -> None:
        """What would page, once it is simulated, if the same run is still on show."""
        config, pressure = found
        if pressure is not None and self._following is not None and self._following.config is config:
            self.cockpit.update({}, simulated=words.simulated(pressure), summary=self.cockpit.summary)

    def _compare(self, following: Following) -> None:
        """The losses of other runs with this one's, as a plot over steps: they had clocks of their own."""
        others = {name: history for name, history in self._beside.items() if name != following.run.dir.name}
        if others and not self._compared.children:
            self._compared.children = [Plot({}, summary="No other run.", height=300)]
        self._compared.layout.display = "" if others else "none"
        if others:
            figure, summary = loss_figure(following.history, str(following.run.dir), others)
            self._compared.children[0].show(figure, summary=summary)


def _pressure(config: TrainConfig) -> tuple[TrainConfig, Pressure | None]:
    try:
        return config, under_pressure(config.model, config)
    except WorkbenchError:  # a model without a forecast: the lane says why nothing pages, and simulates nothing
        return config, None
