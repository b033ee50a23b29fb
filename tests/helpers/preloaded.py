"""Runs whose processes are forked from one that has loaded torch already: real processes, real signals, no seconds of imports.

``launch`` and ``resume`` are the product's own; only where they start ``python -m workbench.training.watch.supervisor``, and
that ``python -m workbench.training.worker.worker``, a process is forked instead. What only a program started anew can show, as
a kill while it imports, is for ``test_runs`` and ``test_kills``.

``python -m tests.helpers.preloaded`` is the process that forks: a line of JSON in (the run's folder, its environment, what is
to happen in the worker), a line with the supervisor's pid out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from huggingface_hub import constants

from workbench.training import spawning
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder
from workbench.training.host import alive, create_time
from workbench.training.watch import supervisor
from workbench.training.worker import worker

ENDLESS = 100_000
"""More steps than any test waits for."""
PATIENCE = 600.0
"""Seconds that a worker has after it was asked for something: none is needed."""


class Process:
    """A process that ``subprocess`` did not start, with the part of ``Popen`` that the product uses."""

    def __init__(self, pid: int, child: bool) -> None:
        self.pid, self._child = pid, child
        self._began = create_time(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code; 0 of a process that is no child of this one; None while it runs."""
        if self.returncode is None:
            if not self._child:
                self.returncode = None if alive(self.pid, self._began) else 0
            elif (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
                self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Like ``Popen``, does nothing once the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Forks:
    """The process that forks, and what is to happen in the workers to come.

    ``phase`` and ``then``: when a worker enters that phase, ``stop`` or ``pause`` is asked for, and with ``hang`` it goes no
    further; ``remove`` takes a file or folder away.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.helpers.preloaded"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._happening: dict[str, Any] = {}

    def popen(self, arguments: list[str], **how: Any) -> Process:
        """Stands in for ``subprocess.Popen``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([arguments[-1], how["env"], self._happening]), file=self._process.stdin, flush=True)
        return Process(int(self._process.stdout.readline()), child=False)

    @contextlib.contextmanager
    def ready(self, **happening: Any) -> Iterator[None]:
        """While open, runs are started and resumed by forks, and this happens in their workers."""
        self._happening = happening
        with mock.patch.object(spawning, "subprocess", SimpleNamespace(Popen=self.popen, DEVNULL=subprocess.DEVNULL)):
            yield

    def close(self) -> None:
        """Ends the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class _Supervisor(supervisor.Supervisor):
    happening: dict[str, Any]

    def start(self) -> Any:
        here = os.getpid()
        if pid := os.fork():
            return Process(pid, child=True)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, 256)  # the supervisor's lock is not the worker's
        _arrange(self.folder, **self.happening)
        worker.main(str(self.folder.root), str(self.attempt), str(here))


def _arrange(folder: RunFolder, phase: str = "", ask: str = "", hang: bool = False, remove: str = "") -> None:
    """Lets something happen as soon as this worker has recorded that it enters ``phase``."""
    emit = EventWriter.emit

    def watching(self: EventWriter, k: str, /, **fields: Any) -> None:
        emit(self, k, **fields)
        if k == "phase" and (fields["name"], fields["edge"]) == (phase, "begin"):
            if ask:
                folder.ask(ask, PATIENCE)
            if remove:
                Path(remove).rename(f"{remove}.gone")
            if hang:
                threading.Event().wait()

    EventWriter.emit = watching  # type: ignore[method-assign]


def _main() -> None:
    from workbench.training.worker import model, optimizers, trainer  # noqa: F401  (what a worker imports)

    supervisor.Supervisor = _Supervisor  # type: ignore[misc]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the supervisors
    for line in sys.stdin:
        root, environment, _Supervisor.happening = json.loads(line)
        if pid := os.fork():
            print(pid)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(root)
        os.environ.clear()
        os.environ.update(environment)
        if home := environment.get("HF_HOME"):  # which a process started anew would read as it is imported
            constants.HF_HUB_CACHE = str(Path(home) / "hub")
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        try:
            supervisor.main(root)
        except BaseException:
            traceback.print_exc()
        os._exit(0)


if __name__ == "__main__":
    _main()
