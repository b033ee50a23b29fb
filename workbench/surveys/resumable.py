"""Measurements that give one row after another, and can be left, continued and cancelled.

Does not cover what a row is nor how it comes about (``Survey``, ``Evaluation``, ``Sensitivity``).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import Generic, Self, TypeVar

RowT = TypeVar("RowT")


class Unfolding(ABC, Generic[RowT]):
    """Iterating does the work. Leaving the loop stops it; iterating again gives the finished rows and goes on with the rest.

    Several threads may iterate: one works, and the others wait for its rows.
    """

    def __init__(self, length: int, cancelled: Callable[[], bool] | None) -> None:
        self._length, self._asked = length, cancelled
        self._rows: list[RowT] = []
        self._work: Generator[RowT, None, None] | None = None
        self._working = threading.Lock()
        self._cancelled = threading.Event()
        self._was_begun = False

    @abstractmethod
    def _start(self) -> Generator[RowT, None, None]:
        """The rows from the first that is not there yet; ends early once ``_stopped()``."""

    @property
    def rows(self) -> tuple[RowT, ...]:
        """The rows that have finished."""
        return tuple(self._rows)

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return len(self._rows) == self._length

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called, or what was given as ``cancelled`` has said yes."""
        return self._cancelled.is_set()

    def __len__(self) -> int:
        """How many rows there will be."""
        return self._length

    def __iter__(self) -> Iterator[RowT]:
        position = 0
        try:
            while self._advance_to(position):
                yield self._rows[position]
                position += 1
        finally:
            self._pause()

    def run(self) -> Self:
        """Does what is left to do, and returns itself."""
        for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """Ends it for good, within a second, from any thread; the rows that have finished stay."""
        self._cancelled.set()

    def _so_far(self, things: str) -> str:
        """How much of it there is, in words: ``2 of 42 tensors``."""
        return f"{len(self._rows)} of {self._length} {things}" + (", cancelled" if self.cancelled and not self.complete else "")

    def _begin_once(self) -> None:
        """For a table of what has finished: where nothing has been begun, everything is run first."""
        if not self._was_begun:
            self.run()

    def _stopped(self) -> bool:
        if self._asked is not None and self._asked():
            self._cancelled.set()
        return self._cancelled.is_set()

    def _advance_to(self, position: int) -> bool:
        """Works until row ``position`` is there; False where it never will be. One thread at a time works, the others wait."""
        with self._working:
            self._was_begun = True
            while len(self._rows) <= position:
                if self.complete or self.cancelled:
                    return False
                if self._work is None:
                    self._work = self._start()
                try:
                    self._rows.append(next(self._work))
                except StopIteration:
                    self._work = None
                    return False
                except BaseException:
                    self._work = None
                    raise
            return True

    def _pause(self) -> None:
        """Stops what goes on in the background; not while another thread is waiting for a row of it."""
        if self._working.acquire(blocking=False):
            try:
                if self._work is not None:
                    self._work.close()
                    self._work = None
            finally:
                self._working.release()
