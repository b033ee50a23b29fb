"""A fork server: processes that begin with torch and transformers loaded, forked from one that does nothing else.

Covers the server, which the first measurement of a Python process starts, and which ends with that process or after some idle
minutes; and its forks, as clean as processes started anew. On a machine with an NVIDIA GPU, since CUDA does not work in a fork
once its parent has asked for it, and on systems other than Linux every process is started anew. Not ``multiprocessing``'s fork
server, which runs a user's script once more in every process. Imports no torch but in the server.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, Protocol

import psutil

from workbench.memory.gpus import devices

_LIBRARIES = ("workbench.cost.engine", "transformers.modeling_utils", "transformers.generation")
"""What every measurement needs, and what loading a model brings in."""
_IDLE = 300.0
"""Seconds without a fork after which the process with the libraries ends."""
_TICK, _LOOK_EVERY = 0.02, 0.5
"""Seconds between two looks at the forks, and at the process that they are for."""
_MOST = 1 << 16
"""Bytes of a request."""


class Process(Protocol):
    """What is needed of ``subprocess.Popen``."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; raises ``subprocess.TimeoutExpired``."""

    def terminate(self) -> None:
        """Asks it to end."""

    def kill(self) -> None:
        """Ends it."""


class _Fork:
    """A fork, or one to come once the libraries are loaded."""

    def __init__(self, server: _Server, pipe: int) -> None:
        """``pipe``: where its pid comes from, and its exit code once it has ended, a line each."""
        self._server, self._pipe = server, os.fdopen(pipe, "rb", buffering=0)
        self._pid: int | None = None
        self._code: int | None = None

    def begun(self, timeout: float | None = None) -> int:
        """Its pid, once it is there; OSError if it never will be, TimeoutExpired if not within so many seconds."""
        if self._pid is None:
            if not (line := self._line(timeout)):
                self._pipe.close()
                raise OSError("the fork server has ended.")
            self._pid = int(line)
        return self._pid

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            try:
                self.begun(timeout)
                line = self._line(timeout)
            except OSError:
                line = b""
            self._pipe.close()
            self._code = int(line) if line else self._code_of_orphan()
        return self._code

    def _code_of_orphan(self) -> int:
        """The exit code when the fork server has died: an orphaned fork is killed first."""
        if self._pid is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._server.process.wait(_LOOK_EVERY) or -signal.SIGKILL
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan = psutil.Process(self._pid)
                orphan.kill()
                orphan.wait()
        return -signal.SIGKILL

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with _starting, contextlib.suppress(OSError):
            if self.poll() is None:  # before the libraries are there no other fork is waited for
                os.kill(self.begun() if self._server.ready else self._server.process.pid, number)

    def _line(self, timeout: float | None) -> bytes:
        waiting = select.poll()
        waiting.register(self._pipe, select.POLLIN)
        if not waiting.poll(None if timeout is None else 1000 * timeout):
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self._pipe.readline()


class _Server:
    """The fork server, as the process that started it sees it."""

    def __init__(self, env: Mapping[str, str], log: int) -> None:
        self._env, self._of, self._installed = dict(env), os.getpid(), _installed()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setblocking(False)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._of)],
                stdin=theirs.fileno(), stdout=log, stderr=log, env=self._env, start_new_session=True,
            )  # fmt: skip
        self._begun = self._ready = False

    @property
    def ready(self) -> bool:
        """Whether it has loaded the libraries."""
        with contextlib.suppress(OSError):  # nothing yet, or nothing any more
            self._ready = self._ready or bool(self._requests.recv(1))
        return self._ready

    def serves(self, env: Mapping[str, str]) -> bool:
        """Whether it is there for this process, with this environment and the packages as they are installed now."""
        same = (self._env, self._of, self._installed) == (env, os.getpid(), _installed())
        return same and self.process.poll() is None

    def fork(self, arguments: list[str], log: int, kept: int) -> _Fork | None:
        """Has it fork, the first time as soon as it can; later None where it cannot do so at once."""
        with contextlib.suppress(OSError):
            if not self._begun:
                fork, self._begun = self._asked(arguments, log, kept), True
                return fork
            if self.ready:
                fork = self._asked(arguments, log, kept)
                fork.begun()
                return fork
        return None

    def close(self) -> None:
        """Lets it end once its forks have."""
        self._requests.close()

    def _asked(self, arguments: list[str], log: int, kept: int) -> _Fork:
        pipe, theirs = os.pipe()
        fork = _Fork(self, pipe)
        try:
            socket.send_fds(self._requests, [json.dumps(arguments).encode()], [theirs, log, kept])
        finally:
            os.close(theirs)
        return fork


def _installed() -> list[int]:
    """When the packages that it loads were last changed: a fork must not go on with what was replaced."""
    found = [Path(spec.origin) for name in ("torch", "transformers") if (spec := find_spec(name)) and spec.origin]
    return [path.stat().st_mtime_ns for path in (*found, *sorted(Path(__file__).parents[1].rglob("*.py")))]


_server: _Server | None = None
_starting = threading.RLock()


def start(module: str, folder: str, env: Mapping[str, str], log: int, kept: int) -> Process:
    """``python -m MODULE FOLDER PID``, PID its parent's, in that folder and a session of its own.

    Args:
        module: What is run.
        folder: Its argument, and its current folder.
        env: Its environment.
        log: The file descriptor that it writes to.
        kept: A file descriptor that stays open until it ends.

    Raises:
        OSError: If it cannot be started.
    """
    global _server
    if sys.platform == "linux" and not devices():
        with _starting:
            if _server is None or not _server.serves(env):
                if _server is not None:
                    _server.close()
                _server = _Server(env, log)
            if (fork := _server.fork([module, folder], log, kept)) is not None:
                return fork
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, folder, str(os.getpid())],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=dict(env), start_new_session=True, pass_fds=[kept],
    )  # fmt: skip


def _serve(parent: int) -> None:
    """Forks for each request; ends with its parent, or once there was none for some minutes."""
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: those of numpy's BLAS see to themselves
    for name in _LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests, here = socket.socket(fileno=os.dup(0)), os.getpid()
    requests.send(b"r")
    awaited, running, until = [requests], dict[int, int](), time.monotonic() + _IDLE
    while os.getppid() == parent and (running or (awaited and time.monotonic() < until)):
        if select.select(awaited, [], [], _TICK if running else _LOOK_EVERY)[0]:
            asked, descriptors, _, _ = socket.recv_fds(requests, _MOST, 3)
            try:
                if not asked:
                    awaited = []  # no more requests will come
                elif len(descriptors) < 3:
                    raise OSError("there is no room for more open files.")
                elif not (pid := os.fork()):
                    _run_in_fork(json.loads(asked), here, descriptors, [requests.fileno(), *running.values()])
                else:
                    pipe = running[pid] = os.dup(descriptors[0])
                    _report(pipe, pid)
            except OSError:
                traceback.print_exc()  # whoever asked sees no pid, and starts anew
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pipe = running.pop(pid)
                _report(pipe, os.waitstatus_to_exitcode(status))
                os.close(pipe)
            until = time.monotonic() + _IDLE


def _report(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, b"%d\n" % number)


def _run_in_fork(asked: list[str], parent: int, descriptors: list[int], others: list[int]) -> NoReturn:
    """Runs the module that was asked for in this fork; ``others`` are file descriptors that are not its own."""
    try:
        os.setsid()
        pipe, log, _ = descriptors  # the last stays open
        for descriptor in (pipe, *others):
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for one, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(one, standard)
        module, folder = asked
        os.chdir(folder)
        sys.argv = [module, folder, str(parent)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
