"""Controls that both the reader and the program set: bound to the state both ways, or set without a callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from widgets.background.tasks import UI, ErrorDisplay, guard
from widgets.state import State, Store


class Quiet:
    """Inside ``with quiet:`` the program sets controls without calling the callbacks of ``on_change``."""

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def on_change(self, control: Any, callback: Callable[[Any], object]) -> None:
        """Call ``callback(value)`` whenever ``control`` takes another value, except inside ``with quiet:``."""
        control.observe(lambda change: None if self._depth else callback(change["new"]), "value")


def bind(control: Any, store: Store, field: str, message: ErrorDisplay) -> None:
    """Keep ``control`` and a field of the state equal, whichever of them changes, until the control is closed.

    Where the state refuses what the reader chose, ``message`` says why.
    """
    quiet = Quiet()

    def show(state: State, changed: frozenset[str]) -> None:
        if field in changed:
            with UI, quiet:
                control.value = getattr(state, field)

    show(store.value, frozenset({field}))
    end = store.observe(show)
    quiet.on_change(control, guard(message)(lambda value: store.update(**{field: value})))
    control.observe(lambda change: end() if change["new"] is None else None, "comm")


class Ranking(ipywidgets.Select):
    """A list beside a map, for use without a pointer; ``chosen(value)`` is called for the line that the reader chooses."""

    def __init__(self, description: str, rows: int, chosen: Callable[[Any], object]) -> None:
        super().__init__(description=description, rows=rows)
        self._quiet = Quiet()
        self._quiet.on_change(self, lambda value: None if value is None else chosen(value))

    def show(self, description: str, lines: Sequence[tuple[str, Any]], chosen: Any) -> None:
        """Show ``lines``, each a text and a value, with one marked if it is among them."""
        with self._quiet:
            self.description = description
            self.options = tuple(lines)
            self.value = chosen if chosen in {value for _, value in lines} else None
