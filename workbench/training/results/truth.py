"""The truth about a run's paging: what could page, what was asked for, what really moved, and why nothing did.

Covers the sums of a run's events, each figure with its source, for the run and for every step, and the reasons in the order in
which they apply. A request is never counted as a migration, a migration that could not be seen is unknown and not zero, and
host page faults are no part of it. Does not collect (``cupti``, ``optimizers``) and does not simulate (``memory.pager``).
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import RunError
from workbench.given import described, is_several
from workbench.show import Line, Record, Shown, View
from workbench.sources import Source, open_model
from workbench.text import known_memory_size, memory_size
from workbench.training.config import TrainConfig, as_config
from workbench.training.events import Event
from workbench.training.paging import paging_facts, smallest_rank

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.pager import PagerSimulation

MOVED = ("h2d", "d2h", "evicted")


@dataclass(frozen=True, repr=False)
class Reading(Record):
    """One figure of the meter."""

    what: str
    bytes: int | None
    """None: not known, for the reason in ``source``."""
    source: str
    """How it is known: computed, allocated, requested or measured, and by what."""

    def _line_(self) -> Line:
        return {"paging": self.what, "memory": known_memory_size(self.bytes), "how it is known": self.source}


@dataclass(frozen=True, repr=False)
class StepPaging(Record):
    """The bytes of one step; None where they could not be seen."""

    n: int
    requested: int
    h2d: int | None
    d2h: int | None
    evicted: int | None

    def _line_(self) -> Line:
        moved = {"to the GPU": self.h2d, "to the host": self.d2h, "evicted": self.evicted}
        sizes = {what: known_memory_size(size) for what, size in moved.items()}
        return {"step": f"{self.n}", "requested": memory_size(self.requested), **sizes}


@dataclass(frozen=True, repr=False)
class Reason(Record):
    """Why nothing pages, or why that is not known."""

    name: str
    """``optimizer``, ``cuda``, ``rule``, ``not yet``, ``unseen`` or ``no pressure``."""
    text: str
    remedy: str


@dataclass(frozen=True, repr=False)
class PagingTruth(Shown):
    """What is known of a run's paging."""

    readings: tuple[Reading, ...]
    """Eligible to page, allocated as managed, prefetch requested, migrated host → GPU, migrated GPU → host, evicted."""
    steps: tuple[StepPaging, ...]
    reasons: tuple[Reason, ...]
    """Empty where something was evicted."""
    smallest_rank: int | None
    """The smallest ``lora_r`` at which a state is eligible; None where that is not known, or the rank decides nothing."""
    gpu: int | None = None
    """Bytes of the GPU's memory, as NVML reports it; None where it has not."""

    def __getitem__(self, what: str) -> int | None:
        """The bytes of a reading."""
        return next(r.bytes for r in self.readings if r.what == what)

    @property
    def summary(self) -> str:
        """All of it in a sentence or two."""
        if evicted := self["evicted"]:
            requested = memory_size(self["prefetch requested"] or 0)
            moved = f"{memory_size(evicted)} were evicted to the host over the run (measured)"
            return f"{moved}; {requested} were asked back (requested)."
        return " ".join(f"{r.text} {r.remedy}".strip() for r in self.reasons)

    def _show_(self) -> View:
        facts = {"GPU": memory_size(self.gpu)} if self.gpu is not None else {}
        if self.smallest_rank is not None:
            facts["smallest rank that pages"] = f"{self.smallest_rank}"
        return View(f"Paging, over {len(self.steps):,} steps", facts, self.readings, self.summary)

    def to_frame(self) -> pd.DataFrame:
        """One line a reading: what, bytes, source."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(r) for r in self.readings], columns=["what", "bytes", "source"]).astype(
            {"bytes": "Int64"}
        )

    def beside(self, simulation: PagerSimulation) -> pd.DataFrame:
        """Bytes a step, simulated and measured (the median of the steps; missing where they could not be seen).

        One line each for ``h2d`` and ``d2h``; what was measured holds every cause, the driver's own prefetches too.
        """
        import pandas as pd

        simulated = simulation.per_step[-1].tolist() if len(simulation.per_step) else [None, None]
        seen = [[getattr(s, way) for s in self.steps if getattr(s, way) is not None] for way in ("h2d", "d2h")]
        measured = [int(statistics.median(moved)) if moved else None for moved in seen]
        return pd.DataFrame({"simulated": simulated, "measured": measured}, index=["h2d", "d2h"]).astype("Int64")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


class PagingMeter:
    """Adds up a run's paging as its events come; ``truth()`` at any time.

    A move belongs to the step that ended first after it began. Where a resumed run took a step again, the newest attempt's
    figures stand for the step; the run's sums hold everything that moved.
    """

    def __init__(self, config: TrainConfig, src: Source | None = None) -> None:
        self.config = config
        self._facts: Mapping[str, int] = _forecast(config, src)
        self._known_by = "forecast from shapes"
        self._can: Mapping[str, Mapping[str, Any]] = {}
        self._sums = dict.fromkeys(("requested", *MOVED), 0)
        self._managed: int | None = None
        self._headroom: int | None = None
        self._gpu: int | None = None
        self._attempts: dict[int, _Attempt] = defaultdict(_Attempt)

    def feed(self, events: Iterable[Event]) -> None:
        """Takes events in any number of pieces, each piece in order."""
        for event in events:
            attempt = self._attempts[event.get("attempt", 1)]
            kind = event["k"]
            if kind == "hello":
                self._can = event["capabilities"]
                if facts := self._can.get("paged optimizer state", {}).get("facts"):
                    self._facts, self._known_by = facts, "computed from the trained parameters"
            elif kind == "step":
                attempt.end_step(event["n"], event["t"])
            elif kind == "prefetch_req":
                self._add(attempt, event["t"], "requested", event["bytes"])
            elif kind == "page" and event["source"] == "cupti" and event["direction"] in MOVED:
                self._add(attempt, event["start"], event["direction"], event["bytes"])
                if event["cause"] == "eviction":
                    self._add(attempt, event["start"], "evicted", event["bytes"])
            elif kind == "sample" and event.get("managed") is not None:
                self._managed = max(self._managed or 0, event["managed"])
                if event.get("nvml_used") is not None:
                    self._gpu = event["nvml_total"]
                    left = event["nvml_total"] - event["nvml_used"]
                    self._headroom = left if self._headroom is None else min(self._headroom, left)

    def _add(self, attempt: _Attempt, at: int, what: str, size: int) -> None:
        self._sums[what] += size
        attempt.add(at, what, size)

    def truth(self) -> PagingTruth:
        """What the events so far come to."""
        seen, why = self._sees("cupti")
        measured = "measured by CUPTI" if seen else f"not seen: {why}"
        moved = {what: self._sums[what] if seen else None for what in MOVED}
        readings = (
            Reading("eligible to page", self._facts.get("eligible_bytes"), self._eligible_source()),
            Reading("allocated as managed", *self._allocated()),
            Reading("prefetch requested", self._sums["requested"], "requested by the traced optimizer: no migration yet"),
            Reading("migrated host → GPU", moved["h2d"], measured),
            Reading("migrated GPU → host", moved["d2h"], measured),
            Reading("evicted", moved["evicted"], f"{measured}: the migrations whose cause is eviction" if seen else measured),
        )
        newest = {n: attempt.steps[n] for _, attempt in sorted(self._attempts.items()) for n in attempt.steps}
        steps = tuple(
            StepPaging(n, sums["requested"], *(sums[what] if seen else None for what in MOVED))
            for n, sums in sorted(newest.items())
        )
        reasons = () if self._sums["evicted"] else tuple(self._reasons(seen, why))
        rank = smallest_rank(self.config, self._facts.get("largest", 0))
        return PagingTruth(readings, steps, reasons, rank, self._gpu)

    def _sees(self, collector: str) -> tuple[bool, str]:
        can = self._can.get(collector)
        return (bool(can["works"]), str(can["why"])) if can else (False, "the run has not said yet")

    def _eligible_source(self) -> str:
        bound = self.config.page_min_numel
        if not self._facts:
            return "not known before a run has loaded its model, or a model is given"
        return f"{self._known_by}: Adam's moments of parameters from {bound:,} elements on, under a paged optimizer"

    def _allocated(self) -> tuple[int | None, str]:
        if self._managed is not None:
            return self._managed, "allocated, as bitsandbytes' page manager counts"
        if self._facts.get("cuda") == 0:
            return 0, "none: without CUDA bitsandbytes allocates ordinary memory"
        return None, "not sampled yet"

    def _reasons(self, seen: bool, why: str) -> Iterable[Reason]:
        config, facts = self.config, self._facts
        paged = config.optim.startswith("paged_")
        if not paged:
            remedy = 'Choose optim="paged_adamw_32bit" or "paged_adamw_8bit".'
            yield Reason("optimizer", f"The optimizer {config.optim} pages nothing.", remedy)
        if facts.get("cuda") == 0:
            text = "There is no CUDA device: on a CPU all optimizer state is in ordinary memory."
            yield Reason("cuda", text, "Run it on a GPU; what it would page there can be simulated (wb.simulate_paging).")
        small = bool(facts) and facts["largest"] < config.page_min_numel
        if paged and small:
            rank = smallest_rank(config, facts["largest"])
            bound, largest = f"{config.page_min_numel:,}", f"{facts['largest']:,}"
            text = f"The {bound}-element rule: only larger parameters' states are paged, and the largest here has {largest}."
            lower = f"lower page_min_numel to {largest} or less."
            yield Reason("rule", text, f"Raise lora_r to {rank}, or {lower}" if rank else lower.capitalize())
        if not paged or small or facts.get("cuda") == 0:
            return
        if not self._managed:
            yield Reason("not yet", "No state is allocated yet: that happens in the first optimizer step.", "")
        elif not seen:
            yield Reason("unseen", f"Whether pages move cannot be seen here: {why}.", "")
        else:
            left = f", at least {memory_size(self._headroom)} of the GPU were free" if self._headroom is not None else ""
            text = f"No pressure: everything fits{left}, so the driver has nothing to evict."
            yield Reason("no pressure", text, "Longer rows, a larger batch or a smaller GPU make it page.")


@dataclass
class _Attempt:
    """The steps of one attempt and what belongs to each; what began after the last step's end waits for the next."""

    steps: dict[int, dict[str, int]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, at: int, what: str, size: int) -> None:
        i = bisect_left(self.ends, at)
        sums = self.steps[self.names[i]] if i < len(self.ends) else self.waiting
        sums[what] += size

    def end_step(self, n: int, at: int) -> None:
        self.ends.append(at)
        self.names.append(n)
        self.steps[n], self.waiting = self.waiting, defaultdict(int)


def _forecast(config: TrainConfig, src: Source | None) -> dict[str, int]:
    """What shapes alone show before a run; {} without a model."""
    if src is None:
        return {}
    from workbench.memory.footprint import Plan, trained
    from workbench.sources.packed import as_loaded

    parameters = trained(as_loaded(src)[0], Plan.of(config, "cuda"), src.config)
    return paging_facts(config, None, list(parameters.values()))


def paging_truth(
    config: TrainConfig, events: Iterable[Event] = (), src: Source | str | os.PathLike[str] | None = None
) -> PagingTruth:
    """The truth about a run's paging.

    Args:
        config: The run's configuration.
        events: The run's events.
        src: The model before a run, for its shapes.

    Returns:
        Bytes that may page, were requested, migrated and evicted (None where that is not known), the same by step, and why
        nothing was evicted.

    Raises:
        RunError: If ``events`` is no list of events, and where ``config`` is no configuration.
        ModelError: As ``open_model`` does.

    >>> wb.paging_truth(wb.TrainConfig(optim="adamw_8bit")).summary
    'The optimizer adamw_8bit pages nothing. Choose optim="paged_adamw_32bit" or "paged_adamw_8bit".'
    """
    if not is_several(events):
        remedy = "Give run.events(), and a model by its own name: src=…"
        raise RunError(f"{described(events)} is no list of events.", where="paging_truth", remedy=remedy)
    meter = PagingMeter(as_config(config, "paging_truth"), None if src is None else open_model(src))
    meter.feed(events)
    return meter.truth()
