"""Long work that a button starts in a part of a view: shown as results come, it can be cancelled and continued.

Covers the button, what a press of it will cost, progress, and showing results while there are more to come. What is computed
and how it is shown is the part's own.
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
from widgets.controls.style import note, row, set_note
from workbench.progress import Cancelled, Progress

EVERY = 0.25
"""Seconds between two drawings while results come in."""

Made = Callable[[Progress, Cancelled], Iterable[Any]]
"""Called with (progress, cancelled); iterating what it returns gives results as they finish, as with ``wb.survey``."""


class Streamed:
    """A button that calls ``begin``, which calls ``follow``, which iterates the results off the kernel's thread.

    ``show(results)`` is called under ``UI`` with the results so far, now and then and at the end; ``ended()`` once nothing runs
    any longer, for whatever reason. ``widget`` holds the button and what a press will cost; ``progress`` takes their place
    while the work is under way.
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
        """Their buttons are disabled while this work is under way."""
        self.work.on_progress(lambda step: self._end() if step is None else None)
        self.button, self.cost = ipywidgets.Button(button_style=style), note()
        self.button.on_click(guard(message)(lambda _: begin()))
        self.widget, self.progress = row(self.button, self.cost), ProgressRow(self.work)
        self.widget.add_class("wb-run")
        self.close = self.work.close

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self.work.busy

    def offer(self, label: str, cost: str) -> None:
        """Label the button and say what a press will cost; an empty label hides both."""
        self.button.description = label or self.button.description
        self.button.layout.display = "" if label and not self.busy else "none"
        set_note(self.cost, cost if label and not self.busy else "")
        self.widget.layout.display = self.button.layout.display

    def follow(self, what: str, unit: str, make: Made) -> None:
        """Iterate what ``make(progress, cancelled)`` gives; ``what`` and ``unit`` as ``Step`` has them."""
        self.button.layout.display = self.widget.layout.display = "none"
        self.hold(True)
        self.work.submit(what, unit, lambda progress, cancelled: self._followed(make, progress, cancelled))

    def _end(self) -> None:
        self.hold(False)
        self._ended()

    def hold(self, held: bool) -> None:
        """Disable the rivals' buttons, or give them back."""
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
    for stream in streams:
        if stream.busy:
            stream.hold(True)
