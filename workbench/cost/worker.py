"""The process that measures costs: ``python -m workbench.cost.worker FOLDER PARENT_PID``.

Covers the order of things: what was asked for and is not measured yet, in the order of ``request.json``, each written to the
folder's events as soon as it is known. Ends when the process that asked for it is gone. What is computed is ``engine``'s part.
"""

from __future__ import annotations

import json
import math
import sys
import time

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import check_finite, opened
from workbench.cost.process import Reporter, serve
from workbench.quant.formats import FORMATS, register_format
from workbench.quant.spec import QuantSpec
from workbench.training.events import read_events
from workbench.training.host import peak_rss


class Worker:
    """One request, worked off."""

    def __init__(self, reporter: Reporter) -> None:
        self.root, self.reporter = reporter.root, reporter

    def run(self) -> None:
        """Measures everything that is missing."""
        self.reporter.emit("phase", name="import")
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
        self.reporter.emit("phase", name="load")
        engine = Engine(job, self.reporter.emit)
        check_data(data, engine)
        if data is None:
            self.reporter.emit("data", tokens=engine.tokens, digest=engine.digest, prefix=engine.prefix)
        self.reporter.emit("phase", name="measure")
        specs = [QuantSpec(**fields) for fields in request["outputs"]]
        specs = [spec for spec in specs if any((module, spec_key(spec)) not in outputs for module in job.weights)]
        if specs:
            engine.outputs(specs)
        assignments = [Assignment.from_dict(fields) for fields in request["points"]]
        for n, assignment in enumerate(assignments):
            if assignment.key in done:
                continue
            engine.assign(job.assigned(assignment))
            began, sums = time.perf_counter(), []
            for loss in engine.losses():
                sums.append(loss)
                self.reporter.progress(n * len(engine.batches) + len(sums), len(assignments) * len(engine.batches))
            if assignment == Assignment() and not all(map(math.isfinite, sums)):
                check_finite(job)
            self.reporter.emit("memory", base=engine.base, peak=peak_rss(), model=job.nbytes_16bit)
            self.reporter.emit("loss", point=assignment.key, sums=sums, seconds=time.perf_counter() - began)
            done.add(assignment.key)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], lambda reporter: Worker(reporter).run())
