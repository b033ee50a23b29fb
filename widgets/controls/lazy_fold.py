"""``LazyFold``: a fold whose content is made when the reader first opens it. Looks and opens as ``style.fold`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import anywidget
import ipywidgets
import traitlets

from widgets.background.tasks import ErrorDisplay, guard
from widgets.drawing.drawing import script


class FoldTitle(anywidget.AnyWidget):
    """The line that opens a fold; ``opened`` says that the reader has pressed it once."""

    _esm = script("drawing/element.js", "controls/lazy_fold.js")

    title = traitlets.Unicode().tag(sync=True)
    subtitle = traitlets.Unicode().tag(sync=True)
    opened = traitlets.Bool(False).tag(sync=True)

    def close(self) -> None:
        """Forget who waits for it and free the widget."""
        self.unobserve_all()
        super().close()


class LazyFold(ipywidgets.Box):
    """``title``, a quieter ``subtitle`` beside it, and below them what ``build()`` makes when that is first looked at."""

    def __init__(self, title: str, build: Callable[[], Iterable[Any]], message: ErrorDisplay) -> None:
        self._build = build
        self.title = FoldTitle(title=title)
        self.inside = ipywidgets.Box()
        self.inside.add_class("wb-column")
        super().__init__([self.title, self.inside])
        self.add_class("wb-fold")
        self.title.observe(guard(message)(lambda _: self.fill()), "opened")

    @property
    def filled(self) -> bool:
        """Whether the content is made."""
        return bool(self.inside.children)

    def fill(self) -> None:
        """Make the content, if it is not."""
        if not self.filled:
            self.inside.children = tuple(self._build())

    def say(self, subtitle: str, *, wrong: bool = False) -> None:
        """Set the line beside the title, and whether the fold stays open because something in it is wrong."""
        self.title.subtitle = subtitle
        (self.add_class if wrong else self.remove_class)("wb-faulty")
