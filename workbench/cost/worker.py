"""The process that measures costs: ``python -m workbench.cost.worker FOLDER PARENT_PID``.

Covers the order of things: what was asked for and is not measured yet, in the order of ``request.json``, each written to the
folder's events as soon as it is known. Ends when the process that asked for it is gone. What is computed is ``engine``'s part.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import Job, check_finite, opened
from workbench.cost.process import Reporter, serve
from workbench.quant.formats import FORMATS, register_format
from workbench.quant.spec import QuantSpec
from workbench.training.events import read_events
from workbench.training.host import peak_rss

if TYPE_CHECKING:
    from workbench.cost.engine import Engine


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
        done = {event["point"] for event in before if event["k"] == "sums"}
        data = next((event["digest"] for event in before if event["k"] == "rows"), None)
        outputs = {(event["module"], event["spec"]) for event in before if event["k"] == "outputs"}
        channels = {event["module"] for event in before if event["k"] == "channels"}
        job = opened(self.root)
        self.reporter.emit("phase", name="load")
        engine = Engine(job, self.reporter.emit, self.root)
        check_data(data, engine)
        if data is None:
            self.reporter.emit("rows", tokens=engine.tokens, digest=engine.digest, prefix=engine.prefix)
        self.reporter.emit("phase", name="measure")
        specs = [QuantSpec(**fields) for fields in request["outputs"]]
        if channels >= set(job.weights):
            specs = [spec for spec in specs if any((module, spec_key(spec)) not in outputs for module in job.weights)]
        if specs:
            engine.outputs(specs)
        asked = dict.fromkeys(Assignment.from_dict(fields) for fields in request["points"])
        missing = [assignment for assignment in asked if assignment.key not in done]
        if missing:  # what the others are held against is measured first
            passes = [Assignment(), *(assignment for assignment in missing if assignment != Assignment())]
            self._measure(engine, job, passes, len(asked) - len(missing), done)

    def _measure(self, engine: Engine, job: Job, passes: list[Assignment], before: int, done: set[str]) -> None:
        """Measures these assignments; ``before`` passes count as made in the progress."""
        size = len(engine.batches)
        for n, assignment in enumerate(passes, before):
            engine.assign(job.assigned(assignment))
            began = time.perf_counter()
            for at in engine.passed(reference=assignment == Assignment()):
                self.reporter.progress(n * size + at, (before + len(passes)) * size)
            sums = engine.sums
            if assignment == Assignment() and not all(map(math.isfinite, sums["losses"])):
                check_finite(job)
            self.reporter.emit("memory", base=engine.base, peak=peak_rss(), model=job.nbytes_16bit)
            if assignment.key not in done:
                self.reporter.emit("sums", point=assignment.key, seconds=time.perf_counter() - began, **sums)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], lambda reporter: Worker(reporter).run())
