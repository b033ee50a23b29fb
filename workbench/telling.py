"""Telling whoever waits how far something is: a function of theirs, a bar, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int], object]
"""Told how much is done, and how much there is in all."""


@contextmanager
def telling(progress: bool | Progress, what: str, unit: str, done: int = 0, total: int = 0) -> Iterator[Progress]:
    """Something to tell how much is done: the caller's function, a bar for True, or nothing. ``done``: what was before.

    ``unit`` ``"B"`` is shown in powers of ten.
    """
    if callable(progress):
        yield progress
    elif progress and (bar := _bar(what, unit, done, total)) is not None:
        with bar:

            def tell(at: int, of: int) -> None:
                bar.total = of
                bar.update(at - bar.n)

            yield tell
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
    return tqdm(total=total or None, initial=done, desc=what, unit=unit, unit_scale=unit == "B", disable=disable)
