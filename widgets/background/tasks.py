"""Work behind the widgets: the newest request wins, errors show where they belong, threads end.

``Latest`` runs work off the kernel's thread and applies only the newest result; ``Ticker`` polls for live views; ``guard``
shows a callback's error in its own panel. Only the apply step may touch widgets: it runs under ``UI``, the one lock that
widget callbacks share, because kernels with subshells run callbacks on other threads. Nothing here computes or draws.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from workbench import compat

UI = threading.RLock()

JOIN_SECONDS = 2.0

Deliver = Callable[[Callable[[], object]], None]


def delivery() -> Deliver:
    """How a worker thread hands a change of widgets over, in the kernel at hand.

    Directly where that moves live views while a cell is busy (kernels with subshells: ipykernel 7 and later, and plain
    Python); by the kernel's event loop in Colab, which does not render what other threads send, and in older kernels.
    """
    loop = _event_loop()
    if loop is None:
        return _call
    main = threading.main_thread()

    def post(change: Callable[[], object]) -> None:
        if threading.current_thread() is main:
            change()
        else:
            loop.add_callback(change)

    return post


def hears_between_cells() -> bool:
    """Whether the kernel at hand takes what a page sends only while no cell runs: it has no subshells, as Colab's."""
    return _event_loop() is not None


def _call(change: Callable[[], object]) -> None:
    change()


def _event_loop() -> Any:
    """The kernel's tornado loop where changes must go through it, else None."""
    ipykernel, ipython = sys.modules.get("ipykernel"), sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    kernel = getattr(shell, "kernel", None)
    if ipykernel is None or kernel is None:
        return None
    old = ipykernel.version_info[0] < 7
    return getattr(kernel, "io_loop", None) if old or "google.colab" in sys.modules else None


def at_once(*widgets: Any) -> None:
    """Handle what the page sends to these widgets even while a cell is busy, where the front end has subshells.

    Callbacks then run on another thread, under ``UI`` if they are guarded. Only for controls whose meaning does not depend on
    other controls: what those sent may still be waiting for the cell.
    """
    for widget in widgets:
        if widget.comm is not None:
            compat.answered_at_once(widget.comm)


def under_ui(change: Callable[[], None], wanted: Callable[[], bool], *, patient: bool = True) -> bool:
    """Call ``change()`` under ``UI`` if it is ``wanted()`` then; returns whether it was called.

    It waits for the lock only while the change is wanted: what ends the work may hold the lock and wait for this thread. If not
    ``patient``, it waits for a moment at most.
    """
    while wanted():
        if UI.acquire(timeout=0.05):
            try:
                if there := wanted():
                    change()
                return there
            finally:
                UI.release()
        if not patient:
            break
    return False


class Latest:
    """Background work of which only the newest request counts.

    ``submit(fn, *args)`` returns at once; when ``fn`` has run, ``apply(result)`` is called if nothing newer was submitted,
    else the result is dropped. ``failed(error)`` gets the newest request's exception, ``busy(True)`` and ``busy(False)``
    frame the time in which there is something to wait for. These three are called under ``UI``, where they may touch
    widgets.

    Without an ``executor`` the work has one thread of its own: a request starts at once when the thread is free, and of
    those that come meanwhile only the newest runs; with ``debounce`` it first waits that many seconds for a newer one. An
    injected executor stays the caller's to shut down, and runs requests without debounce; more than one may then run at a
    time, and still only the newest is applied. Long work may ask ``stale()`` now and then, and return early.
    """

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        apply: Callable[[Any], None],
        failed: Callable[[Exception], None] | None = None,
        busy: Callable[[bool], None] | None = None,
        debounce: float = 0.0,
        deliver: Deliver | None = None,
    ) -> None:
        self._own = ThreadPoolExecutor(1, thread_name_prefix="workbench-latest") if executor is None else None
        self._executor = executor or self._own
        self._debounce = debounce if executor is None else 0.0
        self._apply, self._failed, self._busy = apply, failed, busy
        self._deliver = deliver or delivery()
        self._changed = threading.Condition()
        self._newest = 0
        self._waiting = self._closed = False
        self._running = threading.local()
        self._futures: set[Future[None]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Ask for ``fn(*args, **kwargs)``; every earlier request becomes stale. After ``close`` nothing happens."""
        with self._changed:
            if self._closed or self._executor is None:
                return
            self._newest += 1
            generation = self._newest
            self._changed.notify_all()
        self._set_busy(True, generation)
        try:
            future = self._executor.submit(self._run, generation, functools.partial(fn, *args, **kwargs))
        except RuntimeError:
            if not self._overtaken(generation):
                raise
            return  # closed by another thread since we looked
        with self._changed:
            self._futures = {other for other in self._futures if not other.done()} | {future}

    def stale(self) -> bool:
        """Whether the request that the calling code serves has been overtaken; False outside of a request.

        Only on the thread that runs the request: what hands work to other threads takes ``staleness()`` along.
        """
        return self.staleness()()

    def staleness(self) -> Callable[[], bool]:
        """``stale`` of the request that the calling code serves, to be asked on any thread."""
        generation = getattr(self._running, "generation", self._newest)
        return lambda: self._overtaken(generation)

    def rest(self, seconds: float) -> bool:
        """From within a request: wait this long for a newer one; returns whether this one still counts."""
        generation = getattr(self._running, "generation", self._newest)
        with self._changed:
            return not self._changed.wait_for(lambda: self._overtaken(generation), seconds)

    def cancel(self) -> None:
        """Drop the present request, if there is one: its result will not be applied."""
        with self._changed:
            self._newest += 1
            generation = self._newest
            self._changed.notify_all()
        self._set_busy(False, generation)

    def close(self, timeout: float = JOIN_SECONDS) -> None:
        """Drop what is under way and wait at most ``timeout`` seconds for the thread to end; closing twice is harmless."""
        with self._changed:
            self._closed = True
            self._newest += 1
            self._changed.notify_all()
            futures = set(self._futures)
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)
        going = [future for future in futures if not future.cancel()]  # one still waiting in a shared queue need not run
        if not hasattr(self._running, "generation"):  # else the request under way is what closes us
            wait(going, timeout)

    def _overtaken(self, generation: int) -> bool:
        return self._closed or generation != self._newest

    def _run(self, generation: int, work: Callable[[], Any]) -> None:
        self._running.generation = generation
        try:
            if not self.rest(self._debounce):
                return
            result = work()
        except Exception as error:
            self._hand_over(generation, functools.partial(self._failed, error) if self._failed else _nothing)
        else:
            self._hand_over(generation, functools.partial(self._apply, result))
        finally:
            del self._running.generation

    def _hand_over(self, generation: int, change: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                change()
            except Exception as error:
                if self._failed:
                    self._failed(error)

        def apply() -> None:
            if under_ui(guarded, lambda: not self._overtaken(generation)):
                self._set_busy(False, generation)

        if not self._overtaken(generation):
            self._deliver(apply)

    def _set_busy(self, busy: bool, generation: int) -> None:
        def change() -> None:
            if self._busy is not None and busy != self._waiting:
                self._waiting = busy
                self._busy(busy)

        if self._busy is not None:
            under_ui(change, lambda: not self._overtaken(generation))


def _nothing() -> None:
    return None


class Ticker:
    """Calls ``read`` on a thread every ``interval`` seconds and ``apply(value)`` with what it returned, under ``UI``.

    A value of None is not applied. A tick is left out while the one before it is still to be applied. An exception goes to
    ``failed`` and does not end the ticking. ``start`` works once; ``close`` stops and joins within a bound, and may be
    called twice, also from ``apply``.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        apply: Callable[[Any], None],
        *,
        interval: float = 0.25,
        failed: Callable[[Exception], None] | None = None,
        deliver: Deliver | None = None,
    ) -> None:
        self._read, self._apply, self._failed = read, apply, failed
        self._interval = interval
        self._deliver = deliver or delivery()
        self._stop = threading.Event()
        self._applied = threading.Event()
        self._applied.set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second call changes nothing."""
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._loop, name="workbench-ticker", daemon=True)
            self._thread.start()

    def close(self, timeout: float = JOIN_SECONDS) -> None:
        """Stop ticking and wait at most ``timeout`` seconds for the thread to end."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _loop(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            if self._applied.is_set():
                try:
                    value = self._read()
                except Exception as error:
                    self._hand_over(functools.partial(self._failed, error) if self._failed else None)
                else:
                    self._hand_over(functools.partial(self._apply, value) if value is not None else None)
            self._stop.wait(max(self._interval - (time.monotonic() - began), self._interval / 4))

    def _hand_over(self, change: Callable[[], None] | None) -> None:
        if change is None:
            return

        def apply() -> None:
            try:
                under_ui(change, lambda: not self._stop.is_set())
            except Exception as error:
                if self._failed:
                    self._failed(error)
            finally:
                self._applied.set()

        self._applied.clear()
        self._deliver(apply)


class ErrorDisplay(Protocol):
    """Where a panel shows what went wrong: ``controls.message.Message``."""

    def clear(self) -> None:
        """Leave the place empty."""

    def error(self, error: BaseException) -> None:
        """Show what was wrong."""


def guard(message: ErrorDisplay, controls: Iterable[Any] = ()) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """A decorator for widget callbacks: an exception shows in ``message`` and every one of ``controls`` is enabled again.

    The callback runs under ``UI``. A message from before is cleared when the callback starts.
    """
    given = tuple(controls)

    def decorate(callback: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(callback)
        def guarded(*args: Any, **kwargs: Any) -> None:
            with UI:
                try:
                    message.clear()
                    callback(*args, **kwargs)
                except Exception as error:
                    message.error(error)
                    for control in given:
                        control.disabled = False

        return guarded

    return decorate
