"""A run on one clock, as columns that only grow: steps, held-out losses, memory by what holds it, paging, phases.

``Timeline.feed`` takes events as they come, ``tails`` gives the rows that are new since it was last asked, so that a page gets
each row once. Rows are in order of time. Bytes as they were sampled; only what of the paged state is on the GPU is inferred:
managed − moved to the host + brought back. Sums and words about a run are in ``history`` and ``truth``; nothing here draws.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from workbench.memory.ledger import ADAPTERS, BASE, GRADIENTS, GROUPS, LIVE, OPTIMIZER, PAGED, SCALES, SPARE
from workbench.training.events import Event
from workbench.training.results.history import Clock

Tails = Mapping[str, Mapping[str, NDArray[np.generic]]]

BELOW = "below"
"""Under all that training holds: on a GPU the context and other processes, on the host interpreter and libraries."""
LAYERS = (BELOW, BASE, SCALES, ADAPTERS, GRADIENTS, OPTIMIZER, PAGED, LIVE, SPARE)
"""What memory is stacked of, from the bottom."""
MOVES = ("h2d", "evicted", "d2h", "requested", "minor", "major")
"""Kinds of rows of paging: brought to the GPU, evicted, gone to the host otherwise, asked for (bytes); the host's faults."""
BEGIN, END, END_ALL = range(3)
"""Edges of phases; the last one ends whatever a killed attempt left open."""
LATE = 0.5
"""Seconds that CUPTI's records may come after what was sampled meanwhile."""

_STEP = ("loss", "lr", "grad_norm", "tokens", "seconds", "longest", "padded", "peak", "scale", "skipped")
_COLUMNS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "steps": {"t": "f", "n": "i", **dict.fromkeys(_STEP, "f")},
        "evals": {"t": "f", "n": "i", "loss": "f"},
        "samples": {"t": "f", "gpu": "B", **dict.fromkeys(LAYERS, "f")},
        "pages": {"t": "f", "kind": "B", "amount": "f"},
        "phases": {"t": "f", "name": "B", "edge": "B"},
    }
)
_OF_LAYER = {group: tuple(name for name in names if name != PAGED) for group, names in GROUPS.items()}
_WALKED = (BASE, SCALES, ADAPTERS, GRADIENTS, OPTIMIZER)
_FAULTS = ("minor", "major")


class Timeline:
    """What a run's events come to, row by row. Not safe to use from several threads at once.

    >>> timeline = Timeline()
    >>> timeline.feed([{"k": "step", "t": 10**9, "n": 1, "loss": 2.5}])
    >>> timeline.tails()["steps"]["loss"].tolist(), timeline.tails()
    ([2.5], {})
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        """Of the phases, by the number in their rows."""
        self.managed = 0
        """The largest managed memory that was sampled, in bytes."""
        self._new = {table: _empty(table) for table in _COLUMNS}
        self._clock = Clock()
        self._waiting: list[tuple[float, int, Event]] = []
        self._count = 0
        self._newest = self._at = 0.0
        self._attempt: int | None = None
        self._late = False
        self._held: dict[str, int] = {}
        self._libraries: float | None = None
        self._allocated = self._resident = 0.0

    def feed(self, events: Iterable[Event], ended: bool = False) -> None:
        """Take in events, of any kind; once the run has ``ended`` nothing is waited for."""
        for event in events:
            attempt = event.get("attempt", 1)
            if event["k"] == "hello":
                self._late = bool(event.get("capabilities", {}).get("cupti", {}).get("works"))
            self._clock.seconds(event["t"], attempt)
            moved = event["k"] == "page" and event["source"] == "cupti"
            at = self._clock.seconds(event["end"] if moved else event["t"], attempt)
            self._count += 1
            heapq.heappush(self._waiting, (at, self._count, event))
            self._newest = max(self._newest, at)
        until = self._newest - (LATE if self._late and not ended else 0.0)
        while self._waiting and self._waiting[0][0] <= until:
            at, _, event = heapq.heappop(self._waiting)
            self._at = max(at, self._at)
            self._take(event)

    def tails(self) -> dict[str, dict[str, NDArray[np.generic]]]:
        """The rows since the last call, table by table, as columns; tables without a new row are left out."""
        tails = {
            table: {name: np.array(column) for name, column in columns.items()}
            for table, columns in self._new.items()
            if columns["t"]
        }
        for table in tails:
            self._new[table] = _empty(table)
        return tails

    def _take(self, event: Event) -> None:
        attempt = event.get("attempt", 1)
        if attempt != self._attempt and self._attempt is not None:
            self._row("phases", 0, END_ALL)
            self._held, self._libraries, self._allocated, self._resident = {}, None, 0.0, 0.0
        self._attempt = attempt
        take = getattr(self, f"_on_{event['k']}", None)
        if take is not None:
            take(event)

    def _row(self, table: str, *values: float | None) -> None:
        for column, value in zip(self._new[table].values(), (self._at, *values), strict=True):
            column.append(float("nan") if value is None else value)

    def _on_step(self, event: Event) -> None:
        self._row("steps", event["n"], *(event.get(field) for field in _STEP))

    def _on_eval(self, event: Event) -> None:
        self._row("evals", event["n"], event["loss"])

    def _on_phase(self, event: Event) -> None:
        if event["name"] not in self.names:
            self.names.append(event["name"])
        self._row("phases", self.names.index(event["name"]), BEGIN if event["edge"] == "begin" else END)

    def _on_memory(self, event: Event) -> None:
        if event["moment"] == "libraries":
            self._libraries = event.get("rss")
        elif event.get("held"):
            self._held = {layer: sum(event["held"].get(name, 0) for name in _OF_LAYER[layer]) for layer in _WALKED}

    def _on_sample(self, event: Event) -> None:
        if event["source"] != "worker":
            return
        if event.get("allocated") is not None:
            self._on_gpu(event)
        elif event.get("rss") is not None:
            below = min(event["rss"], event["rss"] if self._libraries is None else self._libraries)
            self._stack(0, below, event["rss"] - below, 0.0, 0.0)

    def _on_gpu(self, event: Event) -> None:
        managed = event.get("managed") or 0
        self.managed = max(self.managed, managed)
        self._resident += max(managed - self._allocated, 0)  # a state is written on the GPU before it can leave
        self._allocated, self._resident = managed, min(self._resident, managed)
        reserved = max(event.get("reserved") or 0, event["allocated"])
        used = event.get("nvml_used")
        below = 0.0 if used is None else max(used - reserved - self._resident, 0.0)
        self._stack(1, below, event["allocated"], self._resident, reserved - event["allocated"])

    def _stack(self, gpu: int, below: float, within: float, paged: float, spare: float) -> None:
        """A sample: what was walked, as far as it goes into the bytes ``within``, and the rest of them on top.

        Before anything was walked a model is being loaded, and all there is counts as its.
        """
        parts = []
        if not self._held:
            self._row("samples", gpu, below, within, 0.0, 0.0, 0.0, 0.0, paged, 0.0, spare)
            return
        for layer in _WALKED:
            parts.append(min(self._held.get(layer, 0), within))
            within -= parts[-1]
        self._row("samples", gpu, below, *parts, paged, within, spare)

    def _on_page(self, event: Event) -> None:
        if event["source"] == "host faults" and event["cause"] in _FAULTS:
            self._row("pages", MOVES.index(event["cause"]), event["count"])
        elif event["source"] == "cupti" and event["direction"] in ("h2d", "d2h"):
            back = event["direction"] == "h2d"
            kind = "h2d" if back else "evicted" if event["cause"] == "eviction" else "d2h"
            self._row("pages", MOVES.index(kind), event["bytes"])
            moved = event["bytes"] if back else -event["bytes"]
            self._resident = min(max(self._resident + moved, 0.0), self._allocated)

    def _on_prefetch_req(self, event: Event) -> None:
        self._row("pages", MOVES.index("requested"), event["bytes"])


def _empty(table: str) -> dict[str, array[float]]:
    return {name: array(kind) for name, kind in _COLUMNS[table].items()}
