"""What a report says: everything that is measured and forecast for it, gathered in one value.

Covers one pass over the model for the survey, one for the duel, and the tensors with the heaviest tails once more. Does not
cover how it looks (``figures.py``, ``page.py``).
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from workbench._version import __version__
from workbench.errors import WorkbenchError
from workbench.memory.forecast import MemoryLedger, forecast_methods
from workbench.memory.savings import DoubleQuantSavings, double_quant_savings
from workbench.quant.outliers import Outliers, outliers
from workbench.quant.spec import QuantSpec
from workbench.sources.base import Source
from workbench.sources.packed import weights
from workbench.surveys.duel import duel as fight
from workbench.surveys.duel import of_survey
from workbench.surveys.rows import Row
from workbench.surveys.scores import Duel, MeasuredTensors

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from workbench.progress import Progress
    from workbench.surveys.survey import Survey

SIGMAS = (3.0, 4.0, 6.0)
HEAVIEST = 8
"""Tensors whose outliers are looked at: those with the largest kurtosis."""


@dataclass(frozen=True)
class Contents:
    """Everything a report says about one model."""

    source: Source
    measured: MeasuredTensors
    """The survey's rows under the specifications that were asked for."""
    duel: Duel
    savings: DoubleQuantSavings
    """Of double quantization on the model's 4-bit tensors, NF4 in blocks of 64."""
    ledgers: tuple[MemoryLedger, ...]
    """The forecast by method, with the default training configuration; empty where there can be none."""
    no_ledgers: str
    """Why."""
    tails: tuple[tuple[Row, Outliers], ...]
    """The heaviest first, under the first specification."""
    left: tuple[tuple[str, int, int], ...]
    """Tensors that QLoRA does not quantize: reason, how many, weights."""
    made: datetime
    versions: dict[str, str]

    @property
    def specs(self) -> tuple[QuantSpec, ...]:
        """What was asked for."""
        return self.measured.specs

    @property
    def weights(self) -> int:
        """Weights that were measured."""
        return sum(row.tensor.numel for row in self.measured.rows)


def gather(surveyed: Survey, bits: float, executor: Executor | None, progress: bool | Progress) -> Contents:
    """Measures and forecasts what the report says beyond the survey, which is finished first."""
    source = surveyed.source
    measured = of_survey(surveyed.run())
    names = [row.tensor.name for row in measured.rows]
    ledgers, no_ledgers = _forecasts(source)
    infos = source.tensors()
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for info in infos:
        if not info.quantizable:
            counts[info.reason] += 1
            sizes[info.reason] += info.numel
    return Contents(
        source=source,
        measured=measured,
        duel=fight(source, bits, tensors=names, executor=executor, progress=progress),
        savings=double_quant_savings(source),
        ledgers=ledgers,
        no_ledgers=no_ledgers,
        tails=tuple(_tails(source, measured)),
        left=tuple((reason, count, sizes[reason]) for reason, count in counts.most_common()),
        made=datetime.now(UTC),
        versions=_versions(),
    )


def _tails(source: Source, measured: MeasuredTensors) -> list[tuple[Row, Outliers]]:
    heaviest = sorted((row for row in measured.rows if row.kurtosis == row.kurtosis), key=lambda row: -row.kurtosis)[:HEAVIEST]
    spec = replace(measured.specs[0], rotate=None)  # whose blocks hold the outliers themselves
    return [(row, outliers(weights(source, row.tensor.name, row.tensor.layout), spec, SIGMAS)) for row in heaviest]


def _forecasts(source: Source) -> tuple[tuple[MemoryLedger, ...], str]:
    from workbench.training.config import TrainConfig

    try:
        return tuple(forecast_methods(source, TrainConfig())), ""
    except WorkbenchError as error:
        return (), str(error)


def _versions() -> dict[str, str]:
    packages = ("numpy", "numba", "ml_dtypes", "plotly")
    return {"qlora-workbench": __version__, "Python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
