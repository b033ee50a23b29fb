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

from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.message import Message
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, note, row, set_note
from workbench.progress import Cancelled, Progress

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
        *,
        begin: Callable[[], None],
        show: Callable[[Any], None],
        ended: Callable[[], None],
        style: str = "primary",
    ) -> None:
        self._show = guard(message)(show)
        self.work = Work(executor, self._show, message.error)
        self._ended = ended
        self.rivals: tuple[Streamed, ...] = ()
        """Whose buttons are out of reach while this is under way."""
        self.work.on_progress(lambda step: self._end() if step is None else None)
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
        self.widget.layout.display = "" if label or self.busy else "none"

    def follow(self, what: str, unit: str, make: Made) -> None:
        """Iterate what ``make(progress, cancelled)`` gives; ``what`` and ``unit`` as ``Step`` has them."""
        self.button.layout.display = "none"
        set_note(self.cost, "")
        self._hold(True)
        self.work.submit(what, unit, lambda progress, cancelled: self._followed(make, progress, cancelled))

    def _end(self) -> None:
        self._hold(False)
        self._ended()

    def _hold(self, held: bool) -> None:
        for rival in self.rivals:
            rival.button.disabled = held
            rival.button.tooltip = "Something else is being measured: wait for its end, or cancel it" if held else ""

    def _followed(self, make: Made, progress: Progress, cancelled: Cancelled) -> Iterable[Any]:
        results = make(progress, cancelled)
        due = 0.0
        for _ in results:
            if time.monotonic() >= due:
                self.work.partly(lambda: self._show(results))
                due = time.monotonic() + EVERY
        return results


def one_at_a_time(*streams: Streamed) -> None:
    """Of these, only one may be under way."""
    for stream in streams:
        stream.rivals = tuple(other for other in streams if other is not stream)
