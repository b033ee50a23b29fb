"""Does the fine-tune fit the GPU: the forecast, category by category and method by method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.binding import Quiet
from widgets.controls.style import column, fields, heading, note, set_note
from widgets.drawing.forecast_bar import ForecastBar
from widgets.figures.memory import forecast_bar, ledger_table, ways_in_words
from widgets.figures.tables import table
from widgets.panels.base import View
from widgets.session import Analysis
from workbench.memory.footprint import base_weights
from workbench.memory.forecast import MemoryLedger, fit, forecast, forecast_methods
from workbench.memory.gpus import Gpu, find, known
from workbench.memory.ledger import FULL_WEIGHTS, INTEGERS, UPCAST
from workbench.memory.ways import ways_to_fit
from workbench.sources import TensorInfo
from workbench.sources.kinds import kind_of
from workbench.sources.packed import as_loaded
from workbench.text import amount, memory_size
from workbench.training.choices import OPTIMIZERS
from workbench.training.config import TrainConfig

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
RANKS = (4, 8, 16, 32, 64, 128, 256)
TARGETS = {
    "queries and values": ("q", "v", "qkv"),
    "all of attention": ("q", "k", "v", "kv", "qkv", "o"),
    "the MLP": ("gate", "up", "gate_up", "down"),
}
"""Presets of the modules that get an adapter, by the kinds of their tensors."""
_LISTED = 100
_FIELDS = {
    "rank": "lora_r", "targets": "target_modules", "batch": "per_device_train_batch_size", "length": "max_length",
    "optimizer": "optim", "double_quant": "double_quant", "checkpointing": "gradient_checkpointing",
}  # fmt: skip
"""Control → field of ``TrainConfig``."""
_WHY = (
    "A forecast, made before anything is loaded, of the fine-tune as the Train tab has it: bytes of weights, scales, adapters "
    "and optimizer state are computed from the model's shapes, the rest is estimated. Below it: five methods, the same data."
)


_HELD = {
    False: "norms and biases in fp32, embeddings and head as they were, in 16 bits on a GPU",
    True: "all in fp32, as prepare_model_for_kbit_training makes them",
}
"""How ``upcast_to_fp32`` holds what is not in 4 bits."""


class MemoryView(View):
    """The forecast of the fine-tune beside a GPU's memory, its ledger, and five methods; nothing is measured."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Memory forecast", model, **options)

    def build(self) -> list[Any]:
        """Controls, the bar with its verdict and the methods, the ledger, what stays in 16 bits."""
        state = self.session.store.value
        training = state.training
        self.rank = ipywidgets.Dropdown(description="LoRA rank", options=_with(RANKS, training.lora_r))
        self.targets = ipywidgets.Dropdown(description="Adapters on", options=[("all linear layers", "all-linear")])
        self.batch = ipywidgets.BoundedIntText(description="Batch (rows)", value=4, min=1, max=1024)
        self.length = ipywidgets.Dropdown(description="Length (tokens)", options=_with(LENGTHS, training.max_length))
        self.optimizer = ipywidgets.Dropdown(description="Optimizer", options=OPTIMIZERS)
        self.double_quant = ipywidgets.Checkbox(description="Double quantization", indent=False)
        self.checkpointing = ipywidgets.Checkbox(description="Gradient checkpointing", indent=False)
        self.controls = {name: getattr(self, name) for name in _FIELDS}
        self._quiet = Quiet()
        self._show_state()
        changed = guard(self.message)(self._changed)
        for control in self.controls.values():
            self._quiet.on_change(control, changed)
        self.bar = ForecastBar(dict.fromkeys([*known(), state.gpu]), state.gpu, legend=False)
        self.bar.on_apply(guard(self.message)(self._train))
        self.bar.observe(guard(self.message)(lambda change: self.update(gpu=change["new"])), "gpu")
        self.table, self.ways = ipywidgets.HTML(), note()
        self.stays_summary, self.stays = note(), ipywidgets.HTML()
        settings = fields(*self.controls.values(), width=100)
        settings.add_class("wb-memory-settings")
        beside = ipywidgets.Box([column(self.bar, self.ways), column(heading("Ledger", _WHY), self.table)])
        beside.add_class("wb-memory")
        return [
            settings,
            beside,
            heading("What is not quantized"),
            self.stays_summary,
            self.stays,
        ]

    def redraw_on(self) -> frozenset[str]:
        """What the forecast depends on besides what is measured."""
        return frozenset({*_FIELDS.values(), "gpu", "train"} - {"double_quant"})

    def code(self, analysis: Analysis) -> str:
        """The ledger, the methods, the verdict and the changes."""
        return code.memory(analysis, self.session.store.value)

    @property
    def config(self) -> TrainConfig:
        """The configuration that is forecast."""
        return self.session.store.value.training

    def draw(self, analysis: Analysis) -> None:
        """Forecasts the analysis's model."""
        source, gpu, config = analysis.source, find(self.session.store.value.gpu), self.config
        tensors = as_loaded(source)[0]
        self._offer_targets(tensors)
        self._show_state()
        chosen = forecast(source, config)
        self.bar.show(forecast_bar(chosen, gpu, rows=forecast_methods(source, config)))
        self.table.value = ledger_table(chosen.on(gpu), source.name)
        set_note(self.ways, self._cheapest(analysis, chosen, gpu))
        self._draw_rest(
            tensors, chosen, forecast(source, dataclasses.replace(config, upcast_to_fp32=True)).total - chosen.total
        )

    def _cheapest(self, analysis: Analysis, chosen: MemoryLedger, gpu: Gpu) -> str:
        """What would make it fit, where it does not."""
        if fit(chosen, gpu).verdict == "fits":
            return ""
        ways = ways_to_fit(analysis.source, self.config, gpu)
        if ways is None:
            return "No change of settings known here makes it fit."
        return f"Cheapest changes: {ways_in_words(ways)}." if ways else ""

    def _draw_rest(self, tensors: list[TensorInfo], chosen: MemoryLedger, saved: int) -> None:
        """What stays out of 4 bits, the largest first, what it takes once loaded, and what is ``saved`` by how it is held."""
        reasons = {t.name: (t.reason, t.nbytes) for t in tensors}
        pieces = [
            piece for piece in base_weights(tensors, chosen.plan)
            if piece.category in (FULL_WEIGHTS, UPCAST, INTEGERS)
        ]  # fmt: skip
        pieces.sort(key=lambda piece: -piece.bytes)
        whole = sum(piece.bytes for piece in pieces)
        share = 100 * whole / chosen.total if chosen.total else 0.0
        less = f", {memory_size(saved)} less in all than in fp32" if saved else ""
        set_note(
            self.stays_summary,
            f"{len(pieces)} tensors stay out of 4 bits and take {memory_size(whole)} once loaded, {share:.0f} % of the "
            f"forecast: {_HELD[chosen.plan.upcast_to_fp32]}{less}. In the checkpoint they take "
            f"{amount(sum(reasons[piece.tensor][1] for piece in pieces))}.",
        )
        rows = [(p.tensor, amount(reasons[p.tensor][1]), memory_size(p.bytes), reasons[p.tensor][0]) for p in pieces[:_LISTED]]
        if len(pieces) > _LISTED:
            rows.append((f"and {len(pieces) - _LISTED} more", "", memory_size(sum(p.bytes for p in pieces[_LISTED:])), ""))
        self.stays.value = table(
            ["tensor", "in the checkpoint", "loaded", "why"], rows, "Tensors that QLoRA does not quantize", numbers=(1, 2)
        )

    def _offer_targets(self, tensors: Sequence[TensorInfo]) -> None:
        """The presets that this model has modules for, by the names of these, and what the state has if it is another one."""
        options: list[tuple[str, Any]] = [("all linear layers", "all-linear")]
        linear = [t for t in tensors if t.quantizable]
        for title, kinds in TARGETS.items():
            modules = {t.name.removesuffix(".weight").rpartition(".")[2] for t in linear if kind_of(t.name) in kinds}
            if modules:
                options.append((f"{title} ({', '.join(sorted(modules))})", tuple(sorted(modules))))
        present = self.session.store.value.target_modules
        if present not in [value for _, value in options]:
            options.append((present if isinstance(present, str) else ", ".join(present), present))
        if list(self.targets.options) != options:
            with self._quiet:
                self.targets.options = options

    def _show_state(self) -> None:
        config = self.config
        with self._quiet:
            for name, control in self.controls.items():
                value = getattr(config, _FIELDS[name])
                if name in ("rank", "length"):
                    control.options = _with(control.options, value)
                elif name == "targets" and value not in [known for _, known in control.options]:
                    continue  # offered once the model is known
                control.value = value

    def _changed(self, _: Any) -> None:
        self._train({_FIELDS[name]: control.value for name, control in self.controls.items()})

    def _train(self, changes: Mapping[str, Any]) -> None:
        """Change the fine-tune that is forecast, which is the one that the Train tab launches."""
        self.update(**self.session.store.value.changes_to(dataclasses.replace(self.config, **changes)))


def _with(options: Iterable[int], value: int) -> tuple[int, ...]:
    """The options of a list, and a value that came from elsewhere."""
    return tuple(sorted({*options, value}))
