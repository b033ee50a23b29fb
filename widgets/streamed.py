"""Long work of a part of a view that begins with a button: shown as it comes, cancelled, and gone on with.

Covers the button, what it says that a press will cost, progress, and handing results over while there are more to come. What
is computed and how it is shown is the part's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets.progress import ProgressRow
from widgets.style import column, note, row, set_note
from widgets.tasks import Message, guard
from widgets.work import Work
from workbench.sources.base import Cancelled, Progress

EVERY = 0.25
"""Seconds between two drawings while results come in."""

Made = Callable[[Progress, Cancelled], Iterable[Any]]
"""From (progress, cancelled) to results as they finish, in the way of ``wb.survey``."""


class Streamed:
    """A button that has ``begin`` called; ``follow``, called there, iterates what is made off the kernel's thread.

    ``show(results)`` gets them so far, under ``UI``, now and then and at the end; ``ended()`` is called once nothing runs any
    longer, however that came. ``widget`` holds the button, what it will cost, and the progress.
    """

    def __init__(
        self,
        message: Message,
        executor: Executor | None,
        begin: Callable[[], None],
        show: Callable[[Any], None],
        ended: Callable[[], None],
        style: str = "primary",
    ) -> None:
        self._show = guard(message)(show)
        self.work = Work(executor, self._show, message.error)
        self.work.on_progress(lambda step: ended() if step is None else None)
        self.button, self.cost = ipywidgets.Button(button_style=style), note()
        self.button.on_click(guard(message)(lambda _: begin()))
        self.widget = column(row(self.button), self.cost, ProgressRow(self.work))
        self.close = self.work.close

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self.work.busy

    def offer(self, label: str, cost: str) -> None:
        """What the button says and what a press will cost; an empty label where there is nothing to begin."""
        self.button.description = label or self.button.description
        self.button.layout.display = "" if label and not self.busy else "none"
        set_note(self.cost, cost if label and not self.busy else "")

    def follow(self, what: str, unit: str, make: Made) -> None:
        """Iterate what ``make(progress, cancelled)`` gives; ``what`` and ``unit`` as ``Step`` has them."""
        self.work.submit(what, unit, lambda progress, cancelled: self._followed(make, progress, cancelled))
        if self.busy:
            self.offer("", "")

    def _followed(self, make: Made, progress: Progress, cancelled: Cancelled) -> Iterable[Any]:
        results = make(progress, cancelled)
        due = 0.0
        for _ in results:
            if time.monotonic() >= due:
                self.work.partly(lambda: self._show(results))
                due = time.monotonic() + EVERY
        return results
