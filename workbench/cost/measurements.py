"""A folder of what was measured on one model and its held-out rows, and the process that adds to it.

Covers reading and asking: which assignments were measured, starting ``python -m workbench.cost.worker FOLDER`` for the others,
following it, ending it, and saying how it ended. Everything measured is a line of JSON in the folder from the moment it is
known, so that what was measured stays when a process is killed, and is not measured again. Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import Job
from workbench.cost.process import Folder, Measuring, failure_in
from workbench.cost.row_costs import RowCosts
from workbench.errors import WorkbenchError
from workbench.progress import Progress
from workbench.quant.spec import QuantSpec
from workbench.training.events import EventReader


@dataclass(frozen=True)
class MemoryUse:
    """The measuring process's resident memory, in bytes, as its operating system reports it."""

    base: int
    """With its libraries loaded, as far as it has used them, before the model."""
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


@dataclass(frozen=True)
class Channel:
    """An input channel of a module whose activations stand out."""

    number: int
    """Which column of the weight it meets."""
    times: float
    """The root mean square of its activations, in multiples of the median channel's."""


Stopped = Callable[[], bool]


class Measurements:
    """What has been measured of a job, and how to measure more. In ``folder``, or in one that is removed with this object."""

    def __init__(self, job: Job, folder: str | os.PathLike[str] | None) -> None:
        self.job = job
        self._folder = Folder(folder, job.identity, {"config": job.config.to_dict()})
        self.root = self._folder.root
        self.rows: dict[str, RowCosts] = {}
        """By ``Assignment.key``."""
        self.weights: dict[tuple[str, str], Ratio] = {}
        """By module and ``spec_key``: the weights' own error."""
        self.outputs: dict[tuple[str, str], Ratio] = {}
        """By module and ``spec_key``: the outputs' error."""
        self.channels: dict[str, tuple[Channel, ...]] = {}
        """By module: the input channels that stand out."""
        self.memory: MemoryUse | None = None
        """Of the process that measured last; None before one has."""
        self.prefix = ""
        """What transformers puts before the checkpoint's names of modules."""
        self.phase = ""
        """What the process is doing: ``import``, ``load``, ``measure``; empty where none is."""
        self._tokens: tuple[int, ...] = ()
        self._at = (0, 0)
        self._reader = EventReader(self.root)
        self._poll()

    def measured(
        self, assignments: Sequence[Assignment], outputs: Sequence[QuantSpec], progress: Progress, stopped: Stopped
    ) -> Iterator[Assignment]:
        """The assignments in their order, each as soon as it is measured; first the outputs' errors are.

        ``progress`` counts held-out batches. The model in 16 bits is passed once more where it was measured by another process.
        Leaving the loop ends the process. Raises RunError or ModelError where it fails.
        """
        process = Measuring(
            self.root, "workbench.cost.worker", lambda: self._request(assignments, outputs), self._poll, self.job.nbytes_16bit
        )
        try:
            for assignment in assignments:
                if not process.until(lambda at=assignment: self._known(at, outputs), stopped, lambda: progress(*self._at)):  # type: ignore[misc]
                    return
                yield assignment
        finally:
            process.close()
            self.phase = ""

    def _known(self, assignment: Assignment, outputs: Sequence[QuantSpec]) -> bool:
        return assignment.key in self.rows and all(
            module in self.channels and (module, spec_key(spec)) in self.outputs
            for spec in outputs
            for module in self.job.weights
        )

    def _request(self, assignments: Sequence[Assignment], outputs: Sequence[QuantSpec]) -> dict[str, Any]:
        """What to ask the process for."""
        self.job.check_memory()
        specs = {spec_key(s): s for s in (*(p.spec for p in assignments), *outputs) if s is not None}
        forms = [spec.definition for spec in specs.values()]
        return {
            "points": [assignment.to_dict() for assignment in assignments],
            "outputs": [spec.to_dict() for spec in outputs],
            "formats": [[form.name, list(form.steps), form.title, form.source] for form in forms],
        }

    def _poll(self) -> WorkbenchError | None:
        """Reads the process's events since the last time; returns the error among them."""
        events = self._reader.poll()
        for event in sorted(events, key=lambda event: event["k"] != "rows"):  # what the sums refer to first
            match event["k"]:  # an earlier form had "data" and "loss", sums of batches: they are measured anew
                case "rows":
                    self._tokens, self.prefix = tuple(event["tokens"]), event["prefix"]
                case "sums":
                    self.rows[event["point"]] = RowCosts.from_event({"tokens": self._tokens, **event})
                case "weights" | "outputs" as k:
                    found = self.weights if k == "weights" else self.outputs
                    error, signal_ = (math.nan if event[n] is None else float(event[n]) for n in ("error", "signal"))
                    found[event["module"], event["spec"]] = Ratio(error, signal_)
                case "channels":
                    self.channels[event["module"]] = tuple(Channel(*each) for each in event["channels"])
                case "memory":
                    self.memory = MemoryUse(event["base"], event["peak"], event["model"])
                case "progress":
                    self._at = event["done"], event["total"]
                case "phase":
                    self.phase = event["name"]
        return failure_in(events)
