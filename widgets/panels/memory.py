"""Does the fine-tune fit the GPU: the forecast, category by category and method by method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.binding import Quiet
from widgets.controls.front_ends import slider
from widgets.controls.message import Message
from widgets.controls.style import fields, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import scales as figures
from widgets.figures.tables import table
from widgets.panels.base import View
from widgets.session import Analysis
from workbench.memory.footprint import base_weights
from workbench.memory.forecast import Change, MemoryLedger, fit, forecast, forecast_methods, ways_to_fit
from workbench.memory.gpus import find, known
from workbench.memory.ledger import INTEGERS, UPCAST
from workbench.sources import TensorInfo
from workbench.sources.kinds import kind_of
from workbench.sources.packed import as_loaded
from workbench.text import amount, memory_size
from workbench.training.config import OPTIMIZERS, TrainConfig

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
    "gpu": "gpu", "rank": "lora_r", "targets": "target_modules", "batch": "per_device_train_batch_size",
    "length": "max_length", "optimizer": "optim", "double_quant": "double_quant", "checkpointing": "gradient_checkpointing",
}  # fmt: skip
"""Control → field of the state."""

_METHODS = {"qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning"}


class MemoryView(View):
    """Forecast bytes of five methods beside a GPU's memory, and the ledger of the chosen configuration; nothing is measured."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Memory forecast", model, **options)

    def build(self) -> list[Any]:
        """Controls, the verdict, the stacked bars, the ledger, what stays in 16 bits."""
        state = self.session.store.value
        self.methods = Plot(height=360)
        self.plots = [self.methods]
        self.gpu = ipywidgets.Dropdown(description="GPU", options=list(dict.fromkeys([*known(), state.gpu])), value=state.gpu)
        self.rank = slider("LoRA rank", _with(RANKS, state.lora_r))
        self.targets = ipywidgets.Dropdown(description="Adapters on", options=[("all linear layers", "all-linear")])
        self.batch = ipywidgets.BoundedIntText(description="Batch (rows)", value=4, min=1, max=1024)
        self.length = slider("Sequence length (tokens)", _with(LENGTHS, state.max_length))
        self.optimizer = ipywidgets.Dropdown(description="Optimizer", options=OPTIMIZERS)
        self.double_quant = ipywidgets.Checkbox(description="Double quantization", indent=False)
        self.checkpointing = ipywidgets.Checkbox(description="Gradient checkpointing", indent=False)
        self.controls = {name: getattr(self, name) for name in _FIELDS}
        self._quiet = Quiet()
        changed = guard(self.message)(self._changed)
        self._show_state()
        for control in self.controls.values():
            self._quiet.on_change(control, changed)
        self.verdict, self.table = Message(), ipywidgets.HTML()
        self.stays_summary, self.stays = note(), ipywidgets.HTML()
        return [
            note(
                "A forecast, made before anything is loaded: bytes of weights, scales, adapters and optimizer state are "
                "computed from the model's shapes, the rest is estimated."
            ),
            fields(*self.controls.values()),
            self.verdict,
            self.methods,
            self.table,
            heading("What is not quantized"),
            self.stays_summary,
            self.stays,
        ]

    def redraw_on(self) -> frozenset[str]:
        """What the forecast depends on besides what is measured."""
        return frozenset({*_FIELDS.values(), "train"})

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
        methods = forecast_methods(source, config)
        smallest = min(methods, key=lambda ledger: ledger.total)
        self.methods.show(
            figures.memory_methods_figure([*methods, chosen], gpu),
            f"Forecast memory of {source.name} under five methods, from {memory_size(methods[0].total)} for full fine-tuning "
            f"to {memory_size(smallest.total)}; {gpu.name} has {memory_size(gpu.usable)}.",
        )
        self.verdict.note(self._judge(analysis, chosen))
        self.table.value = table(
            ["category", "memory", "known", "what it is"],
            [
                *((r.category, memory_size(r.bytes), r.known, r.note) for r in chosen.rows),
                ("in all", memory_size(chosen.total), "a sum of peaks", "which do not all come at the same moment"),
            ],
            f"Forecast of {source.name}, QLoRA as set above",
            numbers=(1,),
        )
        self._draw_rest(tensors, chosen)

    def _draw_rest(self, tensors: list[TensorInfo], chosen: MemoryLedger) -> None:
        """What stays out of 4 bits, the largest first, and what it takes once loaded."""
        reasons = {t.name: (t.reason, t.nbytes) for t in tensors}
        pieces = [
            piece for piece in base_weights(tensors, chosen.plan)
            if piece.category in (UPCAST, INTEGERS)
        ]  # fmt: skip
        pieces.sort(key=lambda piece: -piece.bytes)
        whole = sum(piece.bytes for piece in pieces)
        share = 100 * whole / chosen.total if chosen.total else 0.0
        set_note(
            self.stays_summary,
            f"{len(pieces)} tensors stay out of 4 bits and take {memory_size(whole)} once loaded, {share:.0f} % of the "
            "forecast: prepare_model_for_kbit_training makes them float32. In the checkpoint they take "
            f"{amount(sum(reasons[piece.tensor][1] for piece in pieces))}.",
        )
        rows = [(p.tensor, amount(reasons[p.tensor][1]), memory_size(p.bytes), reasons[p.tensor][0]) for p in pieces[:_LISTED]]
        if len(pieces) > _LISTED:
            rows.append((f"and {len(pieces) - _LISTED} more", "", memory_size(sum(p.bytes for p in pieces[_LISTED:])), ""))
        self.stays.value = table(
            ["tensor", "in the checkpoint", "loaded", "why"], rows, "Tensors that QLoRA does not quantize", numbers=(1, 2)
        )

    def _judge(self, analysis: Analysis, chosen: MemoryLedger) -> str:
        gpu = find(self.session.store.value.gpu)
        found = fit(chosen, gpu)
        said = {
            "fits": f"fits {gpu.name} with {memory_size(found.headroom)} to spare",
            "close": f"just fits {gpu.name}: {memory_size(found.headroom)} left, less than the estimates are good for",
            "pages": f"fits {gpu.name} only if the paged optimizer state ({memory_size(chosen.managed)}) moves to the host",
            "does not fit": f"does not fit {gpu.name}: {memory_size(-found.headroom)} are missing",
        }[found.verdict]
        what = f"{_METHODS[self.config.method]} on {analysis.source.name}"
        text = f"As set, {what} is forecast to take {memory_size(chosen.total)} and {said}."
        if found.verdict == "fits":
            return text
        ways = ways_to_fit(analysis.source, self.config, gpu)
        if ways is None:
            return f"{text} No change of settings known here makes it fit."
        return f"{text} Cheapest changes: {_steps(ways)}." if ways else text

    def _offer_targets(self, tensors: list[TensorInfo]) -> None:
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
        state = self.session.store.value
        with self._quiet:
            for name, control in self.controls.items():
                value = getattr(state, _FIELDS[name])
                if name in ("rank", "length"):
                    control.options = _with(control.options, value)
                elif name == "targets" and value not in [known for _, known in control.options]:
                    continue  # offered once the model is known
                control.value = value

    def _changed(self, _: Any) -> None:
        self.update(**{_FIELDS[name]: control.value for name, control in self.controls.items()})


def _with(options: Iterable[int], value: int) -> tuple[int, ...]:
    """The options of a slider, and a value that came from elsewhere."""
    return tuple(sorted({*options, value}))


def _steps(ways: Sequence[Change]) -> str:
    fields = (", ".join(f"{k}={v}" for k, v in way.fields.items()) for way in ways)
    return "; ".join(f"{what} (saves {memory_size(way.saved)})" for what, way in zip(fields, ways, strict=True))
