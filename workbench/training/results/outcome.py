"""What a run came to, in a few numbers, for a list of runs and for the end of one.

Covers the held-out loss, the peak of memory, how long it took and how often it evicted, read without the samples that make up
most of a run's events. Curves are ``history``'s part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from workbench.training.events import EventReader
from workbench.training.results.history import RunHistory
from workbench.training.results.truth import PagingMeter
from workbench.training.runs import Run

_RESIDENT = re.compile(rb'"rss":(\d+)')


@dataclass(frozen=True)
class Outcome:
    """What is known of a run so far; None where nothing is."""

    steps: int
    seconds: float
    """From its first event to its last, pauses left out."""
    held_out: tuple[float, float] | None
    """The loss before training and that of what the run ends with: of the last step at which it was measured, or of the best
    one where the run ends with that. In nats a token."""
    best: tuple[int, float] | None
    """The step with the lowest held-out loss, and that loss, where there were evaluations by steps; else None."""
    held_out_rows: int | None
    peak: int | None
    """Bytes: of the GPU as the allocator had it, or of the process where there is none."""
    on_gpu: bool
    evicted: int | None
    """Bytes evicted to the host; None where nobody could see that."""
    evicting_steps: int
    """Steps in which some were."""


def outcome(run: Run) -> Outcome:
    """Reads the events of ``run``. RunError where its folder is no longer there."""
    events = EventReader(run.dir, without=("sample",)).poll()
    history, paging = RunHistory(), PagingMeter(run.config)
    history.feed(events)
    paging.feed(events)
    truth = paging.truth()
    on_gpu = history.device not in ("", "cpu")
    peak = max(history.peaks.values(), default=None) if on_gpu else _most_resident(run.dir)
    best = history.best
    evals = [loss for _, loss in sorted(history.evals.items()) if loss is not None]
    return Outcome(
        steps=int(last["n"]) if (last := history.last_step) else 0,
        seconds=history.now,
        held_out=(evals[0], best[1] if best and run.config.load_best_model_at_end else evals[-1]) if len(evals) > 1 else None,
        best=best if len(evals) > 2 else None,
        held_out_rows=history.dataset.get("heldout", {}).get("kept"),
        peak=None if peak is None else int(peak),
        on_gpu=on_gpu,
        evicted=truth["evicted"],
        evicting_steps=sum(bool(step.evicted) for step in truth.steps),
    )


def _most_resident(folder: Path) -> int | None:
    """The largest resident set that the worker sampled."""
    try:
        data = (folder / "events-rank0.jsonl").read_bytes()
    except OSError:
        return None
    return max(map(int, _RESIDENT.findall(data)), default=None)
