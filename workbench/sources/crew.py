"""A few threads that fetch while the caller waits; prompt to cancel, and silent once closed.

Covers handing out work, waiting for it with a look at the ``Watch`` every twentieth of a second, and reading a stretch of a
file in pieces that are fetched ahead of the reader. Knows nothing of networks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from workbench.sources.base import Reader, Watch

PIECE = 2 << 20
"""Bytes that are fetched and kept as one: four in flight fill a fast line and stay small beside a survey's own buffers."""
_AHEAD = 4
_LOOK = 0.05
T = TypeVar("T")
Fetched = Callable[[int, int, "Crew"], bytes | bytearray]


class Crew:
    """Threads that run what they are given until they are stopped.

    What they run gets ``stop`` and ``got`` (by attribute): it should end early once ``stop`` is set, and may count the bytes
    that have arrived with ``got``.
    """

    def __init__(self, threads: int) -> None:
        self.stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="workbench-fetch")
        self._lock = threading.Lock()
        self._arrived = 0

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Have ``work(*args)`` run."""
        return self._pool.submit(work, *args)

    def got(self, count: int) -> None:
        """Count bytes that arrived; called on any thread."""
        with self._lock:
            self._arrived += count

    def result(self, future: Future[T], watch: Watch) -> T:
        """What the work returned or raised; InterruptedError as soon as ``watch`` no longer wants it."""
        while not wait([future], _LOOK).done:
            watch.check()
            self._tell(watch)
        watch.check()
        self._tell(watch)
        return future.result()

    def close(self) -> None:
        """Drop what is waiting and stop what is running, without waiting for it: a socket has its own time limit."""
        self.stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tell(self, watch: Watch) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, 0
        if arrived:
            watch.moved(arrived)


@contextmanager
def crew(threads: int) -> Iterator[Crew]:
    """A crew for as long as the block lasts."""
    made = Crew(threads)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def reading_ahead(fetch: Fetched, begin: int, end: int, watch: Watch) -> Iterator[Reader]:
    """A reader of the bytes from ``begin`` to ``end``, for reading in order; ``fetch(begin, end, crew)`` gives some of them."""
    pieces = -(-(end - begin) // PIECE)
    with crew(max(1, min(_AHEAD, pieces))) as fetching:
        held: dict[int, Future[bytes | bytearray]] = {}

        def piece(number: int) -> memoryview:
            for ahead in range(number, min(number + _AHEAD, pieces)):
                if ahead not in held:
                    first = begin + ahead * PIECE
                    held[ahead] = fetching.submit(fetch, first, min(first + PIECE, end), fetching)
            for passed in [n for n in held if n < number]:
                del held[passed]
            return memoryview(fetching.result(held[number], watch))

        def read(offset: int, into: memoryview) -> None:
            while into:
                number, start = divmod(offset - begin, PIECE)
                part = piece(number)[start : start + len(into)]
                into[: len(part)] = part
                into, offset = into[len(part) :], offset + len(part)

        yield read
