"""Progress and cancellation: what a caller passes to follow long work, or to end it; and the bar that is shown instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int], object]
"""Called with how much is done and how much there is in all, in the units that the function which takes it names."""
Cancelled = Callable[[], bool]
"""Asked now and then; once it says yes, the work ends: a read raises InterruptedError."""


@contextmanager
def reporting(progress: bool | Progress, what: str, unit: str, done: int = 0, total: int = 0) -> Iterator[Progress]:
    """A callback for the work: the caller's function, one that moves a bar for True, or one that does nothing.

    ``done``: how much was done before. ``unit`` ``"B"``, and none, are shown in powers of ten.
    """
    if callable(progress):
        yield progress
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
