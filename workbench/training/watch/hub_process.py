"""The process in which a run fetches its model, or pushes what it trained: started and followed by the supervisor.

Covers the process from outside: the token goes to its standard input, and what it says comes back in lines of JSON. What it
does is ``hub_tasks``' part. No torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from workbench.training.folder import RunFolder

_QUIET: Mapping[str, str] = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_ENDS_WITHIN = 10.0
_TOLD_EVERY, _LOOKS = 1.0, 6
"""Seconds between two looks at the pace, and how many it is taken over."""


class HubProcess:
    """The process, from outside. ``done`` and ``total`` are bytes; ``answer`` is its last word, {} while there is none."""

    def __init__(self, folder: RunFolder, task: str, token: str | None) -> None:
        """Starts it; OSError where it cannot be started."""
        self.done = self.total = 0
        self.answer: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workbench.training.hub_tasks", str(folder.root), task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder.root,
            env={**os.environ, **_QUIET},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(f"{token or ''}\n".encode())
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, name="hub-process", daemon=True)
        self._reader.start()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(_ENDS_WITHIN)  # its last word may still be on the way
            self._close()
        return code

    def end(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait(_ENDS_WITHIN)

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:  # a library's own words
                continue
            if "done" in said:
                self.done, self.total = said["done"], said["total"]
            else:
                self.answer = said


class Pace:
    """How fast bytes come, over the last seconds; reported once a second."""

    def __init__(self) -> None:
        self._began, self._first = time.monotonic(), 0
        self._seen: list[tuple[float, int]] = []

    def seen(self, done: int) -> float | None:
        """Bytes a second, where a second has passed since the last report; None before."""
        now = time.monotonic()
        if not self._seen and done:
            self._seen, self._began, self._first = [(now, done)], now, done
        if not self._seen or now - self._seen[-1][0] < _TOLD_EVERY:
            return None
        self._seen = [*self._seen, (now, done)][-_LOOKS:]
        (then, before), *_ = self._seen
        return (done - before) / (now - then)

    def mean(self, done: int) -> float:
        """Bytes a second since the first came."""
        return (done - self._first) / max(time.monotonic() - self._began, 1e-3)
