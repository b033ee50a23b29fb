"""The receipt of a run's memory: every byte by category, forecast beside measured, reconciled with the whole.

Covers the receipt as a value: its rows, how each figure is known, the totals that the rows are held against, and the step that
they are of; what no category explains is a row of its own. ``receipt_meter`` makes one from a run's events, and the worker's
``accounting`` measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from workbench.memory.ledger import DEVICE
from workbench.show import Line, Record, Shown, View
from workbench.text import known_memory_size, memory_size

if TYPE_CHECKING:
    import pandas as pd

MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "walked": "storages of the live tensors, each counted once",
        "saved": "what autograd kept of one forward pass, storages counted once",
        "allocator": "the CUDA allocator",
        "nvml": "NVML",
        "rss": "resident memory of the process",
    }
)
"""How a figure was measured, by the short names that rows and totals carry."""
HOW: Mapping[str, str] = MappingProxyType(
    {how: f"measured: {by}" for how, by in MEASURED.items()} | {"inferred": "inferred from other figures", "": "not measured"}
)
"""How a figure is known: measured, or otherwise."""


@dataclass(frozen=True, repr=False)
class ReceiptRow(Record):
    """One category of memory."""

    category: str
    """As in ``MemoryLedger``; besides ``buffers``, ``spare``, ``libraries`` and, last, ``unexplained``."""
    title: str
    forecast: int | None
    """Bytes; None where nothing is forecast."""
    measured: int | None
    """Bytes; None where it was not measured, and why is in ``note``. ``unexplained`` may be negative."""
    how: str
    """How the measured figure is known: a key of ``HOW``."""
    note: str
    place: str = DEVICE
    """``device``; ``managed`` (the driver may move it to the host); or ``host``. On a CPU all are ``host``."""

    def _line_(self) -> Line:
        sizes = {"forecast": known_memory_size(self.forecast), "measured": known_memory_size(self.measured)}
        return {"category": self.title, **sizes, "known": self.how}


@dataclass(frozen=True, repr=False)
class ReceiptTotal(Record):
    """A total that was measured as one figure, beside what the rows it should hold add up to."""

    name: str
    bytes: int
    how: str
    """A key of ``HOW``."""
    explained: int
    note: str

    @property
    def unexplained(self) -> int:
        """The difference; below zero where the rows come to more than there was."""
        return self.bytes - self.explained

    def _line_(self) -> Line:
        return {"category": f"total: {self.name}", "forecast": "", "measured": memory_size(self.bytes), "known": self.how}


@dataclass(frozen=True, repr=False)
class MeasuredStep(Record):
    """A step of a run and its largest batch."""

    n: int
    rows: int | None
    longest: int
    """Tokens in the longest row, to which the batch was padded."""
    padded: int | None
    """Padding tokens in the step."""
    bytes: int | None
    """The step's peak: of the allocator on a GPU, of the resident memory on a CPU."""

    def _line_(self) -> Line:
        return {"step": f"{self.n}", "longest row": f"{self.longest:,} tokens", "peak": known_memory_size(self.bytes)}


@dataclass(frozen=True, repr=False)
class Receipt(Shown):
    """What a run's memory went to."""

    device: str
    """``cuda`` or ``cpu``; "" as long as the run has not said."""
    rows: tuple[ReceiptRow, ...]
    totals: tuple[ReceiptTotal, ...]
    """The first is the one that ``unexplained`` refers to; empty before anything was measured."""
    step: MeasuredStep | None
    """The step whose batch was measured; None before there was one."""
    peak: MeasuredStep | None
    """The step that took most."""
    forecast_shape: tuple[int, int] | None
    """Rows and tokens that the forecasts of activations are for: of the measured batch, or before it of a full one."""
    note: str
    """How much of this the run has recorded so far, and what the figures are of."""

    def __getitem__(self, category: str) -> ReceiptRow:
        """The row of a category."""
        return next(row for row in self.rows if row.category == category)

    @property
    def total(self) -> int | None:
        """The bytes that the rows are reconciled with; None before anything was measured."""
        return self.totals[0].bytes if self.totals else None

    @property
    def forecast(self) -> int | None:
        """The sum of what is forecast; None where there is no forecast."""
        known = [row.forecast for row in self.rows if row.forecast is not None]
        return sum(known) if known else None

    @property
    def unexplained(self) -> int | None:
        """What no category explains; negative where they come to more than the total."""
        return self.totals[0].unexplained if self.totals else None

    def to_frame(self) -> pd.DataFrame:
        """One line a row: category, title, forecast, measured, how, place, note; bytes, missing where not known."""
        import pandas as pd

        columns = ["category", "title", "forecast", "measured", "how", "place", "note"]
        rows = [dataclasses.asdict(row) for row in self.rows]
        return pd.DataFrame(rows, columns=columns).astype({"forecast": "Int64", "measured": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    def _show_(self) -> View:
        total = f": {memory_size(self.total)}" if self.total is not None else ""
        title = f"Receipt of a run's memory, device {self.device or 'not known yet'}{total}, forecast beside measured"
        rows = [row for row in self.rows if row.forecast or row.measured]
        return View(title, lines=[*rows, *self.totals], note=self.note)
