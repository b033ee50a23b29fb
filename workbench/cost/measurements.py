"""A folder of what was measured on one model and its held-out rows, and the process that adds to it.

Covers reading and asking: which points are there, starting ``python -m workbench.cost.worker FOLDER`` for those that are not,
following it, ending it, and saying how it ended. Everything measured is a line of JSON in the folder from the moment it is
known, so that what was measured stays when a process is killed, and is not measured again. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import errors
from workbench.cost.intervals import Interval, difference_interval, loss_interval
from workbench.cost.jobs import Job
from workbench.cost.points import Point, spec_key
from workbench.errors import RunError, WorkbenchError
from workbench.quantization import QuantSpec
from workbench.telling import Progress
from workbench.training.environment import OFFLINE, PATIENT, without_secrets
from workbench.training.events import EventReader
from workbench.training.folder import write_json
from workbench.training.outside import oom_kills
from workbench.wording import amount

_TICK = 0.05
_TERM_PATIENCE = 5.0
EVENTS = "cost"
"""The source of the events in the folder, as ``events-cost.jsonl``."""


@dataclass(frozen=True)
class Losses:
    """The held-out loss of one point, batch by batch."""

    sums: tuple[float, ...]
    """Nats, summed over each batch's tokens that bear a loss."""
    tokens: tuple[int, ...]
    """How many those are."""

    @property
    def loss(self) -> float:
        """Nats a token, over all batches."""
        return sum(self.sums) / sum(self.tokens)

    @property
    def batches(self) -> tuple[float, ...]:
        """Nats a token, batch by batch."""
        return tuple(total / count for total, count in zip(self.sums, self.tokens, strict=True))

    @property
    def interval(self) -> Interval:
        """The 95 % interval of ``loss``, by bootstrap over the batches."""
        return loss_interval(self.sums, self.tokens)

    def above(self, base: Losses) -> tuple[float, Interval]:
        """How much higher the loss is than another model's on the same batches, and the paired interval of that."""
        return self.loss - base.loss, difference_interval(self.sums, base.sums, self.tokens)


@dataclass(frozen=True)
class MemoryUse:
    """The measuring process's resident memory, in bytes, as its operating system told it."""

    base: int
    """With its libraries loaded, before the model."""
    peak: int
    """The most until now."""
    model: int
    """The model's weights in 16 bits, counted."""


@dataclass(frozen=True)
class Ratio:
    """A relative error: the root of ``error`` / ``signal``, both sums of squares."""

    error: float
    signal: float

    @property
    def value(self) -> float:
        """‖error‖ / ‖signal‖; 0 where both are zero."""
        return math.sqrt(self.error / self.signal) if self.signal else 0.0 if not self.error else math.inf


Stopped = Callable[[], bool]


class Measurements:
    """What is known of a job, and the way to know more. In ``folder``, or in one that is gone with this object."""

    def __init__(self, job: Job, folder: str | os.PathLike[str] | None) -> None:
        self.job = job
        self._own = tempfile.TemporaryDirectory(prefix="workbench-cost-") if folder is None else None
        self.root = Path(self._own.name if self._own else folder).expanduser().absolute()  # type: ignore[arg-type]
        self.losses: dict[str, Losses] = {}
        """By ``Point.key``."""
        self.weights: dict[tuple[str, str], Ratio] = {}
        """By module and ``spec_key``: the weights' own error."""
        self.outputs: dict[tuple[str, str], Ratio] = {}
        """By module and ``spec_key``: the outputs' error."""
        self.memory: MemoryUse | None = None
        """Of the process that measured last; None before one has."""
        self.phase = ""
        """What the process is doing: ``import``, ``load``, ``measure``; empty where none is."""
        self._tokens: tuple[int, ...] = ()
        self._at = (0, 0)
        self._failure: WorkbenchError | None = None
        self._prepare()
        self._reader = EventReader(self.root)
        self._poll()

    def _prepare(self) -> None:
        """Writes the job, or holds it to the one that is there."""
        file, wanted = self.root / "job.json", self.job.identity
        try:
            there = json.loads(file.read_text("utf-8"))["identity"] if file.exists() else None
            if there is None:
                if self.root.exists() and any(self.root.iterdir()):
                    raise RunError("the folder is not empty.", where=str(self.root), remedy="Name a new folder.")
                self.root.mkdir(parents=True, exist_ok=True)
                write_json(file, {"identity": wanted, "config": self.job.config.to_dict()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"the folder of measurements cannot be used ({error})."
            raise RunError(what, where=str(self.root), remedy="Name a new folder that can be written to.") from error
        if there is not None and (other := sorted(name for name in wanted if there.get(name) != wanted[name])):
            told = ", ".join("another model" if name == "fingerprint" else f"another {name}" for name in other)
            raise RunError(f"the folder holds measurements of {told}.", where=str(self.root), remedy="Name another folder.")

    def measured(
        self, points: Sequence[Point], outputs: Sequence[QuantSpec], progress: Progress, stopped: Stopped
    ) -> Iterator[Point]:
        """The points in their order, each as soon as its loss is there; first the outputs' errors are measured.

        ``progress`` is told held-out batches.
        Leaving the loop ends the process. Raises RunError or ModelError where it fails.
        """
        process: subprocess.Popen[bytes] | None = None
        try:
            for point in points:
                while not self._known(point, outputs):
                    if stopped():
                        return
                    if process is None:
                        process = self._start(points, outputs)
                    ended = process.poll() is not None  # before reading, so that nothing it said last is missed
                    self._poll()
                    progress(*self._at)
                    if self._failure is not None:
                        raise self._failure
                    if ended and not self._known(point, outputs):
                        raise self._ended(process.returncode)
                    if not ended:
                        time.sleep(_TICK)
                yield point
        finally:
            if process is not None:
                _end(process)
                self.phase = ""
                self._poll()

    def _known(self, point: Point, outputs: Sequence[QuantSpec]) -> bool:
        return point.key in self.losses and all(
            (module, spec_key(spec)) in self.outputs for spec in outputs for module in self.job.weights
        )

    def _start(self, points: Sequence[Point], outputs: Sequence[QuantSpec]) -> subprocess.Popen[bytes]:
        """The process that measures what is missing, in a session of its own: Ctrl-C reaches it through this one alone."""
        self.job.check_memory()
        specs = {spec_key(s): s for s in (*(p.spec for p in points), *outputs) if s is not None}
        forms = [spec.definition for spec in specs.values()]
        request = {
            "points": [point.to_dict() for point in points],
            "outputs": [spec.to_dict() for spec in outputs],
            "formats": [[form.name, list(form.steps), form.title, form.source] for form in forms],
        }
        self._failure, self._oom = None, oom_kills()
        try:
            with (self.root / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_json(self.root / "request.json", request)
            with (self.root / "log.txt").open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-P", "-m", "workbench.cost.worker", str(self.root), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.root,
                    env={**PATIENT, **without_secrets(), **OFFLINE},
                    start_new_session=True,
                )
        except BlockingIOError:
            what, remedy = "another process is measuring into this folder.", "Wait for its end, or name another folder."
            raise RunError(what, where=str(self.root), remedy=remedy) from None
        except OSError as error:
            what = f"the measuring process cannot be started ({error.strerror or error})."
            raise RunError(what, where=str(self.root), remedy="Name a folder that can be written to.") from error

    def _poll(self) -> None:
        for event in sorted(self._reader.poll(), key=lambda event: event["k"] != "data"):  # what the losses refer to first
            match event["k"]:
                case "data":
                    self._tokens = tuple(event["tokens"])
                case "loss":
                    sums = tuple(math.nan if s is None else float(s) for s in event["sums"])
                    self.losses[event["point"]] = Losses(sums, self._tokens)
                case "weights" | "outputs" as k:
                    found = self.weights if k == "weights" else self.outputs
                    error, signal_ = (math.nan if event[n] is None else float(event[n]) for n in ("error", "signal"))
                    found[event["module"], event["spec"]] = Ratio(error, signal_)
                case "memory":
                    self.memory = MemoryUse(event["base"], event["peak"], event["model"])
                case "progress":
                    self._at = event["done"], event["total"]
                case "phase":
                    self.phase = event["name"]
                case "hello":
                    self._failure = None
                case "error":
                    kind = getattr(errors, event["kind"], RunError)
                    self._failure = kind(event["what"], where=event["where"], remedy=event["remedy"])

    def _ended(self, code: int) -> RunError:
        """What to say of a process that ended without a word."""
        again = "What was measured is kept: with the same folder it goes on from there."
        if code == -signal.SIGKILL:
            oom = self._oom is not None and (oom_kills() or 0) > self._oom
            why = "out of memory: the kernel killed it" if oom else "killed, possibly out of memory"
            needed = amount(self.job.nbytes_16bit)
            return RunError(f"the measuring process was {why}; the model takes {needed}.", where=str(self.root), remedy=again)
        what = f"the measuring process ended with exit code {code}; its last words are in log.txt."
        return RunError(what, where=str(self.root), remedy=again)

    def __del__(self) -> None:
        if (own := getattr(self, "_own", None)) is not None:
            own.cleanup()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, which writes nothing but whole lines, and waits for that."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_PATIENCE)
            return
        process.kill()
    process.wait()
