"""The folder of a run: where its files lie, its status, and whether its processes still live.

Covers paths, atomic JSON files and the identity of a process (pid and creation time). Does not start, stop or follow anything:
``runs`` and ``supervisor`` do. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from workbench.atomic import replacing

ENDED = frozenset({"stopped", "paused", "finished", "failed", "killed"})
"""States that a run leaves only by ``resume``."""


@dataclass(frozen=True)
class RunStatus:
    """What a run is doing, as its supervisor last wrote it."""

    state: str
    """starting, running, stopping, stopped, paused, finished, failed or killed."""
    message: str = ""
    """One or two sentences on how it came to this state."""
    remedy: str = ""
    """What to do about it; empty where nothing is wrong."""
    kind: str = ""
    """Of a failure: nan_loss, out_of_memory, disk_full, data, model, config, killed, error."""
    attempt: int = 1
    """1, and one more after each resume."""
    pid: int | None = None
    """The supervisor."""
    create_time: float | None = None
    """When the supervisor began (seconds since the epoch): with the pid, its identity."""
    worker_pid: int | None = None
    """The process that trains."""
    worker_create_time: float | None = None
    """When that began."""
    exit_code: int | None = None
    """The worker's exit code, negative for a signal; None while it runs."""
    began: float | None = None
    """Start of this attempt, seconds since the epoch."""
    ended: float | None = None
    """Its end."""


@dataclass(frozen=True)
class RunFolder:
    """Names and files of one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration, written once by ``launch``."""
        return self.root / "config.json"

    @property
    def status_file(self) -> Path:
        """The state, written by the supervisor alone."""
        return self.root / "status.json"

    @property
    def log(self) -> Path:
        """Both processes' output."""
        return self.root / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, as transformers names them."""
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter, as peft saves it."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """The trained model, as transformers saves it, of a run that trains every weight."""
        return self.root / "model"

    @property
    def control(self) -> Path:
        """The only place a reader writes: ``stop``, ``pause``."""
        return self.root / "control"

    def events(self, source: str) -> Path:
        """``supervisor`` or ``rank0``."""
        return self.root / f"events-{source}.jsonl"

    def ask(self, what: str, patience: float) -> None:
        """Writes ``control/stop`` or ``control/pause`` with the seconds to wait before force is used."""
        write_json(self.control / what, {"patience": patience})

    def asked(self, what: str) -> bool:
        """Whether ``what`` was asked for."""
        return (self.control / what).exists()

    def deadline(self) -> tuple[float, float] | None:
        """When a worker that was asked to end is made to (seconds since the epoch), and the patience that was granted."""
        found = []
        for what in ("stop", "pause"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                path = self.control / what
                patience = float(json.loads(path.read_text("utf-8"))["patience"])
                found.append((path.stat().st_mtime + patience, patience))
        return min(found, default=None)

    def complete_checkpoints(self) -> list[Path]:
        """Checkpoints that were written to their end, oldest first."""
        found = [p.parent for p in self.checkpoints.glob("checkpoint-*/complete")]
        return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))

    def read_status(self) -> RunStatus | None:
        """The status on disk; None where there is none yet."""
        try:
            fields = json.loads(self.status_file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        known = {f.name for f in dataclasses.fields(RunStatus)}
        return RunStatus(**{k: v for k, v in fields.items() if k in known})

    def write_status(self, status: RunStatus) -> None:
        """Replaces the status on disk in one go."""
        write_json(self.status_file, dataclasses.asdict(status))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")


def create_time(pid: int) -> float | None:
    """When the process began; None if there is none, or only its zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def alive(pid: int | None, began: float | None) -> bool:
    """Whether this very process lives: a later process that was given the same pid began at another time."""
    now = create_time(pid) if pid is not None else None
    return now is not None and began is not None and abs(now - began) < 1.0
