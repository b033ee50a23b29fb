"""The folder of a run: where its files lie, its status, and whether its processes still live.

Covers paths, atomic JSON files, which checkpoints are whole, the space kept for the last word on a full disk, and the identity
of a process (pid and when it began). Does not start, stop or follow anything: ``runs`` and ``supervisor`` do. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.atomic import replacing
from workbench.errors import RunError
from workbench.show import Shown, View

_COMPLETE = "complete"
_RESERVED = 1 << 16
EARLY = "early"
"""The kind of a finish before the last step: patience ran out."""
GONE = "gone"
"""The state of a run whose folder is no longer there: it was removed, or is somewhere else."""
ENDED = frozenset({"stopped", "paused", "finished", "failed", "killed", GONE})
"""States that a run leaves only by ``resume``."""


@dataclass(frozen=True, repr=False)
class RunStatus(Shown):
    """What a run is doing, as its supervisor last wrote it."""

    state: str
    """starting, fetching, running, stopping, stopped, paused, finished, failed, killed or gone."""
    message: str = ""
    """One or two sentences on how it came to this state."""
    remedy: str = ""
    """What to do about it; empty where nothing is wrong."""
    kind: str = ""
    """Of a finish: early, or nothing. Of a failure: nan_loss, overflow, out_of_memory, disk_full, data, model, config, changed,
    killed, moved, error."""
    attempt: int = 1
    """1, and one more after each resume."""
    pid: int | None = None
    """The supervisor."""
    create_time: float | None = None
    """When the supervisor began, as ``create_time`` gives it: with the pid, its identity."""
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

    def _show_(self) -> View:
        facts = {
            "why": self.message, "what to do": self.remedy, "kind of end": self.kind, "attempt": f"{self.attempt}",
            "began": _clock(self.began), "ended": _clock(self.ended),
            "supervisor": f"process {self.pid}" if self.pid else "",
            "worker": f"process {self.worker_pid}" if self.worker_pid else "",
            "exit code": "" if self.exit_code is None else f"{self.exit_code}",
        }  # fmt: skip
        return View(f"Run status: {self.state}", facts)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@dataclass(frozen=True)
class Request:
    """Stop or Pause, as it was asked for."""

    what: str
    """``stop`` or ``pause``."""
    mark: tuple[int, int]
    """Another one after each asking."""
    patience: float | None
    """Seconds to wait before force is used; None: the usual ones."""


@dataclass(frozen=True)
class RunFolder:
    """Names and files of one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration, written by ``launch`` and ``resume_from``, and anew by ``Run.extend``."""
        return self.root / "config.json"

    @property
    def gone(self) -> bool:
        """Whether there is no run here any more. A disk that fails to answer does not count."""
        try:
            self.config.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    def missing(self) -> RunError:
        """What to raise where the folder is ``gone``."""
        remedy = "If it was renamed or moved, attach to it where it is now: wb.attach(folder)."
        return RunError("the run's folder is no longer there.", where=str(self.root), remedy=remedy)

    @property
    def status_file(self) -> Path:
        """The state, written by the supervisor alone."""
        return self.root / "status.json"

    @property
    def held(self) -> Path:
        """Which weights are in 4 bits, written by the worker once the model is loaded."""
        return self.root / "held.json"

    @property
    def to_fetch(self) -> Path:
        """There while the model is still to be fetched: name → bytes, as ``launch`` found it."""
        return self.root / "fetch.json"

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
    def beginning(self) -> Path:
        """The adapter before its first step, where it begins with a product that is not zero."""
        return self.root / "beginning"

    @property
    def model(self) -> Path:
        """The trained model, as transformers saves it, of a run that trains every weight."""
        return self.root / "model"

    @property
    def first_adapter(self) -> Path:
        """The adapter that the run began from, where it began from one."""
        return self.root / "first_adapter"

    @property
    def weights(self) -> tuple[Path, ...]:
        """All folders of weights beside the checkpoints, there or not."""
        return self.adapter, self.model, self.first_adapter, self.beginning

    @property
    def control(self) -> Path:
        """The only place a reader writes: ``stop``, ``pause``."""
        return self.root / "control"

    def events(self, source: str) -> Path:
        """``supervisor`` or ``rank0``."""
        return self.root / f"events-{source}.jsonl"

    def ask(self, what: str, patience: float) -> None:
        """Writes ``control/stop`` or ``control/pause`` with the seconds to wait before force is used.

        On a full disk an empty file may still be possible, which asks with the usual patience. Raises OSError where it is not.
        """
        try:
            write_json(self.control / what, {"patience": patience})
        except OSError:
            (self.control / what).touch()

    def asked(self, what: str) -> bool:
        """Whether ``what`` was asked for."""
        return (self.control / what).exists()

    def requests(self) -> list[Request]:
        """Stop and Pause as they stand; one that cannot be read gets the usual patience."""
        found = []
        for what in ("stop", "pause"):
            path = self.control / what
            with contextlib.suppress(OSError):
                state, patience = path.stat(), None
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    patience = float(json.loads(path.read_text("utf-8"))["patience"])
                found.append(Request(what, (state.st_ino, state.st_mtime_ns), patience))
        return found

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after a step, as transformers names it."""
        return self.checkpoints / f"checkpoint-{step}"

    def complete_checkpoints(self) -> list[Path]:
        """Checkpoints that were written to their end, oldest first."""
        return sorted((p.parent for p in self.checkpoints.glob(f"checkpoint-*/{_COMPLETE}")), key=steps_of)

    @property
    def best(self) -> Path | None:
        """The complete checkpoint of the lowest held-out loss, as the newest one knows it; None where none is kept."""
        whole = self.complete_checkpoints()
        best = _trainer_state(whole[-1]).get("best_global_step") if whole else None
        return next((path for path in whole if steps_of(path) == best), None)

    def mark_complete(self, step: int, keep: int) -> None:
        """Marks the checkpoint of a step as whole, and only then removes all but the best and the last ``keep`` that are.

        By the step, not by a clock.
        """
        (self.checkpoint(step) / _COMPLETE).touch()
        best = self.best
        for path in self.complete_checkpoints()[:-keep]:
            if path == best:
                continue
            (path / _COMPLETE).unlink(missing_ok=True)  # first: half of it must not look like the whole
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Removes checkpoints that are not whole, and frees their space; only to be called while none is being written."""
        whole = set(self.complete_checkpoints())
        for path in (*self.checkpoints.glob("checkpoint-*"), self.fresh):
            if path not in whole:
                shutil.rmtree(path, ignore_errors=True)
        for kept in (self.adapter, self.model):
            before = _before(kept)
            if before.exists() and not kept.exists():  # killed between the two moves of ``keep``
                os.replace(before, kept)
            shutil.rmtree(before, ignore_errors=True)

    @property
    def fresh(self) -> Path:
        """Where the adapter, or the model, is written before ``keep``."""
        return self.root / ".fresh"

    def keep(self, kept: Path) -> None:
        """Puts what was written to ``fresh`` in the place of the adapter, or of the model: a reader never sees half of it."""
        before = _before(kept)
        shutil.rmtree(before, ignore_errors=True)
        if kept.exists():
            os.replace(kept, before)
        os.replace(self.fresh, kept)
        shutil.rmtree(before, ignore_errors=True)

    def reserve(self) -> None:
        """Takes the space that the last word needs when the disk is full. Raises OSError where there is none."""
        with self._reserve.open("wb") as file:
            file.write(os.urandom(_RESERVED))  # not zeros, which some file systems do not store
            os.fsync(file.fileno())

    def release(self) -> None:
        """Gives that space back."""
        self._reserve.unlink(missing_ok=True)

    @property
    def _reserve(self) -> Path:
        return self.root / ".reserve"

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


def _before(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}-before")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")


def steps_of(trained: Path) -> float:
    """After how many steps a folder's weights were saved: by a checkpoint's name, elsewhere by Trainer's state beside them.

    Infinite where there is neither.
    """
    number = trained.name.removeprefix("checkpoint-")
    if number.isdecimal():
        return int(number)
    steps = _trainer_state(trained).get("global_step")
    return steps if isinstance(steps, int) else math.inf


def _trainer_state(trained: Path) -> dict[str, Any]:
    """What transformers' Trainer knew when it saved a folder; {} where that cannot be read."""
    try:
        state = json.loads((trained / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
