"""The forecast beside a run's form: what the fine-tune takes as the form has it, against the GPU, and what would change that.

Covers finding the model's shapes and forecasting in the background. The bar is ``drawing/forecast_bar.py``'s, the figures
``figures/memory.py``'s, and the forecast ``workbench.memory``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from widgets.background.work import Work
from widgets.drawing.forecast_bar import ForecastBar
from widgets.figures.memory import forecast_bar
from workbench.errors import WorkbenchError
from workbench.memory.alternatives import Alternative, alternatives
from workbench.memory.forecast import MemoryLedger, forecast
from workbench.memory.gpus import find, known
from workbench.quant.spec import QuantSpec
from workbench.sources import Source, open_model
from workbench.sources.packed import as_loaded
from workbench.training.advice import Advice, advice_on
from workbench.training.beginnings import taken
from workbench.training.config import TrainConfig
from workbench.training.disk import DiskBudget, disk_budget
from workbench.training.model_checks import float16_warning, in_float16


@dataclass(frozen=True)
class Forecast:
    """One forecast, with what it needed to know of the model."""

    config: TrainConfig
    gpu: str
    ledger: MemoryLedger
    ways: tuple[Alternative, ...]
    packed: QuantSpec | None
    """How the checkpoint holds its weights itself, where it does: that decides in the configuration's place."""
    disk: DiskBudget
    """What the run writes, in the folder of runs."""
    advice: Advice
    """Rules of thumb, without the rows."""
    warning: str
    """What float16 is known to do to such a model, where a run here would compute in it; or ""."""


class RunForecast:
    """``widget`` shows the forecast that ``ask`` asks for; ``shown`` is the last one.

    ``opened()`` gives the model where it is open elsewhere; without it the configuration's is opened here. ``done(forecast)``
    is called with each, ``applied(fields)`` when the reader takes a change, and ``chosen(gpu)`` when another GPU is chosen.
    """

    def __init__(
        self,
        gpu: str,
        *,
        opened: Callable[[], Source] | None,
        done: Callable[[Forecast], None],
        applied: Callable[[Mapping[str, Any]], None],
        chosen: Callable[[str], None],
        executor: Executor | None = None,
    ) -> None:
        self._opened, self._done = opened, done
        self._held: tuple[str, Source] | None = None
        self._asked: tuple[TrainConfig, str, str] | None = None
        self._work = Work(executor, self._show, self._fail, debounce=0.1)
        self.shown: Forecast | None = None
        self.widget = ForecastBar(dict.fromkeys([*known(), gpu]), gpu)
        self.widget.on_apply(applied)
        self.widget.observe(lambda change: chosen(change["new"]), "gpu")

    def ask(self, config: TrainConfig, gpu: str, folder: str) -> None:
        """Forecast this, for a run in a folder; the same as before is not asked again."""
        self.widget.gpu = gpu
        if self._asked == (config, gpu, folder):
            return
        self._asked = (config, gpu, folder)
        self._work.submit("Forecasting", "", lambda progress, cancelled: self._forecast(config, gpu, folder))

    def close(self) -> None:
        """End the thread."""
        self._work.close()

    def _forecast(self, config: TrainConfig, gpu: str, folder: str) -> Forecast:
        source, asked = self._source(config.model), taken(config)
        ways, disk = alternatives(source, asked, gpu), disk_budget(asked, folder, source=source)
        warning = float16_warning(source.config) if in_float16(asked) else ""
        ledger, packed = forecast(source, asked), as_loaded(source)[1]
        return Forecast(config, gpu, ledger, ways, packed, disk, advice_on(asked, source), warning)

    def _source(self, model: str) -> Source:
        if self._opened is not None:
            return self._opened()
        if self._held is None or self._held[0] != model:
            self._held = (model, open_model(model))
        return self._held[1]

    def _show(self, found: Forecast) -> None:
        self.shown = found
        self.widget.show(forecast_bar(found.ledger, find(found.gpu), found.ways), [way.fields for way in found.ways])
        self._done(found)

    def _fail(self, error: Exception) -> None:
        self.shown = self._asked = None
        what = error.what if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        self.widget.fail(f"No forecast: {what}")
