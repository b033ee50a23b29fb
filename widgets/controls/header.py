"""``Header``: the one row at an app's top: where the reader is, how it is quantized, how far work is, the code behind it.

The path model › layer › tensor is the picker, formats are chips. Covers what is shown and what the page asks for; header.js
draws it. What the choices are and what they lead to is the business of ``widgets/panels/controls.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import anywidget
import traitlets

from widgets.background.pace import Step
from widgets.controls.progress import amount_done
from widgets.controls.suggestions import Suggestion
from widgets.drawing.drawing import script
from widgets.figures.palette import FORMAT_COLOURS

CHOICES = ("layer", "tensor", "formats", "block_size", "double_quant")
"""What the reader may choose, besides the model; in a header without a tensor none of these is shown."""


class Header(anywidget.AnyWidget):
    """The row. ``on_ask(kind, callback)`` is called with what the reader asks for:

    ``choose`` (some of ``CHOICES`` with their new values), ``typed`` (the text in the model field), ``open`` (the same,
    settled), ``cancel``.
    """

    _esm = script(
        "drawing/element.js",
        "controls/popups.js",
        "controls/menu.js",
        "controls/search_field.js",
        "controls/copy_lines.js",
        "controls/header.js",
    )

    state = traitlets.Dict().tag(sync=True)
    """What is chosen: the model and each of ``CHOICES``, and under ``answered`` the last choice of a page that is in it."""
    choices = traitlets.Dict().tag(sync=True)
    """What may be chosen: for layer, tensor, format and block_size a list of {value, label, title, note}."""
    status = traitlets.Dict({"text": "", "more": ""}).tag(sync=True)
    """A few words on what is measured, and the sentences that its ``?`` opens."""
    progress = traitlets.Dict().tag(sync=True)
    """Work under way: {what, text, done, total}; empty: none."""
    suggestions: Any = traitlets.Dict({"options": [], "status": ""}).tag(sync=True)
    """What the model field offers, and the line below it."""
    code = traitlets.Unicode().tag(sync=True)
    """The lines of Python behind what is on screen; empty: there are none to copy."""
    of_one_tensor = traitlets.Bool(True).tag(sync=True)
    """Whether what is on screen depends on layer and tensor: where not, they turn quiet."""
    whole = traitlets.Bool(True).tag(sync=True)
    """Whether there is more to choose than the model."""
    colours = traitlets.List(traitlets.Unicode(), list(FORMAT_COLOURS)).tag(sync=True)
    """Of the first, second and third format."""

    def __init__(self, **traits: Any) -> None:
        self._asked: dict[str, Callable[[Any], object]] = {}
        self._answered: list[Any] = []
        super().__init__(**traits)
        self.on_msg(self._receive)

    def on_ask(self, kind: str, callback: Callable[[Any], object]) -> None:
        """Call ``callback(value)`` when the reader asks for this kind of thing."""
        self._asked[kind] = callback

    def ask(self, kind: str, value: Any = None) -> None:
        """Do as if the reader had asked."""
        if callback := self._asked.get(kind):
            callback(value)

    def show(self, state: Mapping[str, Any]) -> None:
        """Show what is chosen."""
        self.state = {**state, "answered": self._answered}

    def offer(self, suggestions: Sequence[Suggestion], status: str = "") -> None:
        """Replace what the model field offers."""
        self.suggestions = {"options": [asdict(suggestion) for suggestion in suggestions], "status": status}

    def advance(self, step: Step | None) -> None:
        """Show how far work is; None: it has ended."""
        if step is None:
            self.progress = {}
        else:
            self.progress = {"what": step.what, "text": amount_done(step), "done": step.done, "total": step.total}

    def close(self) -> None:
        """Forget the callbacks and free the row: anywidget keeps its widgets alive, which must not keep the panel alive."""
        self._asked.clear()
        layout = self.layout
        super().close()
        if layout is not None:
            layout.close()

    def _receive(self, _: Any, content: Any, __: Any) -> None:
        if not isinstance(content, dict):
            return
        kind = str(content.get("kind"))
        if kind == "choose":  # the page shows its own choice until this one is in the state, or was refused
            self._answered = [content.get("page"), content.get("number")]
        self.ask(kind, content.get("value"))
        if kind == "choose":
            self.show({name: value for name, value in self.state.items() if name != "answered"})
