"""A text field with suggestions below it, grouped and explained; search_field.js draws it.

Covers the field: what is typed, what is offered, what was chosen. Finds no suggestions itself. Unlike the browser's own
``datalist`` it shows what a suggestion is, follows the page's theme, and can be read by a screen reader as it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anywidget
import traitlets

from widgets.drawing.drawing import script


@dataclass(frozen=True)
class Suggestion:
    """One line of the list."""

    value: str
    """What the field contains once it is chosen."""
    note: str = ""
    """What it is, in a few words."""
    group: str = ""
    """The heading that it stands under, together with its neighbours of the same group."""
    final: bool = True
    """Whether choosing it is the end: False for a folder on the way to others."""


class SearchField(anywidget.AnyWidget):
    """The field. ``value`` follows what is typed, letter by letter; ``offer`` puts suggestions below it.

    Enter, or choosing a suggestion that is final, calls the callbacks of ``on_chosen``.
    """

    _esm = script("drawing/element.js", "controls/search_field.js")

    value = traitlets.Unicode().tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)
    """The label, visible and for screen readers."""
    placeholder = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    """A line below the suggestions: what is being looked for, or why there are none."""
    options = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._chosen: list[Callable[[], None]] = []
        super().__init__(**traits)
        self.on_msg(self._message)

    def offer(self, suggestions: Sequence[Suggestion], status: str = "") -> None:
        """Replace the suggestions."""
        with self.hold_sync():
            self.options = [asdict(suggestion) for suggestion in suggestions]
            self.status = status

    def on_chosen(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` once the reader has settled on ``value``."""
        self._chosen.append(callback)

    def close(self) -> None:
        """Forget the callbacks and free the field: anywidget keeps its widgets alive, which must not keep the panel alive."""
        self._chosen.clear()
        self.unobserve_all()
        super().close()

    def _message(self, _: Any, content: Any, __: Any) -> None:
        if isinstance(content, dict) and content.get("kind") == "chosen":
            self.value = str(content.get("value", self.value))
            for callback in self._chosen:
                callback()
