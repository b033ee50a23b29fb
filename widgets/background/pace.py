"""Progress on its way from the working thread to the UI, not too early and not too often. Shows nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from widgets.background.tasks import Deliver, delivery, under_ui

PATIENCE = 0.5
"""Seconds in which nothing is shown."""
_EVERY = 0.1


@dataclass(frozen=True)
class Step:
    """How far some work is."""

    what: str
    """What is being done, as a text for the reader."""
    done: int
    total: int
    """Both in the same unit; a total of 0: it is not known yet how much there is."""
    unit: str = ""
    """``bytes``, or a plural such as ``headers``."""


class Pace:
    """Takes steps on the working thread and hands some of them to ``apply``, under ``UI``.

    A step that the UI has no time for is dropped, and so is one of work that has become stale meanwhile.
    """

    def __init__(self, apply: Callable[[Step], None], deliver: Deliver | None = None, patience: float | None = None) -> None:
        self._apply, self._deliver = apply, deliver or delivery()
        self._patience = PATIENCE if patience is None else patience
        self._step = Step("", 0, 0)
        self._stale: Callable[[], bool] = bool
        self._next = 0.0

    def begin(self, what: str, unit: str, stale: Callable[[], bool]) -> None:
        """Another piece of work begins; ``stale()`` turns true once its result is no longer wanted."""
        self._step, self._stale = Step(what, 0, 0, unit), stale
        self._next = time.monotonic() + self._patience

    def moved(self, done: int, total: int) -> None:
        """To be passed as ``progress`` to ``Source.read`` and ``open_model``."""
        self._step = Step(self._step.what, done, total, self._step.unit)
        self.look()

    def look(self) -> bool:
        """To be passed to them as ``cancelled``: shows the last step if it is time; returns whether the work is stale."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            self._deliver(self._show)
        return self._stale()

    def _show(self) -> None:
        under_ui(lambda: self._apply(self._step), lambda: not self._stale(), patient=False)
