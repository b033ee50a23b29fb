"""The process that measures costs: ``python -m workbench.cost.worker FOLDER PARENT_PID``.

Covers the order of things: what was asked for and is not measured yet, in the order of ``request.json``, each told in the
folder's events as soon as it is known. Ends when the process that asked for it is gone. What is computed is ``engine``'s part.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from workbench.cost.jobs import opened
from workbench.cost.measurements import EVENTS
from workbench.cost.points import Point, spec_key
from workbench.errors import WorkbenchError
from workbench.formats import FORMATS, register_format
from workbench.quantization import QuantSpec
from workbench.training.endings import ending_of
from workbench.training.events import EventWriter, read_events
from workbench.training.telemetry import host_counters

BUSY = 12
"""The exit code where another process measures into the folder."""
_TELL_EVERY = 0.2
_LOOK_EVERY = 0.5


class Worker:
    """One request, worked off."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writer = EventWriter(root / f"events-{EVENTS}.jsonl", 1)
        self._spoke = 0.0

    def run(self) -> int:
        """Measures everything that is missing; returns the exit code."""
        self.writer.emit("hello")
        try:
            self._run()
        except Exception as error:
            traceback.print_exc()
            ending = ending_of(error, {"phase": "measure"})
            kind, what, where, remedy = "RunError", ending.message, str(self.root), ending.remedy
            if isinstance(error, WorkbenchError):
                kind, what, where, remedy = type(error).__name__, error.what, error.where, error.remedy
            with contextlib.suppress(OSError):
                self.writer.emit("error", kind=kind, what=what, where=where, remedy=remedy)
            return 1
        finally:
            self.writer.close()
        return 0

    def _run(self) -> None:
        self.writer.emit("phase", name="import")
        from workbench.cost.engine import Engine, check_data

        request = json.loads((self.root / "request.json").read_text("utf-8"))
        for name, steps, title, source in request["formats"]:
            if name not in FORMATS or list(FORMATS[name].steps) != steps:
                register_format(name, steps, title, source)
        before = read_events(self.root)
        done = {event["point"] for event in before if event["k"] == "loss"}
        data = next((event["digest"] for event in before if event["k"] == "data"), None)
        outputs = {(event["module"], event["spec"]) for event in before if event["k"] == "outputs"}
        job = opened(self.root)
        self.writer.emit("phase", name="load")
        base = host_counters().get("rss") or 0
        engine = Engine(job, self.writer.emit)
        check_data(data, engine)
        if data is None:
            self.writer.emit("data", tokens=engine.tokens, digest=engine.digest, rows=sum(map(_rows, engine.batches)))
        self.writer.emit("phase", name="measure")
        specs = [QuantSpec(**fields) for fields in request["outputs"]]
        specs = [spec for spec in specs if any((module, spec_key(spec)) not in outputs for module in job.weights)]
        if specs:
            engine.outputs(specs)
        points = [Point.from_dict(fields) for fields in request["points"]]
        for n, point in enumerate(points):
            if point.key in done:
                continue
            engine.assign(job.assigned(point))
            began, sums = time.perf_counter(), []
            for loss in engine.losses():
                sums.append(loss)
                self._progress(n * len(engine.batches) + len(sums), len(points) * len(engine.batches))
            self.writer.emit("memory", base=base, peak=_peak(), model=job.nbytes_16bit)
            self.writer.emit("loss", point=point.key, sums=sums, seconds=time.perf_counter() - began)
            done.add(point.key)

    def _progress(self, done: int, total: int) -> None:
        if done == total or time.monotonic() >= self._spoke + _TELL_EVERY:
            self._spoke = time.monotonic()
            self.writer.emit("progress", done=done, total=total)


def _rows(batch: dict[str, Any]) -> int:
    return len(batch["input_ids"])


def _peak() -> int:
    """The most resident memory this program had, in bytes. ``getrusage`` would count what the process was before it."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _leave_with(parent: int) -> None:
    """Ends this process once ``parent`` is gone: nobody would read on."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def main(root: str, parent: str) -> None:
    """Works off one request, unless another process does in this folder."""
    with (Path(root) / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(BUSY)
        threading.Thread(target=_leave_with, args=(int(parent),), daemon=True).start()
        code = Worker(Path(root)).run()
        sys.stderr.flush()
        os._exit(code)  # nothing is left to do, and a library's thread must not keep the process


if __name__ == "__main__":
    main(*sys.argv[1:3])
