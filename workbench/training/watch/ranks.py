"""The processes of a run on several devices: one worker a rank, started and watched as one. Supervisor only; imports no torch.

Covers the environment that torchrun gives its workers (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR …), so that the same worker
runs under torchrun too, and what one rank's end means for the others: a rank that fails or is killed takes them with it. Does
not use torchrun itself, which would hide which rank ended first, and how. Several machines are not covered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.training.watch.endings import FINISHED, PAUSED, STOPPED

GRACE = 15.0
"""Seconds that the other ranks have for their own end once one has ended otherwise than by finishing; then as long again
between SIGTERM and SIGKILL. Those that wait for a dead one would wait for half an hour."""
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """Workers that make one run; from outside like one ``subprocess.Popen``."""

    def __init__(
        self, arguments: Sequence[str], processes: int, env: Mapping[str, str], grace: float = GRACE, **how: Any
    ) -> None:
        """Starts them; ``how`` goes to ``Popen``. Raises OSError where one cannot be started, after ending the others."""
        self._grace = grace
        self._workers: list[subprocess.Popen[bytes]] = []
        self._code: int | None = None  # of the rank that decides
        self._deadline = 0.0
        self._forces = [signal.SIGTERM, signal.SIGKILL]
        common = {name: value for name, value in env.items() if name not in _OF_RANKS}
        if processes > 1:
            share = max((os.cpu_count() or 1) // processes, 1)
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            common.setdefault("OMP_NUM_THREADS", str(share))
        try:
            for rank in range(processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
                self._workers.append(subprocess.Popen(arguments, env={**common, **own}, **how))
        except OSError:
            self.send_signal(signal.SIGKILL)
            raise

    @property
    def pid(self) -> int:
        """Rank 0's."""
        return self._workers[0].pid

    def send_signal(self, number: int) -> None:
        """Sends it to every rank that still runs."""
        for worker in self._workers:
            worker.send_signal(number)  # which does nothing to one that was reaped

    def poll(self) -> int | None:
        """The run's exit code, once no rank is left: that of the rank that ended first otherwise than by finishing."""
        codes = [worker.poll() for worker in self._workers]
        ended = [code for code in codes if code is not None]
        if self._code is None and (decisive := [code for code in ended if code != FINISHED]):
            # Of several since the last look: a signal, then a failure, then a stop; a rank fails where its peer was killed.
            self._code = min(decisive, key=lambda code: (code >= 0, code in (STOPPED, PAUSED)))
            self._deadline = time.monotonic() + self._grace
        if len(ended) == len(codes):
            return self._code if self._code is not None else FINISHED
        if self._code is not None and self._forces and time.monotonic() >= self._deadline:
            self._deadline = time.monotonic() + self._grace
            with contextlib.suppress(OSError):
                self.send_signal(self._forces.pop(0))
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
