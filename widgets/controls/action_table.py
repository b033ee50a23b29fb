"""``ActionTable``: a table whose rows can be ticked, and acted upon by buttons at their ends.

Covers the cells, the ticks and the presses. Cells are plain text, which the page puts in as text. What a press does is the
caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anywidget
import traitlets

from widgets.background.listeners import Listeners
from widgets.drawing.drawing import script


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    key: str
    """What callbacks call it, and what its buttons are named by."""
    cells: tuple[str, ...]
    actions: tuple[str, ...]
    """Which of the table's actions it offers."""
    mark: str = ""
    """A word before the first cell that sets the row apart, as its state."""


class ActionTable(anywidget.AnyWidget):
    """``columns`` of which those in ``numbers`` are numbers; ``actions`` by name, each with its label."""

    _esm = script("drawing/element.js", "controls/action_table.js")

    label = traitlets.Unicode().tag(sync=True)
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    numbers = traitlets.List(traitlets.Int()).tag(sync=True)
    actions = traitlets.Dict().tag(sync=True)
    tick = traitlets.Unicode().tag(sync=True)
    """What ticking a row does, as its box is named to a screen reader; empty: rows have no boxes."""
    lines = traitlets.List(traitlets.Dict()).tag(sync=True)
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """The keys of the rows that are ticked, in the order of their ticking."""

    def __init__(
        self, label: str, columns: Sequence[str], actions: Mapping[str, str], *, numbers: Sequence[int] = (), tick: str = ""
    ) -> None:
        self._acted = Listeners()
        super().__init__(label=label, columns=list(columns), numbers=list(numbers), actions=dict(actions), tick=tick)
        self.on_msg(self._receive)

    def show(self, lines: Sequence[Line]) -> None:
        """Replace the rows; those that are still there stay ticked."""
        keys = {line.key for line in lines}
        with self.hold_sync():
            self.lines = [asdict(line) | {"cells": list(line.cells), "actions": list(line.actions)} for line in lines]
            self.ticked = [key for key in self.ticked if key in keys]

    def on_action(self, callback: Callable[[str, str], None]) -> None:
        """Call ``callback(action, key)`` when a row's button is pressed."""
        self._acted.add(callback)

    def press(self, action: str, key: str) -> None:
        """Press a row's button."""
        self._acted(action, key)

    def close(self) -> None:
        """Forget the callbacks and free the widget."""
        self._acted.clear()
        self.unobserve_all()
        super().close()

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        action, key = message.get("action"), message.get("key")
        if any(line["key"] == key and action in line["actions"] for line in self.lines):
            self.press(action, key)
