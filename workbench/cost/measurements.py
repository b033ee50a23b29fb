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

import numpy as np
from numpy.typing import NDArray

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import Job
from workbench.cost.process import Folder, Measuring, failure_in
from workbench.errors import WorkbenchError
from workbench.progress import Progress
from workbench.quant.spec import QuantSpec
from workbench.training.events import EventReader


@dataclass(frozen=True)
class Losses:
    """The held-out loss of one assignment, batch by batch."""

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
    """The measuring process's resident memory, in bytes, as its operating system reports it."""

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
    """What has been measured of a job, and how to measure more. In ``folder``, or in one that is removed with this object."""

    def __init__(self, job: Job, folder: str | os.PathLike[str] | None) -> None:
        self.job = job
        self._folder = Folder(folder, job.identity, {"config": job.config.to_dict()})
        self.root = self._folder.root
        self.losses: dict[str, Losses] = {}
        """By ``Assignment.key``."""
        self.weights: dict[tuple[str, str], Ratio] = {}
        """By module and ``spec_key``: the weights' own error."""
        self.outputs: dict[tuple[str, str], Ratio] = {}
        """By module and ``spec_key``: the outputs' error."""
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
        """The assignments in their order, each as soon as its loss is there; first the outputs' errors are measured.

        ``progress`` counts held-out batches.
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
        return assignment.key in self.losses and all(
            (module, spec_key(spec)) in self.outputs for spec in outputs for module in self.job.weights
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
        for event in sorted(events, key=lambda event: event["k"] != "data"):  # what the losses refer to first
            match event["k"]:
                case "data":
                    self._tokens, self.prefix = tuple(event["tokens"]), event["prefix"]
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
        return failure_in(events)


LEVEL = 0.95
"""The share of intervals that hold the true value."""
_DRAWS = 2_000
Interval = tuple[float, float]


def loss_interval(sums: Sequence[float], tokens: Sequence[int]) -> Interval:
    """The interval of Σ sums / Σ tokens, with batches drawn again with replacement; NaN where there is only one.

    A bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13): it says what other rows of
    the same kind would have given, and nothing of other data.

    ``sums``: each batch's loss summed over its tokens, in nats; ``tokens``: how many bear a loss.
    """
    if len(sums) < 2:
        return math.nan, math.nan
    drawn = _drawn(len(sums))
    with np.errstate(invalid="ignore", over="ignore"):
        means = (drawn @ np.asarray(sums, np.float64)) / (drawn @ np.asarray(tokens, np.float64))  # (draws,)
    if not np.isfinite(means).all():
        return math.nan, math.nan
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference_interval(sums: Sequence[float], base: Sequence[float], tokens: Sequence[int]) -> Interval:
    """The interval of the difference between two losses on the same batches, drawn together.

    It is far narrower than either loss's own: what makes a batch hard is in both.
    """
    return loss_interval([a - b for a, b in zip(sums, base, strict=True)], tokens)


def _drawn(batches: int) -> NDArray[np.int64]:
    """(draws, batches): how often each batch is in each draw; the same for every model, so that differences stay paired."""
    return np.random.default_rng(0).multinomial(batches, np.full(batches, 1 / batches), size=_DRAWS)
