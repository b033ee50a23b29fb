"""Long work of one view: the newest request wins, progress shows after half a second, and it can be cancelled.

Joins ``tasks.Latest`` with ``progress.Pace``, for what a view computes besides the session's analysis. Does no work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from widgets.background.listeners import Listeners
from widgets.background.pace import Pace, Step
from widgets.background.tasks import Latest, delivery, under_ui
from workbench.progress import Cancelled, Progress


class Work:
    """``submit`` runs a function of (progress, cancelled) off the kernel's thread and hands its result to ``apply``.

    ``apply``, ``failed`` and the listeners of ``on_progress`` are called under ``UI``; ``failed`` also gets what ``apply``
    raises. What a request that is still running has found so far goes through ``partly``.
    """

    def __init__(
        self,
        executor: Executor | None,
        apply: Callable[[Any], None],
        failed: Callable[[Exception], None],
        debounce: float = 0.0,
    ) -> None:
        self._progress = Listeners()
        self._deliver = delivery()
        self._pace = Pace(self._progress)
        self._latest = Latest(executor, apply=apply, failed=failed, busy=self._worked, debounce=debounce)
        self.busy = False
        """Whether there is something to wait for."""

    def submit(self, what: str, unit: str, work: Callable[[Progress, Cancelled], Any]) -> None:
        """Ask for ``work(progress, cancelled)``; ``what`` and ``unit`` are for the reader, as ``Step`` has them."""
        self._latest.submit(self._run, what, unit, work)

    def partly(self, apply: Callable[[], None]) -> None:
        """From within a request: have ``apply()`` called under ``UI`` unless the request has become stale."""
        stale = self._latest.staleness()
        self._deliver(lambda: under_ui(apply, lambda: not stale()))

    def cancel(self) -> None:
        """Give up what is under way."""
        self._latest.cancel()

    def on_progress(self, listener: Callable[[Step | None], None]) -> Callable[[], None]:
        """Calls ``listener(step)`` while work takes more than half a second, and with None at its end."""
        return self._progress.add(listener)

    def close(self) -> None:
        """Ends the thread; closing twice is harmless."""
        self._latest.close()
        self._progress.clear()

    def _run(self, what: str, unit: str, work: Callable[[Progress, Cancelled], Any]) -> Any:
        self._pace.begin(what, unit, self._latest.staleness())
        return work(self._pace.moved, self._pace.look)

    def _worked(self, busy: bool) -> None:
        self.busy = busy
        if not busy:
            self._progress(None)
