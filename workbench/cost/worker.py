"""The process that measures costs: ``python -m workbench.cost.worker FOLDER PARENT_PID``.

Covers the order of things: what was asked for and is not measured yet, in the order of ``request.json``, each told in the
folder's events as soon as it is known. Ends when the process that asked for it is gone. What is computed is ``engine``'s part.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from pathlib import Path

from workbench.cost.assignments import Point, spec_key
from workbench.cost.jobs import check_finite, opened
from workbench.cost.process import Teller, serve
from workbench.quant.formats import FORMATS, register_format
from workbench.quant.spec import QuantSpec
from workbench.training.events import read_events


class Worker:
    """One request, worked off."""

    def __init__(self, teller: Teller) -> None:
        self.root, self.teller = teller.root, teller

    def run(self) -> None:
        """Measures everything that is missing."""
        self.teller.emit("phase", name="import")
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
        self.teller.emit("phase", name="load")
        engine = Engine(job, self.teller.emit)
        check_data(data, engine)
        if data is None:
            self.teller.emit("data", tokens=engine.tokens, digest=engine.digest, prefix=engine.prefix)
        self.teller.emit("phase", name="measure")
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
                self.teller.progress(n * len(engine.batches) + len(sums), len(points) * len(engine.batches))
            if point == Point() and not all(map(math.isfinite, sums)):
                check_finite(job)
            self.teller.emit("memory", base=engine.base, peak=_peak(), model=job.nbytes_16bit)
            self.teller.emit("loss", point=point.key, sums=sums, seconds=time.perf_counter() - began)
            done.add(point.key)


def _peak() -> int:
    """The most resident memory this program had, in bytes. ``getrusage`` would count what the process was before it."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], lambda teller: Worker(teller).run())
