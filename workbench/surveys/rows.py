"""A survey's rows, and the tables that are made of them: as they are, the worst, and by layer or kind.

Covers ``Row``, pooling totals, and pandas frames. Does not cover how rows come about (``surveys/survey.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.quant.measure import Totals
from workbench.quant.spec import QuantSpec
from workbench.show import Line, Record, in_words
from workbench.sources.tensor_info import TensorInfo
from workbench.text import listed, number, percent

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = ("rmse", "mae", "max", "rms", "relative_rmse", "sqnr_db", "entropy_bits")
"""The columns that are read off ``Totals``, in the order of the table."""
_SMALL_IS_BAD = ("sqnr_db", "entropy_bits")


@dataclass(frozen=True, repr=False)
class Row(Record):
    """What a survey found of one tensor."""

    tensor: TensorInfo
    layer: int | None
    """The number of its layer, None outside the layers."""
    kind: str
    """What it does there: ``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` … or its module's own name."""
    totals: tuple[Totals, ...]
    """One for each specification, in their order; empty after an error."""
    kurtosis: float
    """E[(x − mean)⁴] / σ⁴ over the finite weights; 3 for a normal distribution. NaN after an error."""
    error: str | None
    """What went wrong, None where nothing did. Plain text: escape it before it becomes HTML."""
    seconds_reading: float = field(default=0.0, compare=False)
    """Time spent waiting for the tensor's bytes, beside the computing of those before."""
    seconds_computing: float = field(default=0.0, compare=False)

    def _line_(self) -> Line:
        found = {f"relative RMSE, {t.spec.title}": percent(t.relative_rmse) for t in self.totals}
        line = {"tensor": self.tensor.name, "layer": in_words(self.layer), "kind": self.kind, **found}
        return line | ({"kurtosis": number(self.kurtosis, ".2f")} if self.error is None else {"error": self.error})


def pooled(totals: Sequence[Totals]) -> Totals:
    """The totals of several tensors under one specification, as if they were one; each weight counts alike.

    Weights in blocks that are not finite are left out, as in each tensor. Raises WorkbenchError on none at all.
    """
    if not totals:
        raise WorkbenchError("There are no totals to pool.", remedy="Give those of at least one tensor.")
    counts = np.array([max(t.numel - t.bad_blocks * t.spec.block_size, 0) for t in totals], np.float64)

    def mean(values: Iterable[float]) -> float:
        kept = [(c, v) for c, v in zip(counts, values, strict=True) if c and not math.isnan(v)]  # a last block may be partial
        return float(sum(c * v for c, v in kept) / sum(c for c, _ in kept)) if kept else math.nan

    return Totals(
        spec=totals[0].spec,
        numel=sum(t.numel for t in totals),
        occupancy=np.sum([t.occupancy for t in totals], axis=0),
        rmse=math.sqrt(mean(t.rmse**2 for t in totals)),
        mae=mean(t.mae for t in totals),
        max=max((t.max for t in totals if not math.isnan(t.max)), default=math.nan),
        rms=math.sqrt(mean(t.rms**2 for t in totals)),
        nans=sum(t.nans for t in totals),
        infinities=sum(t.infinities for t in totals),
        bad_blocks=sum(t.bad_blocks for t in totals),
    )


def nonfinite_summary(stats: Sequence[Totals]) -> str:
    """How many of the same weights are NaN or infinite, and what that leaves of the averages under each specification.

    A sentence; "" where all weights are finite.
    """
    nans, infinities = stats[0].nans, stats[0].infinities
    if not nans and not infinities:
        return ""
    parts = [f"{nans:,} weights are NaN and {infinities:,} infinite"]
    kept = [e for e in stats if not math.isnan(e.rmse)]
    if len({e.bad_blocks for e in kept}) == 1:
        parts.append(f"their {kept[0].bad_blocks:,} blocks are left out of every average")
    elif kept:
        parts.append(f"left out of every average are {listed([f'{e.bad_blocks:,} blocks under {e.spec.title}' for e in kept])}")
    if lost := [e.spec.title for e in stats if math.isnan(e.rmse)]:
        parts.append(f"under {listed(lost)} no block is left to average")
    return "; ".join(parts) + "."


def frame(rows: Sequence[Row], specs: Sequence[QuantSpec]) -> pd.DataFrame:
    """One line for each tensor and specification, in the order of the rows; after an error the numbers are missing."""
    import pandas as pd

    lines = [_line(row, i, spec) for row in rows for i, spec in enumerate(specs)]
    table = pd.DataFrame(lines, columns=list(_TYPES))
    return table.astype({name: kind for name, kind in _TYPES.items() if kind})


def worst(table: pd.DataFrame, k: int, by: str) -> pd.DataFrame:
    """The ``k`` lines of ``table`` that are worst by a column of numbers; lines without one are left out."""
    if by not in _RANKABLE:
        raise WorkbenchError(f"A survey cannot be ordered by {by!r}.", remedy=f"Choose one of: {', '.join(_RANKABLE)}.")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise WorkbenchError(f"The worst {k!r} cannot be shown.", remedy="Give a whole number from 1 on.")
    ordered = table.dropna(subset=[by]).sort_values(by, ascending=by in _SMALL_IS_BAD, kind="stable")
    return ordered.head(k).reset_index(drop=True)


def grouped(rows: Sequence[Row], specs: Sequence[QuantSpec], by: str) -> pd.DataFrame:
    """One line for each value of the attribute ``by`` (``layer`` or ``kind``) and specification, pooled over its tensors.

    ``kurtosis`` is the largest among the tensors. A group whose every tensor failed has its ``errors`` and no numbers.
    """
    import pandas as pd

    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, by), []).append(row)
    order = sorted(groups, key=lambda value: (value is None, value)) if by == "layer" else list(groups)
    lines = []
    for value in order:
        good = [row for row in groups[value] if row.error is None]
        for i, spec in enumerate(specs):
            line = {by: value, "tensors": len(good), "errors": len(groups[value]) - len(good), **_spec(spec)}
            if good:
                numel = sum(row.tensor.numel for row in good)
                nbytes = sum(spec.nbytes(row.tensor.numel) for row in good)
                line |= {"numel": numel, "nbytes": nbytes, "bits_per_weight": 8 * nbytes / numel}
                line |= _statistics(pooled([row.totals[i] for row in good]))
                line["kurtosis"] = np.fmax.reduce([row.kurtosis for row in good])
            lines.append(line)
    types = {by: _TYPES[by], "tensors": "int64", "errors": "int64"} | {
        name: kind for name, kind in _TYPES.items() if name not in ("tensor", "layer", "kind", "shape", "dtype", "error")
    }
    return pd.DataFrame(lines, columns=list(types)).astype({name: kind for name, kind in types.items() if kind})


_TYPES = {
    "tensor": "str", "layer": "Int64", "kind": "str", "shape": "", "dtype": "str", "numel": "Int64", "format": "str",
    "block_size": "Int64", "spec": "str", "bits_per_weight": "float64", "nbytes": "Int64",
    **dict.fromkeys(STATISTICS, "float64"), "kurtosis": "float64", "nans": "Int64", "infinities": "Int64", "error": "string",
}  # fmt: skip
"""The table's columns, and the dtype of each where it is not objects."""
_RANKABLE = (*STATISTICS, "kurtosis", "nans", "infinities", "numel", "nbytes")


def _line(row: Row, i: int, spec: QuantSpec) -> dict[str, Any]:
    info = row.tensor
    line: dict[str, Any] = {"tensor": info.name, "layer": row.layer, "kind": row.kind, "shape": info.shape, "dtype": info.dtype}
    line |= {"numel": info.numel, **_spec(spec), "error": row.error}
    if row.error is None:
        nbytes = spec.nbytes(info.numel)
        line |= {"bits_per_weight": 8 * nbytes / info.numel, "nbytes": nbytes, "kurtosis": row.kurtosis}
        line |= _statistics(row.totals[i])
    return line


def _spec(spec: QuantSpec) -> dict[str, Any]:
    return {"format": spec.format, "block_size": spec.block_size, "spec": spec.title}


def _statistics(totals: Totals) -> dict[str, Any]:
    return {name: getattr(totals, name) for name in (*STATISTICS, "nans", "infinities")}
