"""One bounded pool of threads for the kernels, safe to enter from several threads, after a fork, and with Ctrl-C.

Covers how a tensor is cut into spans and who runs them. Kernels release the GIL, so threads are enough; numba's own parallel
loops are not used, since they abort the process when two Python threads enter them at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from workbench.errors import WorkbenchError

SPAN = 1 << 19
"""Weights a task takes at most: about half a millisecond of work, so that cancelling is prompt. Every block size divides it."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_threads = 0


def threads() -> int:
    """How many threads kernels run on: as set, else the cores this process may use (16 at most)."""
    if _threads:
        return _threads
    return min(16, usable_cores())


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Sets how many threads kernels run on, from the next call on; 0 means as many as there are cores."""
    global _threads
    if count < 0:
        raise WorkbenchError(f"A thread count of {count} is not possible.", remedy="Give 0 (all cores) or more.")
    _threads = count
    _forget()


def spans(size: int) -> Iterator[slice]:
    """Cuts ``size`` weights into spans of at most ``SPAN``."""
    for start in range(0, size, SPAN):
        yield slice(start, min(start + SPAN, size))


def run(task: Callable[[slice], None], size: int, cancelled: Callable[[], bool] | None = None) -> None:
    """Calls ``task`` once for every span of ``size`` weights; returns when all are done or the first has raised.

    ``cancelled`` is asked before each span; once it says yes the rest is left out and InterruptedError raised. An interrupt
    (Ctrl-C) lets running spans finish, leaves out the rest, and then propagates.
    """
    stop = threading.Event()

    def one(span: slice) -> None:
        if stop.is_set():
            return
        if cancelled is not None and cancelled():
            raise InterruptedError("The computation was cancelled.")
        task(span)

    if size <= SPAN or threads() == 1:
        for span in spans(size):
            one(span)
        return
    futures = [_executor().submit(one, span) for span in spans(size)]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        stop.set()
        wait(futures)
    for future in futures:
        future.result()


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(threads(), thread_name_prefix="workbench-kernel")
        return _pool


def _forget() -> None:
    """Lets go of the pool; its threads end when the last call that uses it has returned."""
    global _pool
    with _lock:
        _pool = None


def _start_afresh() -> None:
    """In a forked child, which has none of its parent's threads."""
    global _pool, _lock
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
