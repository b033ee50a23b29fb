"""Telling whoever waits how far something is: a function of theirs, a bar, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int], object]
"""Told how much is done, and how much there is in all."""
Tell = Callable[[int, int], None]


@contextmanager
def telling(progress: bool | Progress, what: str, unit: str, done: int = 0, total: int = 0) -> Iterator[Tell]:
    """Something to tell how much is done: the caller's function, a bar for True, or nothing. ``done``: what was before.

    ``unit`` ``"B"``, and none, are shown in powers of ten.
    """
    if callable(progress):
        tell_them = progress

        def tell(at: int, of: int) -> None:
            tell_them(at, of)

        yield tell
    elif progress and (bar := _bar(what, unit, done, total)) is not None:
        with bar:

            def move(at: int, of: int) -> None:
                bar.total = of
                bar.update(at - bar.n)

            yield move
    else:
        yield lambda at, of: None


def _bar(what: str, unit: str, done: int, total: int) -> Any:
    """tqdm's bar for a notebook or terminal; None where there is no tqdm, and in a log file it stays silent."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    disable = False if in_notebook else None  # None: unless it is a terminal
    return tqdm(total=total or None, initial=done, desc=what, unit=unit, unit_scale=unit in ("", "B"), disable=disable)
