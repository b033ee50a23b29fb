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


@dataclass(frozen=True)
class ReceiptRow:
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


@dataclass(frozen=True)
class ReceiptTotal:
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


@dataclass(frozen=True)
class MeasuredStep:
    """A step of a run and its largest batch."""

    n: int
    rows: int | None
    longest: int
    """Tokens in the longest row, to which the batch was padded."""
    padded: int | None
    """Padding tokens in the step."""
    bytes: int | None
    """The step's peak: of the allocator on a GPU, of the resident memory on a CPU."""


@dataclass(frozen=True, repr=False)
class Receipt:
    """What a run's memory went to. Printed, it is a table."""

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

    def __repr__(self) -> str:
        shown = [row for row in self.rows if row.forecast or row.measured]
        cells = [("", "forecast", "measured", "")]
        cells += [(row.title, known_memory_size(row.forecast), known_memory_size(row.measured), row.how) for row in shown]
        for total in self.totals:
            cells.append((f"total: {total.name}", "", memory_size(total.bytes), total.how))
        widths = [max(len(line[i]) for line in cells) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in cells]
        return "\n".join([*lines, self.note])
