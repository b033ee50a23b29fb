"""What takes longer than half a second shows how far it is, and can be cancelled.

``Pace`` carries progress from the thread that works to the UI, not too early and not too often; ``ProgressRow`` shows it. Does
no work itself.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import ipywidgets

from widgets.background.tasks import UI, Deliver, delivery
from workbench.text import amount

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
        """Another piece of work begins; ``stale`` says when nobody wants it any longer."""
        self._step, self._stale = Step(what, 0, 0, unit), stale
        self._next = time.monotonic() + self._patience

    def moved(self, done: int, total: int) -> None:
        """What ``Source.read`` and ``open_model`` call ``progress``."""
        self._step = Step(self._step.what, done, total, self._step.unit)
        self.look()

    def look(self) -> bool:
        """What they call ``cancelled``: shows the last step if it is time, and says whether the work is stale."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            self._deliver(self._show)
        return self._stale()

    def _show(self) -> None:
        if UI.acquire(timeout=0.05):
            try:
                if not self._stale():
                    self._apply(self._step)
            finally:
                UI.release()


class Awaited(Protocol):
    """What takes long: a session, or the work of one view."""

    def on_progress(self, listener: Callable[[Step | None], None]) -> Callable[[], None]:
        """Has ``listener`` told each step, and None at the end."""

    def cancel(self) -> None:
        """Gives it up."""


class ProgressRow(ipywidgets.HBox):
    """A sentence, a bar and a Cancel button for what is waited for; takes no room while that is nothing."""

    def __init__(self, awaited: Awaited) -> None:
        self.bar = ipywidgets.HTML()
        self.button = ipywidgets.Button(description="Cancel", tooltip="Stop waiting for this")
        self.button.on_click(lambda _: awaited.cancel())
        super().__init__([self.bar, self.button])
        self.add_class("wb-row")
        self.add_class("wb-progress")
        self._end = awaited.on_progress(self.show)
        self.show(None)

    def show(self, step: Step | None) -> None:
        """Show a step, or with None nothing."""
        self.layout.display = "none" if step is None else "flex"
        if step is None:
            self.bar.value = ""
            return
        share = f' value="{step.done}" max="{step.total}"' if step.total else ""
        what = html.escape(step.what)
        note = f'<div class="wb-note" role="status">{what}{html.escape(_amount(step))}</div>'
        self.bar.value = f'{note}<progress aria-label="{what}"{share}></progress>'

    def close(self) -> None:
        """Follow the session no longer; the panel around it frees the widgets."""
        self._end()
        super().close()


def _amount(step: Step) -> str:
    if not step.total:
        return " …"
    if step.unit == "bytes":
        return f": {amount(step.done)} of {amount(step.total)}"
    return f": {step.done:,} of {step.total:,} {step.unit}"
