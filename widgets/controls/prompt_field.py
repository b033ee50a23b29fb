"""A text field for a prompt, of one line or more; prompt_field.js draws it. What becomes of the prompt is the caller's part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from widgets.drawing.drawing import script


class PromptField(anywidget.AnyWidget):
    """The field. ``value`` follows what is typed, letter by letter; Enter calls the callbacks of ``on_enter``.

    Shift+Enter begins a line, and the field grows with its lines.
    """

    _esm = script("drawing/element.js", "controls/prompt_field.js")

    value = traitlets.Unicode().tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)
    """Its name for screen readers."""
    placeholder = traitlets.Unicode().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._entered: list[Callable[[], None]] = []
        super().__init__(**traits)
        self.on_msg(self._message)

    def on_enter(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` when the reader presses Enter."""
        self._entered.append(callback)

    def close(self) -> None:
        """Forget the callbacks and free the field."""
        self._entered.clear()
        self.unobserve_all()
        super().close()

    def _message(self, _: Any, content: Any, __: Any) -> None:
        if isinstance(content, dict) and content.get("kind") == "enter":
            self.value = str(content.get("value", self.value))
            for callback in self._entered:
                callback()
