"""The process that answers, from the side of those who ask: started with the first question, ended with its owner.

Covers its start in a session of its own, one question at a time, breaking one off, and its death as an error that says why.
What it does is ``worker``'s part. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any, Self

from workbench.errors import RunError, from_fields
from workbench.progress import Cancelled
from workbench.training.answers.values import Answer, Loading, Sampling, Tried, Voice
from workbench.training.environment import OFFLINE, PATIENT, without_secrets
from workbench.training.host import oom_kills

Hear = Callable[[Answer | Loading], object]
"""Called with each answer as it grows, and before a model is loaded."""
IDLE = 600.0
"""Seconds without a question after which the process ends, and gives its memory back; the next question starts another."""
_TICK = 0.05
_LAST_WORDS = 2_000
_ENDS_WITHIN = 5.0


class _Gone(Exception):
    """The process has ended of itself, as it does when nobody asks for a while."""


class Answering:
    """The models of one run in a process of its own, loaded once. ``close`` ends it; so does the end of this process.

    Safe to use from several threads: questions wait for each other, and ``close`` waits for none. A question that is cancelled
    leaves the process as it is, loaded or loading.
    """

    def __init__(self, run: Path, adapter: Path, idle: float = IDLE) -> None:
        self.run, self.adapter, self._idle = run, adapter, idle
        self._turn = threading.Lock()
        self._state = threading.Lock()  # of what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._closed = False
        self._log: IO[bytes] | None = None
        self._oom: int | None = None
        self._asked = 0
        self._loaded = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def loaded(self) -> bool:
        """Whether it has answered, so that nothing but the 16-bit base may still have to be loaded."""
        return self._loaded

    def ask(
        self,
        prompt: str,
        sampling: Sampling,
        voices: Sequence[Voice],
        hear: Hear = lambda heard: None,
        cancelled: Cancelled = lambda: False,
        timeout: float | None = None,
    ) -> Tried:
        """The answers to one prompt, in the order of ``voices``.

        Raises InterruptedError once ``cancelled()`` says yes or the process is closed, ``RunError`` where it dies or
        ``timeout`` seconds go by, and what it raises itself.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._turn.acquire(timeout=_TICK):
            self._check(cancelled, until, timeout)
        try:
            while True:
                with contextlib.suppress(_Gone):
                    return self._ask(prompt, sampling, voices, hear, lambda: self._check(cancelled, until, timeout))
        finally:
            self._turn.release()

    def _ask(self, prompt: str, sampling: Sampling, voices: Sequence[Voice], hear: Hear, check: Callable[[], None]) -> Tried:
        self._begin()
        if not self._loaded:
            hear(Loading(voices[0]))
        self._asked += 1
        n, answers, without = self._asked, dict[Voice, Answer](), ""
        question = {"prompt": prompt, "sampling": dataclasses.asdict(sampling), "voices": list(voices)}
        self._send({"k": "ask", "n": n, **question})
        try:
            while True:
                check()
                if (message := self._next()) is None or message.pop("n") != n:
                    continue
                self._loaded = True
                match message.pop("k"):
                    case "answer":
                        answer = Answer(**message | {"voice": Voice(message["voice"])})
                        if answer.complete:
                            answers[answer.voice] = answer
                        hear(answer)
                    case "loading":
                        hear(Loading(Voice(message["voice"])))
                    case "without":
                        without = message["why"]
                    case "error":
                        raise from_fields(**message)
                    case "done":
                        return Tried(prompt, answers, without)
        except BaseException:
            self._cancel()
            raise

    def close(self) -> None:
        """Ends the process, which has nothing to save, whatever it is doing; twice is fine."""
        with self._state:
            self._closed = True
            self._end()

    def _begin(self) -> None:
        """Starts the process where there is none."""
        with self._state:
            if self._closed:
                raise InterruptedError("closed")
            if self._process is not None and self._process.poll() is None:
                return
            self._end()
            ours, theirs = Pipe()
            self._oom, self._log = oom_kills(), tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
            command = [sys.executable, "-P", "-m", "workbench.training.answers.worker", str(theirs.fileno()), str(os.getpid())]
            try:
                self._process = subprocess.Popen(
                    [*command, str(self.run), str(self.adapter), str(self._idle)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    env={**PATIENT, **without_secrets(), **OFFLINE},
                    start_new_session=True,  # Ctrl-C reaches it through this process alone
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                self._log.close()
                what = f"the answering process cannot be started ({error.strerror or error})."
                raise RunError(what, where=str(self.run), remedy="Free some memory, and ask again.") from error
            finally:
                theirs.close()
            self._channel = ours

    def _send(self, message: dict[str, Any]) -> None:
        try:
            assert self._channel is not None
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError:
            raise self._died() from None

    def _next(self) -> dict[str, Any] | None:
        """The next message; None where none comes within a moment."""
        try:
            assert self._channel is not None
            if not self._channel.poll(_TICK):
                return None
            found: dict[str, Any] = json.loads(self._channel.recv_bytes())
            return found
        except (EOFError, OSError):
            raise self._died() from None

    def _check(self, cancelled: Cancelled, until: float | None, timeout: float | None) -> None:
        if self._closed or cancelled():
            raise InterruptedError("cancelled")
        if until is not None and time.monotonic() > until:
            what, remedy = (
                f"there was no whole answer within {timeout:g} seconds.",
                "Give it more time, or ask for fewer tokens.",
            )
            raise RunError(what, where=str(self.run), remedy=remedy)

    def _cancel(self) -> None:
        """Has the process break off its present answer, once what it loads is loaded."""
        with self._state, contextlib.suppress(OSError):
            if self._channel is not None:
                self._channel.send_bytes(json.dumps({"k": "cancel"}).encode())

    def _died(self) -> Exception:
        """Why there is no process any more."""
        with self._state:
            process = self._process
            if self._closed or process is None:
                return InterruptedError("closed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDS_WITHIN)
        with self._state:
            code, words = process.poll(), self._last_words()
            self._end()
        if code == 0:
            return _Gone()
        if code == -signal.SIGKILL:
            oom = self._oom is not None and (oom_kills() or 0) > self._oom
            why = "out of memory: the kernel killed it" if oom else "killed, possibly out of memory"
            remedy = "Free some memory, or leave the 16-bit base out, and ask again: it is loaded anew."
            return RunError(f"the answering process was {why}.", where=str(self.run), remedy=remedy)
        what = f"the answering process ended with exit code {code}. {words}".strip()
        return RunError(what, where=str(self.run), remedy="Ask again: it is loaded anew.")

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LAST_WORDS))
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        return next((f"Its last words: {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def _end(self) -> None:
        """With ``_state`` held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._channel is not None:
            self._channel.close()
        if self._log is not None:
            self._log.close()
        self._process = self._channel = self._log = None
        self._loaded = False
