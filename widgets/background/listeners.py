"""Listeners: the one way in which views and state hear of each other's changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Listeners:
    """Calling this calls each function that was added, in order and with the same arguments."""

    def __init__(self) -> None:
        self._all: list[Callable[..., None]] = []

    def add(self, listener: Callable[..., None]) -> Callable[[], None]:
        """Calls ``listener`` from now on; returns a function that ends that, and may be called twice."""
        self._all.append(listener)

        def end() -> None:
            if listener in self._all:
                self._all.remove(listener)

        return end

    def clear(self) -> None:
        """Forgets them all."""
        self._all.clear()

    def __call__(self, *values: Any) -> None:
        """Calls every listener that was there when the call began."""
        for listener in tuple(self._all):
            listener(*values)
