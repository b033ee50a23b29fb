"""Does it fit? The forecast of a fine-tune's memory, category by category, before anything is loaded.

Covers the ledger of one configuration, the same model under other methods, and the judgement against a GPU's memory. What is
computed from shapes and what is estimated is stated row by row. What comes and goes within a step is ``memory/phases.py``'s
part, what would make it fit that of ``memory/ways.py``. Does not measure anything, and needs neither torch nor a GPU.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.given import described, is_a
from workbench.memory.footprint import FULL, LORA, QLORA, Piece, Plan, base_weights, taken, trained_between
from workbench.memory.footprint import optimizer_state as _optimizer_state
from workbench.memory.footprint import trained as _trained
from workbench.memory.gpus import Gpu, find
from workbench.memory.ledger import (
    ADAPTERS,
    BY_NAME,
    COMPUTED,
    CONTEXT,
    ESTIMATED,
    FULL_WEIGHTS,
    GRADIENTS,
    GROUPS,
    MANAGED,
    SPARE,
)
from workbench.memory.phases import PHASES, LedgerRow, row, transient
from workbench.show import Line, Shown, ShownList, View, bar
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.packed import as_loaded
from workbench.text import memory_size, percent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class MemoryLedger(Shown):
    """What a fine-tune is forecast to take: at its peak, which comes while the loss or while a layer is computed."""

    title: str
    model: str
    plan: Plan
    rows: tuple[LedgerRow, ...]
    pieces: tuple[Piece, ...]
    """The computed rows' bytes tensor by tensor."""

    @property
    def phase(self) -> str:
        """The phase of a step in which most is held: ``HEAD`` or ``LAYER``."""
        return max(PHASES, key=self._at)

    @property
    def total(self) -> int:
        """All bytes at the peak, wherever they lie, with the allocator's slack."""
        return self._at(self.phase)

    @property
    def needed(self) -> int:
        """``total`` without the allocator's slack, which shrinks where memory is short."""
        return self.total - self[SPARE]

    @property
    def managed(self) -> int:
        """Bytes that may leave the device under pressure."""
        return sum(row.bytes for row in self.rows if row.place == MANAGED)

    @property
    def at_peak(self) -> dict[str, int]:
        """Category → its bytes at the peak; they add up to ``total``. One of the other phase is not there then."""
        return {row.category: size for row in self.rows if (size := row.at(self.phase))}

    @property
    def groups(self) -> dict[str, int]:
        """``at_peak``, gathered as ``GROUPS`` has it."""
        present = self.at_peak
        return {group: sum(present.get(name, 0) for name in names) for group, names in GROUPS.items()}

    def __getitem__(self, category: str) -> int:
        """The most bytes that a category takes at any moment, 0 where the ledger has none."""
        return sum(row.bytes for row in self.rows if row.category == category)

    def on(self, gpu: Gpu) -> MemoryLedger:
        """The same on a GPU, whose context and allocator take what is known of them."""
        known: dict[str, dict[str, Any]] = {CONTEXT: {"bytes": gpu.context, "note": gpu.how}}
        if gpu.slack is not None:
            allocated = self.needed - self[CONTEXT]
            known[SPARE] = {"bytes": int(gpu.slack * allocated), "note": f"{percent(gpu.slack, 0)} of the peak, {gpu.how}"}
        return dataclasses.replace(
            self, rows=tuple(dataclasses.replace(row, **known.get(row.category, {})) for row in self.rows)
        )

    def to_frame(self) -> pd.DataFrame:
        """One line per row: category, bytes, at the peak, known, place, note."""
        import pandas as pd

        return pd.DataFrame(
            [(row.category, row.bytes, row.at(self.phase), row.known, row.place, row.note) for row in self.rows],
            columns=["category", "bytes", "at the peak", "known", "place", "note"],
        )

    def _at(self, phase: str) -> int:
        return sum(row.at(phase) for row in self.rows)

    def _line_(self) -> Line:
        return {"forecast of": self.title, "in all": memory_size(self.total), "may page": memory_size(self.managed)}

    def _show_(self) -> View:
        plan, phase = self.plan, self.phase
        shape = f"{plan.per_device_train_batch_size} × {plan.max_length:,} tokens"
        lines = [
            {
                "category": row.category, "memory": memory_size(row.bytes), "of all": percent(row.at(phase) / self.total, 1),
                "": bar(row.at(phase) / self.total), "known": row.known + (", may page" if row.place == MANAGED else ""),
            }
            for row in self.rows
        ]  # fmt: skip
        return View(
            f"Forecast of {self.title} on {self.model}: {memory_size(self.total)} for {shape}, device {plan.device}",
            lines=lines,
            total={"category": "in all", "memory": memory_size(self.total)},
            note=f"Forecast, not measured. The peak is while a {phase} is computed; what comes elsewhere is 0 % of it.",
        )


def forecast(src: Source | str | os.PathLike[str], cfg: Any, device: str = "cuda") -> MemoryLedger:
    """The ledger of a fine-tune on one device: what it will hold in memory, by category.

    Args:
        src: A source, or what ``open_model`` takes.
        cfg: A ``TrainConfig`` or anything with its fields; which model it names does not matter here.
        device: ``cuda`` or ``cpu``: a CPU computes in float32 unless ``cfg`` says another, pages nothing, and has no context.

    Returns:
        A row a category, with its bytes and where they lie; ``phase`` is that of the peak, ``total`` the bytes there. Forecast,
        not measured.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        ConfigError: Where ``cfg`` has no field of a configuration, and for another device.

    >>> ledger = wb.forecast("builtin", wb.TrainConfig(max_length=256))
    >>> max(ledger.at_peak, key=ledger.at_peak.get), ledger.phase
    ('CUDA context', 'layer')
    """
    source = open_model(src)
    tensors, plan = planned(source, cfg, device)
    return ledger_of(tensors, source.config, source.name, plan)


def forecast_methods(src: Source | str | os.PathLike[str], cfg: Any, device: str = "cuda") -> list[MemoryLedger]:
    """The same model, data and adapters under five methods, from everything in 16 bits to QLoRA with all its parts.

    Args:
        src: A source, or what ``open_model`` takes.
        cfg: A ``TrainConfig`` or anything with its fields, as in ``forecast``.
        device: ``cuda`` or ``cpu``, as in ``forecast``.

    Returns:
        Five ledgers, from the method that holds most to QLoRA with a paged optimizer.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        ConfigError: Where ``cfg`` has no field of a configuration, and for another device.

    >>> [ledger.title for ledger in wb.forecast_methods("builtin", wb.TrainConfig())][1:3]
    ['LoRA on a 16-bit base', 'QLoRA, NF4']
    """
    src = open_model(src)
    tensors, plan = planned(src, cfg, device)
    base = dataclasses.replace(plan, optim="adamw_32bit", double_quant=False)
    four_bit = dataclasses.replace(base, method=QLORA)
    double = dataclasses.replace(four_bit, double_quant=True)
    plans = {
        "Full fine-tuning, 16-bit": dataclasses.replace(base, method=FULL),
        "LoRA on a 16-bit base": dataclasses.replace(base, method=LORA),
        f"QLoRA, {four_bit.spec.definition.title}": four_bit,
        "+ double quantization": double,
        "+ paged 8-bit optimizer": dataclasses.replace(double, optim="paged_adamw_8bit"),
    }
    ledgers = [ledger_of(tensors, src.config, src.name, plan, title) for title, plan in plans.items()]
    return ShownList(ledgers, f"Memory of fine-tuning {src.name}, forecast")


def planned(src: Source, cfg: Any, device: str) -> tuple[list[TensorInfo], Plan]:
    """The tensors as a load has them, and the plan: a checkpoint that is packed in 4 bits decides how they are held."""
    tensors, spec = as_loaded(src)
    plan = Plan.of(cfg, device)
    if spec is not None:
        plan = dataclasses.replace(plan, quant_type=spec.format, block_size=spec.block_size, double_quant=spec.double_quant)
    return taken(tensors, src.config), plan


def ledger_of(tensors: list[TensorInfo], config: Mapping[str, Any], model: str, plan: Plan, title: str = "") -> MemoryLedger:
    """The ledger of a plan on these tensors, as ``planned`` gave them; ``config`` is the model's config.json."""
    weights = base_weights(tensors, plan)
    parameters = _trained(tensors, plan, config)
    state = _optimizer_state(parameters, plan)
    rows = _rows(weights)
    if plan.method == QLORA and plan.compute_bytes == 2 and not plan.upcast_to_fp32:
        stay = "all that is not in 4 bits: upcast_to_fp32, peft's way, would take twice that"
        rows = [dataclasses.replace(row, note=stay) if row.category == FULL_WEIGHTS else row for row in rows]
    known, note = COMPUTED, f"{sum(parameters.values()):,} parameters in fp32"
    if (between := trained_between(tensors, plan, config)) is not None:
        known = ESTIMATED
        note = f"{note}, by names alone: the model's type is not known here; between {between[0]:,} and {between[1]:,}"
    size = 4
    if plan.method == FULL:
        size, note = plan.compute_bytes, "of every weight, in its dtype"
    else:
        rows.append(LedgerRow(ADAPTERS, 4 * sum(parameters.values()), known, note))
        note = "of the adapters, fp32"
    rows += [dataclasses.replace(row, known=known) for row in _rows(state)]
    gradients = LedgerRow(GRADIENTS, size * sum(parameters.values()), known, note)
    rows += transient(tensors, config, plan, parameters, gradients)
    adapters = [Piece(ADAPTERS, name, 4 * numel) for name, numel in parameters.items() if plan.method != FULL]
    pieces = (*weights, *adapters, *state)
    return MemoryLedger(title or plan.method, model, plan, tuple(r for r in rows if r.bytes), pieces)


def _rows(pieces: Iterable[Piece]) -> list[LedgerRow]:
    sums: dict[str, int] = defaultdict(int)
    for piece in pieces:
        sums[piece.category] += piece.bytes
    return [row(name, sums[name]) for name in BY_NAME if name in sums]


_FITS, _CLOSE = 0.85, 0.91
"""Of a GPU's memory: up to what need, without slack, steps were seen to complete on a T4, and where one ran out.

Anassbzdd/fitcheck, ``data/measurements``: a Kaggle T4, torch 2.10 and 2.14.
"""


@dataclass(frozen=True, repr=False)
class Fit(Shown):
    """Whether a ledger fits a GPU."""

    gpu: Gpu
    verdict: str
    """``fits``: up to 85 % of the GPU is needed; ``close``: up to 91 %; ``pages``: only if the paged optimizer state moves out;
    ``does not fit``."""
    headroom: int
    """Bytes that may still be needed before it neither fits nor is close; negative where they are missing."""
    ledger: MemoryLedger
    """The ledger on this GPU."""

    @property
    def spare(self) -> int:
        """Bytes that could be taken and it would still fit; negative where it does not."""
        return int(_FITS * self.gpu.usable) - self.ledger.needed

    def _line_(self) -> Line:
        left = f"{memory_size(self.headroom)} left" if self.headroom >= 0 else f"{memory_size(-self.headroom)} missing"
        return {"GPU": self.gpu.name, "usable memory": memory_size(self.gpu.usable), "forecast": self.verdict, "room": left}

    def _show_(self) -> View:
        return View(f"Forecast on {self.gpu.name}: {self.verdict}", self._line_())


def fit(ledger: MemoryLedger, gpu: Gpu | str) -> Fit:
    """The judgement of a ledger against a GPU.

    Args:
        ledger: What ``forecast`` gave.
        gpu: A ``Gpu`` or its name, as ``gpus.find`` has it.

    Returns:
        ``fits``, ``close``, ``pages`` or ``does not fit``; the bytes of headroom; and the ledger on that GPU.

    Raises:
        WorkbenchError: Where ``ledger`` is no forecast.
        ConfigError: For an unknown GPU.

    >>> wb.fit(wb.forecast("builtin", wb.TrainConfig()), "T4").verdict
    'fits'
    """
    if not is_a(ledger, MemoryLedger):
        what, remedy = f"{described(ledger)} is no forecast.", "Give that of wb.forecast(src, config)."
        raise WorkbenchError(what, where="ledger", remedy=remedy)
    gpu = find(gpu)
    ledger = ledger.on(gpu)
    headroom = int(_CLOSE * gpu.usable) - ledger.needed
    if headroom >= 0:
        verdict = "fits" if ledger.needed <= _FITS * gpu.usable else "close"
    else:
        verdict = "pages" if headroom + ledger.managed >= 0 else "does not fit"
    return Fit(gpu, verdict, headroom, ledger)
