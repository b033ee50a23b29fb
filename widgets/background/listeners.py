"""Who is told of a change: the one way in which views and state hear of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Listeners:
    """Functions that are called, in the order in which they came, with whatever this is called with."""

    def __init__(self) -> None:
        self._all: list[Callable[..., None]] = []

    def add(self, listener: Callable[..., None]) -> Callable[[], None]:
        """Has ``listener`` called from now on; returns what ends that, which may be called twice."""
        self._all.append(listener)

        def end() -> None:
            if listener in self._all:
                self._all.remove(listener)

        return end

    def clear(self) -> None:
        """Forgets them all."""
        self._all.clear()

    def __call__(self, *values: Any) -> None:
        """Tells all who listened when this began."""
        for listener in tuple(self._all):
            listener(*values)
