"""What a training run's events amount to, ready to be drawn: curves, memory, paging over time, phases, samples.

``RunHistory.feed`` takes events as they come, in any number of pieces; the rest reads. Curves are thinned to what a plot
can show, keeping every bucket's extremes, and in such a way that a growing curve keeps its beginning. Nothing here draws,
knows widgets, or reads files (``Run.reader`` does).
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.show import Shown, View, sparkline
from workbench.text import NONE
from workbench.training.events import Event

Curve = tuple[NDArray[np.float32], NDArray[np.float32]]
Lane = tuple[str, str]

POINTS = 5_000
"""Points a curve may have."""
BARS = 200
"""Bars a picture over time may have."""
SLOT = 0.5
"""Seconds in the finest bar that is kept."""
PACE = 20
"""Steps from which the pace is taken."""
LOG_EVENTS = 50
"""Warnings that are kept."""

_WIDTHS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 36000)
_MEMORY = ("rss", "allocated", "reserved", "nvml_used", "managed")


@dataclass
class Phase:
    """A stretch of the run; ``end`` is None while it lasts, ``depth`` 1 where it lies within another."""

    name: str
    begin: float
    end: float | None
    depth: int
    attempt: int


class Series:
    """A growing curve."""

    def __init__(self) -> None:
        self.x, self.y = array("d"), array("d")

    def append(self, x: float, y: float | None) -> None:
        """Add a point; a missing value is a gap."""
        self.x.append(x)
        self.y.append(float("nan") if y is None else y)

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """All of it."""
        return np.array(self.x), np.array(self.y)

    def curve(self, points: int = POINTS) -> Curve:
        """The curve with at most ``points`` points."""
        return thin(*self.arrays(), points)


def thin(x: NDArray[np.float64], y: NDArray[np.float64], points: int = POINTS) -> Curve:
    """At most ``points`` points of a curve: the first, the last, and of each bucket the lowest and the highest."""
    index = kept(y, points)
    return x[index].astype(np.float32), y[index].astype(np.float32)


def kept(y: NDArray[np.float64], points: int = POINTS) -> NDArray[np.intp]:
    """Where the points lie that ``thin`` keeps, in their order; curves that are drawn as one share them.

    Buckets hold a power of two of points and are counted from the start, so a curve that grows keeps the points it had.
    """
    n, size = len(y), 2
    if n <= points:
        return np.arange(n)
    while 2 * (n // size) + 4 > points:
        size *= 2
    whole = n - n % size
    ends = [0, n - 1]
    return np.unique(np.concatenate([ends, _extremes(y[:whole].reshape(-1, size)), whole + _extremes(y[None, whole:])]))


def _extremes(buckets: NDArray[np.float64]) -> NDArray[np.intp]:
    """(buckets, size) → where in the flat array the lowest and the highest of each bucket lie; not a number is neither."""
    if not buckets.size:
        return np.zeros(0, np.intp)
    missing = np.isnan(buckets)
    low, high = np.where(missing, np.inf, buckets).argmin(1), np.where(missing, -np.inf, buckets).argmax(1)
    return (np.stack([low, high], 1) + np.arange(0, buckets.size, buckets.shape[1])[:, None]).ravel()


class Clock:
    """Seconds since a run's first event; the pauses between its attempts are left out."""

    def __init__(self) -> None:
        self.now = 0.0
        """The latest moment that was asked for."""
        self._shift: dict[int, float] = {}

    def seconds(self, t: int, attempt: int) -> float:
        """The moment of a writer's monotonic nanoseconds; an attempt begins where the one before it was last seen."""
        at = t / 1e9
        if attempt not in self._shift:
            self._shift[attempt] = self.now - at
        at += self._shift[attempt]
        self.now = max(self.now, at)
        return at


class RunHistory(Shown):
    """What a run's events hold so far. Times are seconds since its first event; pauses between attempts are left out."""

    def __init__(self) -> None:
        self.hello: Event = {}
        self.phases: list[Phase] = []
        self.evals: dict[int, float] = {}
        self.generated: dict[str, dict[str, str]] = {}
        self.log: list[tuple[str, str]] = []
        self.error: Event | None = None
        self.fetched: Event | None = None
        """The last on the model's way here: ``done`` and ``total`` bytes, and ``speed``, bytes a second."""
        self.dataset: dict[str, Event] = {}
        self.memory: dict[Lane, Series] = defaultdict(Series)
        self.device_total: int | None = None
        self.counts: dict[Lane, int] = defaultdict(int)
        self.peaks: dict[int, float] = {}
        """Of each step: the largest memory, in bytes, as the allocator reported it or as it was sampled meanwhile."""
        self.ends: dict[int, float] = {}
        """Of each step: when it ended, in seconds."""
        self.forecast: int | None = None
        """What a full batch was forecast to take, in bytes, without interpreter and libraries."""
        self.libraries: float | None = None
        """The resident set in bytes once the libraries were imported."""
        self._highest: float | None = None
        self._steps: dict[int, Event] = {}
        self._ordered = True
        self._slots: dict[Lane, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._clock = Clock()
        self._attempt = 0

    @property
    def now(self) -> float:
        """The latest moment, in seconds."""
        return self._clock.now

    def feed(self, events: Iterable[Event]) -> None:
        """Take in events; those of an unknown kind are dropped."""
        for event in events:
            attempt = event.get("attempt", 1)
            if attempt > self._attempt:
                self._end_phases()
            self._attempt = max(attempt, self._attempt)
            at = self._clock.seconds(event["t"], attempt)
            take = getattr(self, f"_on_{event['k']}", None)
            if take is not None:
                take(event, at)

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the lowest held-out loss of those after the first, and that loss; None where none was measured."""
        measured = {n: loss for n, loss in self.evals.items() if n > 0 and loss is not None}
        return min(measured.items(), key=lambda one: (one[1], one[0]), default=None)

    @property
    def device(self) -> str:
        """Where the model is trained, as the worker named it: "cpu" or a GPU's name."""
        return str(self.hello.get("device", ""))

    def _show_(self) -> View:
        last, (_, losses) = self.last_step, self.step_curve("loss")
        facts = {
            "device": self.device, "steps": f"{len(self._steps):,}" + (f" of {self.total_steps:,}" if self.total_steps else ""),
            "seconds": f"{self.now:,.1f}", "loss": f"{last['loss']:.4f}" if last and last["loss"] is not None else "",
            "losses": sparkline([x for x in losses.tolist()[:: max(len(losses) // 40, 1)] if x == x]),
        }  # fmt: skip
        lines = [
            {
                "phase": phase.name,
                "begins, s": f"{phase.begin:.1f}",
                "ends, s": NONE if phase.end is None else f"{phase.end:.1f}",
            }
            for phase in self.phases
        ]
        return View("History of a run, as its events tell it", facts, lines)

    @property
    def last_step(self) -> Event | None:
        """The step with the highest number."""
        return self._steps[max(self._steps)] if self._steps else None

    def step_curve(self, field: str) -> Curve:
        """A field of the steps against their number; where a resumed run took a step again, as it was the last time."""
        return thin(*self._of_steps(field))

    def _of_steps(self, field: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not self._ordered:
            self._steps = dict(sorted(self._steps.items()))
            self._ordered = True
        values = [np.nan if event.get(field) is None else event[field] for event in self._steps.values()]
        return np.fromiter(self._steps, float, len(self._steps)), np.array(values, float)

    def of_steps(self, values: dict[int, float]) -> Curve:
        """``peaks`` or ``ends`` against the steps' numbers."""
        n = np.fromiter(sorted(values), float, len(values))
        return thin(n, np.array([values[int(i)] for i in n], float))

    @property
    def total_steps(self) -> int | None:
        """How many steps the run is to take, once its rows are counted."""
        return self.dataset.get("train", {}).get("steps")

    def seconds_left(self, total: int) -> float | None:
        """Until ``total`` steps are done, at the pace of the last ones, evaluations and checkpoints between them included."""
        last = sorted(self.ends)[-PACE:]
        if len(last) < 2:
            return None
        pace = (self.ends[last[-1]] - self.ends[last[0]]) / (last[-1] - last[0])
        return max(total - last[-1], 0) * max(pace, 0.0)

    def lanes(self, *sources: str) -> list[Lane]:
        """The kinds of paging events so far from these sources, as (source, what)."""
        return sorted(lane for lane in self._slots if lane[0] in sources)

    def bar_width(self) -> float:
        """Seconds a bar stands for, so that the whole run has at most ``BARS``."""
        return float(next((width for width in _WIDTHS if self.now / width <= BARS), _WIDTHS[-1]))

    def bars(self, lane: Lane) -> Curve:
        """Sums over time: the middle of each bar in seconds, and its sum."""
        width = self.bar_width()
        slots = self._slots[lane]
        at = np.fromiter(slots, float, len(slots)) * SLOT
        bins = np.floor(at / width).astype(int)
        sums = np.bincount(bins, weights=np.fromiter(slots.values(), float, len(slots)))
        used = np.unique(bins)
        return ((used + 0.5) * width).astype(np.float32), sums[used].astype(np.float32)

    def _end_phases(self) -> None:
        """What a killed attempt left open ended where it was last seen."""
        for phase in self.phases:
            if phase.end is None:
                phase.end = self.now

    def _add(self, lane: Lane, at: float, amount: float | None, count: int) -> None:
        self.counts[lane] += count
        if amount is not None:
            self._slots[lane][int(max(at, 0.0) / SLOT)] += amount

    def _on_hello(self, event: Event, at: float) -> None:
        self.hello = event

    def _on_phase(self, event: Event, at: float) -> None:
        attempt = event.get("attempt", 1)
        going = [phase for phase in self.phases if phase.end is None and phase.attempt == attempt]
        if event["edge"] == "begin":
            self.phases.append(Phase(event["name"], at, None, min(len(going), 1), attempt))
        elif mine := [phase for phase in going if phase.name == event["name"]]:
            mine[-1].end = at

    def _on_fetch(self, event: Event, at: float) -> None:
        self.fetched = event

    def _on_sample(self, event: Event, at: float) -> None:
        for field in _MEMORY:
            if event.get(field) is not None:
                self.memory[event["source"], field].append(at, event[field])
        self.device_total = event.get("nvml_total") or self.device_total
        if event["source"] == "worker" and (held := event.get("allocated_peak") or event.get("rss")) is not None:
            self._highest = max(held, self._highest or 0.0)

    def _on_step(self, event: Event, at: float) -> None:
        known = self._steps.get(event["n"])
        highest, self._highest = self._highest, None
        if known is None or event.get("attempt", 1) >= known.get("attempt", 1):
            self.ends[event["n"]] = at
            if (peak := event.get("peak") or highest) is not None:
                self.peaks[event["n"]] = peak
            self._ordered = self._ordered and (not self._steps or event["n"] >= next(reversed(self._steps)))
            self._steps[event["n"]] = event

    def _on_eval(self, event: Event, at: float) -> None:
        self.evals[event["n"]] = event["loss"]

    def _on_page(self, event: Event, at: float) -> None:
        when = self._clock.seconds(event["end"], event.get("attempt", 1))
        host = event["source"] == "host faults"
        amount: float | None = event["count"] if host else event["bytes"]
        self._add((event["source"], event["cause"] if host else event["direction"]), when, amount, event["count"])

    def _on_prefetch_req(self, event: Event, at: float) -> None:
        self._add(("prefetch requests", event["name"]), at, event["bytes"], event["count"])

    def _on_forecast(self, event: Event, at: float) -> None:
        self.forecast = sum(row["bytes"] for row in event["rows"])

    def _on_memory(self, event: Event, at: float) -> None:
        if event["moment"] == "libraries":
            self.libraries = event.get("rss")

    def _on_dataset(self, event: Event, at: float) -> None:
        self.dataset[event["split"]] = event

    def _on_log(self, event: Event, at: float) -> None:
        self.log = [*self.log, (event["level"], event["text"])][-LOG_EVENTS:]

    def _on_error(self, event: Event, at: float) -> None:
        self.error = event

    def _on_generated(self, event: Event, at: float) -> None:
        self.generated.setdefault(event["prompt"], {})[event["stage"]] = event["text"]


PageView = Literal["gpu", "host", "none"]


def page_view(history: RunHistory) -> PageView:
    """What the paging picture shows: bytes that a GPU's pages moved or were asked to, else the host's faults, else nothing."""
    if history.lanes("cupti", "prefetch requests"):
        return "gpu"
    return "host" if history.lanes("host faults") else "none"
