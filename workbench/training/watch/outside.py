"""What a supervisor can see of a worker from outside: its memory, the machine's, and kills for want of memory.

Covers the samples that outlive a killed worker, and the evidence that the kernel killed it. Does not start, steer or end a
worker: ``supervisor`` does. Imports no torch.
"""

from __future__ import annotations

import collections
from pathlib import Path

import psutil

from workbench.text import memory_size
from workbench.training.host import VMSTAT, host_counters, oom_kills
from workbench.training.watch.shortage import headroom

_REMEMBERED = 35
"""Samples over which the kernel's count is compared: a large process takes seconds to die, at seven samples a second."""


class Outside:
    """One worker's memory, seen from outside."""

    def __init__(self, pid: int, vmstat: Path = VMSTAT) -> None:
        self._pid, self._vmstat = pid, vmstat
        self._kills = collections.deque([oom_kills(vmstat)], maxlen=_REMEMBERED)
        self._rss = self._peak = self._available = 0

    def sample(self) -> dict[str, int | None]:
        """Fields of a sample: the worker's ``rss`` and faults, and the bytes ``available`` on the machine; {} if it is gone."""
        self._kills.append(oom_kills(self._vmstat))
        if not (counters := host_counters(self._pid)):
            return {}
        self._available = int(psutil.virtual_memory().available)
        self._rss = counters["rss"] or 0
        self._peak = max(self._peak, self._rss)
        return {**counters, "available": self._available}

    def killed_for_memory(self) -> bool:
        """Whether, in the last seconds, the kernel killed something for want of memory."""
        before, now = self._kills[0], oom_kills(self._vmstat)
        return before is not None and now is not None and now > before

    def usable(self) -> int:
        """Bytes that the worker had when it was last seen, and those that it might still have had."""
        return self._rss + min(self._available, headroom())

    def last_words(self) -> str:
        """What the worker held when it was last seen, as a sentence; "" if it never was."""
        if not self._rss:
            return ""
        return (
            f" It last held {memory_size(self._rss)} of memory ({memory_size(self._peak)} at most), "
            f"with {memory_size(self._available)} available on this machine."
        )
