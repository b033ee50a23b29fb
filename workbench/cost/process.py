"""A process that measures into a folder: asking for it and waiting, and what it does at its own beginning and end.

Covers its start in a session of its own, one at a time in a folder, its end when no caller waits any longer, and the error
where it ended without one of its own. What was asked for is in ``request.json``, the answers are events (``training.events``).
Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.atomic import take_lock
from workbench.cost import fork_server
from workbench.errors import RunError, WorkbenchError, from_fields, to_fields
from workbench.text import memory_size
from workbench.training.environment import OFFLINE, PATIENT, without_secrets
from workbench.training.events import Event, EventWriter
from workbench.training.folder import write_json
from workbench.training.host import oom_kills
from workbench.training.paths import path_of
from workbench.training.watch.endings import ending_of

EVENTS = "cost"
"""The source of the events in the folder, as ``events-cost.jsonl``."""
_TICK = 0.05
_TERM_PATIENCE = 5.0
_LOOK_EVERY = 0.5
_TELL_EVERY = 0.2


class Folder:
    """A folder of measurements that records what they are of: the caller's, or one that is removed with this object."""

    def __init__(self, folder: str | os.PathLike[str] | None, identity: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """``identity`` distinguishes these measurements, each part under a name for the reader; ``more`` is kept beside it.

        Raises RunError where the folder holds anything else.
        """
        self._own = tempfile.TemporaryDirectory(prefix="workbench-cost-") if folder is None else None
        self.root = path_of(folder or "", "folder") if self._own is None else Path(self._own.name)
        file = self.root / "job.json"
        try:
            there = dict(json.loads(file.read_text("utf-8"))["identity"]) if file.exists() else None
            if there is None:
                if self.root.exists() and any(self.root.iterdir()):
                    raise RunError("the folder is not empty.", where=str(self.root), remedy="Name a new folder.")
                self.root.mkdir(parents=True, exist_ok=True)
                write_json(file, {"identity": identity, **more})
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"the folder of measurements cannot be used ({error})."
            raise RunError(what, where=str(self.root), remedy="Name a new folder that can be written to.") from error
        if there is not None and (other := sorted(name for name in identity if there.get(name) != identity[name])):
            others = ", ".join("another model" if name == "fingerprint" else f"another {name}" for name in other)
            raise RunError(f"the folder holds measurements of {others}.", where=str(self.root), remedy="Name another folder.")

    def __del__(self) -> None:
        if (own := getattr(self, "_own", None)) is not None:
            own.cleanup()


class Measuring:
    """``python -m MODULE FOLDER PID`` for as long as a caller waits for its results; started by the first that has to wait.

    ``request()`` is what to ask it for, and may raise. ``poll()`` reads its events since the last time, and returns its error
    where there is one (``failure_in``). ``needed``: the bytes that it takes, for the message where it was killed.
    """

    def __init__(
        self,
        root: Path,
        module: str,
        request: Callable[[], Mapping[str, Any]],
        poll: Callable[[], WorkbenchError | None],
        needed: int,
    ) -> None:
        self.root = root
        self._module, self._request, self._poll, self._needed = module, request, poll, needed
        self._process: fork_server.Process | None = None
        self._oom: int | None = None

    def until(self, known: Callable[[], bool], stopped: Callable[[], bool], tick: Callable[[], object]) -> bool:
        """Waits until ``known()``, calling ``tick()`` now and then; False once ``stopped()``.

        Raises the process's error, or RunError where it ended without one.
        """
        while not known():
            if stopped():
                return False
            if self._process is None:
                self._process = self._begin()
            code = self._process.poll()  # before reading, so that its last events are not missed
            if (failure := self._poll()) is not None:
                raise failure
            tick()
            if code is None:
                time.sleep(_TICK)
            elif not known():
                raise self._ended(code)
        return True

    def close(self) -> None:
        """Ends the process, which writes nothing but whole lines, and takes in its last ones."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TERM_PATIENCE)
        if process.poll() is None:
            process.kill()
        process.wait()
        self._process = None
        self._poll()

    def _begin(self) -> fork_server.Process:
        """In a session of its own: Ctrl-C reaches it through this process alone.

        It gets the folder's lock, open, and so holds it from before the request is written until it ends.
        """
        request = self._request()
        self._oom = oom_kills()
        try:
            with (self.root / ".lock").open("w") as lock, (self.root / "log.txt").open("ab") as log:
                take_lock(lock)
                write_json(self.root / "request.json", request)
                environment = {**PATIENT, **without_secrets(), **OFFLINE}
                return fork_server.start(self._module, str(self.root), environment, log.fileno(), lock.fileno())
        except BlockingIOError:
            what, remedy = "another process is measuring into this folder.", "Wait for its end, or name another folder."
            raise RunError(what, where=str(self.root), remedy=remedy) from None
        except OSError as error:
            what = f"the measuring process cannot be started ({error.strerror or error})."
            raise RunError(what, where=str(self.root), remedy="Name a folder that can be written to.") from error

    def _ended(self, code: int) -> RunError:
        """The error for a process that ended without reporting one."""
        again = "What was measured is kept: with the same folder it goes on from there."
        if code == -signal.SIGKILL:
            oom = self._oom is not None and (oom_kills() or 0) > self._oom
            why = "out of memory: the kernel killed it" if oom else "killed, possibly out of memory"
            what = f"the measuring process was {why}; the model takes {memory_size(self._needed)}."
            return RunError(what, where=str(self.root), remedy=again)
        what = f"the measuring process ended with exit code {code}; its last words are in log.txt."
        return RunError(what, where=str(self.root), remedy=again)


def failure_in(events: Iterable[Event]) -> WorkbenchError | None:
    """The error that the last process of these events reported."""
    failure = None
    for event in events:
        if event["k"] == "hello":
            failure = None
        elif event["k"] == "error":
            failure = from_fields(event["kind"], event["what"], event["where"], event["remedy"])
    return failure


class Reporter:
    """The process's own side: its events, with progress reported now and then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writer = EventWriter(root / f"events-{EVENTS}.jsonl", 1)
        self.emit = self._writer.emit
        self._spoke = 0.0

    def progress(self, done: int, total: int) -> None:
        """Reports how far it is, not too often."""
        if done == total or time.monotonic() >= self._spoke + _TELL_EVERY:
            self._spoke = time.monotonic()
            self.emit("progress", done=done, total=total)

    def through(self, work: Callable[[], object]) -> int:
        """Does the work between a first and a last event, which holds the error if there is one; returns the exit code."""
        self.emit("hello")
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            ending = ending_of(error, {"phase": "measure"})
            failure = error
            if not isinstance(failure, WorkbenchError):
                failure = RunError(ending.message, where=str(self.root), remedy=ending.remedy)
            with contextlib.suppress(OSError):
                self.emit("error", **to_fields(failure))
            return 1
        finally:
            self._writer.close()
        return 0


def serve(root: str, parent: str, work: Callable[[Reporter], object]) -> None:
    """Works off one request and ends, at the latest when its parent does. Its parent has locked the folder for it."""
    threading.Thread(target=_leave_with, args=(int(parent),), daemon=True).start()
    reporter = Reporter(Path(root))
    code = reporter.through(lambda: work(reporter))
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do, and a library's thread must not keep the process


def _leave_with(parent: int) -> None:
    """Ends this process once ``parent`` is gone: its events would have no reader."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)
