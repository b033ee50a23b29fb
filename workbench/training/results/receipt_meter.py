"""Making a receipt of a run's memory from its events.

Covers which events count (those of the newest attempt that measured anything), the rows with their notes, and the totals that
they are reconciled with. The run's folder is all it takes, so any process can make a receipt, at any time, of a run that was
killed too. Does not measure (the worker's ``accounting`` does) and does not forecast anew: the forecast is the one that the
worker wrote down.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.memory.ledger import (
    ACTIVATIONS,
    BUCKETS,
    BY_NAME,
    CONTEXT,
    DEQUANTIZED,
    DEVICE,
    FULL_WEIGHTS,
    HOST,
    LIBRARIES,
    LOGITS,
    MANAGED,
    OF_TRAINING,
    SAVED,
    SPARE,
    UNEXPLAINED,
    WEIGHTS,
    WORKSPACE,
)
from workbench.show import Shown, View
from workbench.text import counted, memory_size
from workbench.training.events import Event
from workbench.training.results.receipts import (
    MeasuredStep,
    Receipt,
    ReceiptRow,
    ReceiptTotal,
)

if TYPE_CHECKING:
    from workbench.training.runs import Run

_NOT_YET = "not measured: the run had not come so far"
_HIDDEN = "not measured by itself: DDP does not show it, and it is part of what is not explained"
_SHORT_LIVED = "not measured by itself: it lives for moments, and is part of what is not explained"


@dataclass
class _Attempt:
    """What one attempt's events hold."""

    forecast: Event = field(default_factory=dict)
    moments: dict[str, Event] = field(default_factory=dict)
    measured: Event = field(default_factory=dict)
    """The step whose batch was the largest."""
    rss: int = 0
    """Peak of the samples since the last step."""
    peak: MeasuredStep | None = None
    step_rss: dict[int, int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        kind = event["k"]
        if kind == "sample":
            self.rss = max(self.rss, event.get("rss") or 0)
        elif kind == "forecast":
            self.forecast = event
        elif kind == "memory":
            self.moments[event["moment"]] = event
            if event["moment"] == "step":
                self.measured = event
        elif kind == "step":
            self._end_step(event)

    def _end_step(self, event: Event) -> None:
        n, peak = event["n"], event.get("peak") or None
        rss, self.rss = self.rss, 0
        if self.measured.get("n") == n:
            rss = max(rss, self.measured["rss"] or 0)
            self.step_rss[n] = rss
        size = peak or rss or None
        if size is not None and (self.peak is None or size > (self.peak.bytes or 0)):
            self.peak = MeasuredStep(n, None, event["longest"], event["padded"], size)


class ReceiptMeter(Shown):
    """Gathers a run's memory as its events come; ``receipt()`` at any time."""

    def __init__(self) -> None:
        self._attempts: dict[int, _Attempt] = {}

    def feed(self, events: Iterable[Event]) -> None:
        """Takes events in any number of pieces, each piece in order; kinds that have nothing about memory are skipped."""
        for event in events:
            self._attempts.setdefault(event.get("attempt", 1), _Attempt()).take(event)

    def receipt(self) -> Receipt:
        """What the events so far come to."""
        held = [attempt for _, attempt in sorted(self._attempts.items()) if attempt.moments]
        measured = [attempt for attempt in held if attempt.measured]
        attempt = (measured or held or [_Attempt()])[-1]
        return _Maker(attempt).receipt()

    def _show_(self) -> View:
        return self.receipt()._show_()


def receipt(run: Run | str | os.PathLike[str]) -> Receipt:
    """The receipt of a run, or of the run in a folder: going or ended, however it ended.

    Returns:
        Bytes by category, forecast beside measured (None where that is not known), with their totals and the step that they are
        of.

    Raises:
        RunError: If there is no run in the folder.

    >>> wb.receipt(wb.recorded_run()).rows[0].measured
    2211840
    """
    from workbench.training.runs import attach

    meter = ReceiptMeter()
    meter.feed(attach(run).events())
    return meter.receipt()


class _Maker:
    """Makes the receipt of one attempt."""

    def __init__(self, attempt: _Attempt) -> None:
        self.attempt = attempt
        self.last: Event = attempt.measured or next(reversed(attempt.moments.values()), {})
        self.device: str = attempt.forecast.get("device", "")
        self.gpu: Mapping[str, int | None] = self.last.get("gpu") or {}
        self.ledger: Mapping[str, Any] = {row["category"]: row for row in attempt.forecast.get("rows", ())}

    def receipt(self) -> Receipt:
        rows = [self._row(category) for category in BY_NAME if category != UNEXPLAINED]
        totals = tuple(self._totals(rows))
        if totals:
            rows.append(_rest(totals[0], rows[0].place))
        shape = (self.last["rows"], self.last["longest"]) if self.attempt.measured else self.attempt.forecast.get("shape")
        return Receipt(
            self.device, tuple(rows), totals, self._step(), self.attempt.peak, tuple(shape) if shape else None, self._note()
        )

    def _row(self, category: str) -> ReceiptRow:
        title, note = BY_NAME[category].title, self.ledger.get(category, {}).get("note", "")
        if category == FULL_WEIGHTS and self.attempt.forecast.get("method") == "qlora":
            title, note = (
                "weights left in 16 bits",
                "embeddings, head and fused experts; with upcast_to_fp32, in fp32, they take twice that",
            )
        measured, how, why = self._measured(category)
        if measured is None:
            why = why or _NOT_YET
        place = HOST if self.device == "cpu" else BY_NAME[category].place
        return ReceiptRow(category, title, self._forecast(category), measured, how, why or note, place)

    def _forecast(self, category: str) -> int | None:
        """What was forecast: for the measured batch, or else for a full one; 0 where the forecast has no such category."""
        if not self.ledger or not BY_NAME[category].group:
            return None
        of_batch: Mapping[str, int] = self.attempt.measured.get("forecast") or {}
        return int(of_batch.get(category, 0) if of_batch else self.ledger.get(category, {}).get("bytes", 0))

    def _measured(self, category: str) -> tuple[int | None, str, str]:
        """Bytes, how they are known, and a note; "" leaves the forecast's."""
        if category in (*WEIGHTS, *OF_TRAINING):
            held: Mapping[str, int] = self.last.get("held") or {}
            return (held[category], "walked", "") if category in held else (None, "", "")
        if category in SAVED:
            return self._saved(category)
        if category in (DEQUANTIZED, WORKSPACE, BUCKETS):
            return None, "", _HIDDEN if category == BUCKETS else _SHORT_LIVED
        if category == LIBRARIES:
            rss = self.attempt.moments.get("libraries", {}).get("rss")
            return rss, "rss" if rss is not None else "", "on the host, once all is imported"
        if self.device == "cpu":
            return 0, "inferred", "there is no CUDA device"
        if category == SPARE:
            if not self.gpu:
                return None, "", ""
            spare = (self.gpu["reserved"] or 0) - self._allocated
            return max(spare, 0), "allocator", "what it has reserved beyond the peak of what was allocated"
        made = self.attempt.moments.get("context", {})
        then: Mapping[str, int | None] = made.get("gpu") or {}
        process, context = then.get("nvml_process"), made.get("context")
        if process is not None:
            return process - (then["reserved"] or 0), "nvml", "of the process, before it loaded anything"
        return context, "" if context is None else "nvml", "the device's memory in use before and after the context was made"

    def _saved(self, category: str) -> tuple[int | None, str, str]:
        saved: Mapping[str, int] = self.last.get("saved") or {}
        if category not in saved:
            return None, "", ""
        kept, again = saved[category], 0
        note = ""
        if category == LOGITS:
            note = "what the forward pass keeps; forecast is the backward pass, which holds two more of that size for a moment"
        elif category == ACTIVATIONS:
            note = "kept by the forward pass"
        if category == ACTIVATIONS and (again := self.last["recomputed"]):
            note = f"{memory_size(kept)} kept by the forward pass, {memory_size(again)} computed again for one layer at a time"
        return kept + again, "saved", note

    @property
    def _allocated(self) -> int:
        return self.gpu.get("allocated_peak") or self.gpu.get("allocated") or 0

    @property
    def _rss(self) -> int:
        return max(self.last.get("rss") or 0, self.attempt.step_rss.get(self.last.get("n", 0), 0))

    def _totals(self, rows: list[ReceiptRow]) -> Iterator[ReceiptTotal]:
        """The figures that hold everything, the one that is reconciled first."""

        def explained(*places: str, besides: tuple[str, ...] = ()) -> int:
            return sum(row.measured or 0 for row in rows if row.place in places and row.category not in besides)

        if self.gpu:
            process, used = self.gpu.get("nvml_process"), self.gpu.get("nvml_used")
            others = self.attempt.moments.get("context", {}).get("others") or 0
            everything = explained(DEVICE, MANAGED)
            if process is not None:
                yield ReceiptTotal("this process on the GPU", process, "nvml", everything, "as NVML sees it")
            elif used is not None:
                note = "what NVML sees in use, less what was in use before the run"
                yield ReceiptTotal("the GPU's memory in use", used - others, "inferred", everything, note)
            tensors = explained(DEVICE, besides=(SPARE, CONTEXT))
            yield ReceiptTotal(
                "allocated, at the peak", self._allocated, "allocator", tensors, "by torch, in the measured step"
            )
        if self._rss:
            note = "at its peak in the measured step" if self.attempt.measured else "when it was last measured"
            yield ReceiptTotal("resident memory of the worker", self._rss, "rss", explained(HOST), note)

    def _step(self) -> MeasuredStep | None:
        if not (event := self.attempt.measured):
            return None
        size = self._allocated if self.gpu else self._rss
        return MeasuredStep(event["n"], event["rows"], event["longest"], event["padded"], size or None)

    def _note(self) -> str:
        if event := self.attempt.measured:
            batch = f"{counted(event['rows'], 'row')} × {event['longest']:,} tokens"
            return f"Measured at step {event['n']}, in which a batch had {batch}; forecast for the same batch."
        if self.last:
            return f"No step was measured: the figures are of the moment “{self.last['moment']}”, the forecast of a full batch."
        return "Nothing was measured yet."


def _rest(total: ReceiptTotal, place: str) -> ReceiptRow:
    note = f"{total.name}, less all rows above"
    if total.unexplained < 0:
        note += "; below zero, since the rows' peaks do not come at the same moment"
    return ReceiptRow(UNEXPLAINED, BY_NAME[UNEXPLAINED].title, None, total.unexplained, "inferred", note, place)
