"""``Segments``: one of a few choices, all of them in view, side by side; and ``Faces``: a place that shows what is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets


class Segments(ipywidgets.RadioButtons):
    """A choice among the keys of ``titles``, each shown by its title; ``name`` is for screen readers.

    Radio buttons underneath, so that the arrow keys go from one to the next.
    """

    def __init__(self, name: str, titles: Mapping[str, str]) -> None:
        super().__init__(description=name, options=[(title, key) for key, title in titles.items()])
        self.add_class("wb-segments")


class Faces(ipywidgets.Box):
    """Shows the content of one key at a time: what ``build[key]()`` returns, called when the key is first shown."""

    children: tuple[Any, ...]

    def __init__(self, build: Mapping[str, Callable[[], Any]]) -> None:
        self._build, self._built = dict(build), dict[str, Any]()
        super().__init__()
        self.add_class("wb-faces")

    def show(self, key: str) -> None:
        """Bring one to the front."""
        if key not in self._built:
            self._built[key] = self._build[key]()
            self.children = (*self.children, self._built[key])
        for name, widget in self._built.items():
            widget.layout.display = "" if name == key else "none"
