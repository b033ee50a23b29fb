"""``Message``: the place in a panel where notes and errors stand."""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable

import ipywidgets

from workbench.errors import WorkbenchError


class Message(ipywidgets.HTML):
    """The place in a panel where notes and errors stand. Text is escaped here, so callers pass it as it is.

    ``words(text)`` puts an error in the panel's own words, and ``on_error(error)`` is called with each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words: Callable[[str], str] = str
        self.on_error: Callable[[BaseException], None] = lambda error: None

    def note(self, text: str) -> None:
        """Something the reader may like to know."""
        self.value = f'<div class="wb-message" role="status">{html.escape(text)}</div>'

    def error(self, error: BaseException) -> None:
        """What was wrong, where, and what to do; an error that is no ``WorkbenchError`` comes with its traceback, folded."""
        self.on_error(error)
        if isinstance(error, WorkbenchError):
            parts = [("what", self.words(error.what)), ("where", self.words(error.where)), ("remedy", self.words(error.remedy))]
            body = "".join(f'<div class="wb-{name}">{html.escape(text)}</div>' for name, text in parts if text)
        else:
            trace = html.escape("".join(traceback.format_exception(error)))
            what = html.escape(f"{type(error).__name__}: {error}")
            body = f'<div class="wb-what">{what}</div><details><summary>Where it happened</summary><pre>{trace}</pre></details>'
        self.value = f'<div class="wb-message wb-error" role="alert">{body}</div>'

    def clear(self) -> None:
        """Leave the place empty."""
        self.value = ""
