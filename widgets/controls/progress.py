"""``ProgressRow``: how far long work is, shown after half a second, with a button to cancel it. Does no work itself."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Protocol

import ipywidgets

from widgets.background.pace import Step
from workbench.text import amount


class Awaited(Protocol):
    """Work that may take long: a session's, or that of one view."""

    def on_progress(self, listener: Callable[[Step | None], None]) -> Callable[[], None]:
        """Calls ``listener`` with each step, and with None at the end."""

    def cancel(self) -> None:
        """Gives the work up."""


class ProgressRow(ipywidgets.HBox):
    """A sentence, a bar and a Cancel button for work under way; takes no room while there is none."""

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
        note = f'<div class="wb-note" role="status">{what}{html.escape(amount_done(step))}</div>'
        self.bar.value = f'{note}<progress aria-label="{what}"{share}></progress>'

    def close(self) -> None:
        """Stop following the work; the panel around it frees the widgets."""
        self._end()
        super().close()


def amount_done(step: Step) -> str:
    """How much of a step is done, in words that follow what it does."""
    if not step.total:
        return " …"
    if step.unit == "bytes":
        return f": {amount(step.done)} of {amount(step.total)}"
    return f": {step.done:,} of {step.total:,} {step.unit}"
