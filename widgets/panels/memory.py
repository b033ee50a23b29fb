"""Does the fine-tune fit the GPU: the forecast, category by category and method by method."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets import figures
from widgets.panels.base import View
from widgets.plot import Plot
from widgets.session import Analysis
from widgets.style import fields, note
from widgets.tables import amount, table
from widgets.tasks import Message, guard
from workbench.memory import GPUS, MemoryLedger, compare_methods, fit, forecast, ways_to_fit
from workbench.training.config import OPTIMIZERS, TrainConfig

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
RANKS = (4, 8, 16, 32, 64, 128, 256)


class MemoryView(View):
    """Forecast bytes of five methods beside a GPU's memory, and the ledger of the chosen configuration; nothing is measured."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Memory forecast", model, **options)

    def build(self) -> list[Any]:
        """Controls, the verdict, the stacked bars, the ledger."""
        self.methods = Plot(height=360)
        self.plots = [self.methods]
        self.gpu = ipywidgets.Dropdown(description="GPU", options=list(GPUS), value="T4 16 GB")
        self.rank = ipywidgets.SelectionSlider(description="LoRA rank", options=RANKS, value=16, continuous_update=False)
        self.batch = ipywidgets.BoundedIntText(description="Batch (rows)", value=4, min=1, max=1024)
        self.length = ipywidgets.SelectionSlider(
            description="Sequence length (tokens)", options=LENGTHS, value=512, continuous_update=False
        )
        self.optimizer = ipywidgets.Dropdown(description="Optimizer", options=OPTIMIZERS)
        self.double_quant = ipywidgets.Checkbox(description="Double quantization", value=True, indent=False)
        self.checkpointing = ipywidgets.Checkbox(description="Gradient checkpointing", value=True, indent=False)
        controls = [self.gpu, self.rank, self.batch, self.length, self.optimizer, self.double_quant, self.checkpointing]
        redraw = guard(self.message)(self._again)
        for control in controls:
            control.observe(redraw, "value")
        self.verdict, self.table = Message(), ipywidgets.HTML()
        return [
            note(
                "A forecast, made before anything is loaded: bytes of weights, scales, adapters and optimizer state are "
                "computed from the model's shapes, the rest is estimated. Not yet checked against a GPU."
            ),
            fields(*controls),
            self.verdict,
            self.methods,
            self.table,
        ]

    @property
    def config(self) -> TrainConfig:
        """The configuration that is forecast."""
        return TrainConfig(
            model=self.session.store.value.model,
            lora_r=self.rank.value,
            per_device_train_batch_size=self.batch.value,
            max_length=self.length.value,
            optim=self.optimizer.value,
            double_quant=self.double_quant.value,
            gradient_checkpointing=self.checkpointing.value,
        )

    def draw(self, analysis: Analysis) -> None:
        """Forecasts the analysis's model."""
        source, gpu = analysis.source, GPUS[self.gpu.value]
        chosen = forecast(source, self.config)
        methods = compare_methods(source, self.config)
        smallest = min(methods, key=lambda ledger: ledger.total)
        self.methods.show(
            figures.memory_methods([*methods, chosen], gpu),
            f"Forecast memory of {source.name} under five methods, from {amount(methods[0].total)} for full fine-tuning "
            f"to {amount(smallest.total)}; {gpu.name} has {amount(gpu.usable)}.",
        )
        self.verdict.note(self._judge(analysis, chosen))
        self.table.value = table(
            ["category", "bytes", "known", "what it is"],
            [
                *((r.category, amount(r.bytes), r.known, r.note) for r in chosen.rows),
                ("in all", amount(chosen.total), "a sum of peaks", "which do not all come at the same moment"),
            ],
            f"Forecast of {source.name}, QLoRA as set above",
            numbers=4,
        )

    def _judge(self, analysis: Analysis, chosen: MemoryLedger) -> str:
        gpu = GPUS[self.gpu.value]
        found = fit(chosen, gpu)
        said = {
            "fits": f"fits {gpu.name} with {amount(found.headroom)} to spare",
            "close": f"just fits {gpu.name}: {amount(found.headroom)} left, less than the estimates are good for",
            "pages": f"fits {gpu.name} only if the paged optimizer state ({amount(chosen.managed)}) moves to the host",
            "does not fit": f"does not fit {gpu.name}: {amount(-found.headroom)} are missing",
        }[found.verdict]
        text = f"As set, QLoRA on {analysis.source.name} is forecast to take {amount(chosen.total)} and {said}."
        if found.verdict == "fits":
            return text
        ways = ways_to_fit(analysis.source, self.config, gpu)
        if ways is None:
            return f"{text} No change of settings known here makes it fit."
        steps = "; ".join(
            ", ".join(f"{k}={v}" for k, v in way.fields.items()) + f" (saves {amount(way.saved)})" for way in ways
        )
        return f"{text} Cheapest changes: {steps}." if steps else text

    def _again(self, _: Any) -> None:
        if self.session.analysis is not None:
            self.draw(self.session.analysis)
