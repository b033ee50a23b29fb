"""Measuring costs inside the test's own process: the worker's code on a thread, without its life as a process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from workbench.cost import fork_server, process
from workbench.cost.worker import Worker


class _Ended(BaseException):
    """Raised in the work when it is to end, as a signal would end a process."""


class _Reporter(process.Reporter):
    """Reports as the process does, until it is ended."""

    def __init__(self, root: Path, ended: threading.Event) -> None:
        super().__init__(root)
        report = self.emit

        def emit(k: str, /, **fields: Any) -> None:
            if ended.is_set():
                raise _Ended
            report(k, **fields)

        self.emit = emit  # type: ignore[method-assign,assignment]


class Thread:
    """In the place of ``fork_server.start``."""

    def __init__(self, module: str, folder: str, *_: object) -> None:
        self.returncode: int | None = None
        self._ended = threading.Event()
        self._work = _OTHERS.get(module, _evaluates)
        self._thread = threading.Thread(target=self._run, args=(Path(folder),))
        self._thread.start()

    def _run(self, root: Path) -> None:
        reporter = _Reporter(root, self._ended)
        with contextlib.suppress(_Ended):
            self.returncode = reporter.through(lambda: self._work(reporter))

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else (self.returncode if self.returncode is not None else -15)

    def terminate(self) -> None:
        self._ended.set()

    def wait(self, timeout: float | None = None) -> int | None:
        self._thread.join(timeout)
        return self.poll()


def _evaluates(reporter: process.Reporter) -> None:
    Worker(reporter).run()


def _measures_repairs(reporter: process.Reporter) -> None:
    from workbench.cost.repairing import measure

    measure(reporter)


def _measures_deployed(reporter: process.Reporter) -> None:
    from workbench.cost.deploying import measure

    measure(reporter)


_OTHERS = {"workbench.cost.repairing": _measures_repairs, "workbench.cost.deploying": _measures_deployed}


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """While open, costs are measured on threads of this process, which has torch loaded."""
    with mock.patch.object(fork_server, "start", Thread):
        yield
