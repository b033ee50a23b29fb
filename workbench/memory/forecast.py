"""Does it fit? The forecast of a fine-tune's memory, category by category, before anything is loaded.

Covers the ledger of one configuration, the same model under other methods, what double quantization saves, and the judgement
against a GPU's memory with the changes that would make it fit. What is computed from shapes and what is estimated is stated row
by row. Does not measure anything, and needs neither torch nor a GPU; nothing here has been checked on a GPU yet.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.given import described, is_a
from workbench.memory.footprint import (
    FULL,
    LORA,
    QLORA,
    Piece,
    Plan,
    activations,
    base_weights,
    in_four_bits,
    loaded,
    taken,
    trained_between,
)
from workbench.memory.footprint import optimizer_state as _optimizer_state
from workbench.memory.footprint import trained as _trained
from workbench.memory.gpus import Gpu, find
from workbench.memory.ledger import (
    ACTIVATIONS,
    ADAPTERS,
    BY_NAME,
    CASTS,
    COMPUTED,
    CONTEXT,
    DEQUANTIZED,
    DEVICE,
    ESTIMATED,
    GRADIENTS,
    LOGITS,
    MANAGED,
)
from workbench.show import Line, Record, Shown, ShownList, ShownTuple, View, bar
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.packed import as_loaded
from workbench.sources.tensor_info import EMBEDDINGS, HEADS
from workbench.text import memory_size, percent

if TYPE_CHECKING:
    import pandas as pd

_CUDA_CONTEXT = 500 * 2**20


@dataclass(frozen=True, repr=False)
class Row(Record):
    """One category of memory."""

    category: str
    bytes: int
    known: str
    """``computed`` from shapes, or ``estimated``."""
    note: str
    place: str = DEVICE
    """``device``, or ``managed``: memory that the driver may move to the host."""

    def _line_(self) -> Line:
        return {"category": self.category, "memory": memory_size(self.bytes), "known": self.known, "note": self.note}


@dataclass(frozen=True, repr=False)
class MemoryLedger(Shown):
    """What a fine-tune is forecast to take. The total is a sum of peaks, which do not all come at the same moment."""

    title: str
    model: str
    plan: Plan
    rows: tuple[Row, ...]
    pieces: tuple[Piece, ...]
    """The computed rows' bytes tensor by tensor."""

    @property
    def total(self) -> int:
        """All bytes, wherever they lie."""
        return sum(row.bytes for row in self.rows)

    @property
    def managed(self) -> int:
        """Bytes that may leave the device under pressure."""
        return sum(row.bytes for row in self.rows if row.place == MANAGED)

    def __getitem__(self, category: str) -> int:
        """The bytes of a category, 0 where the ledger has none."""
        return sum(row.bytes for row in self.rows if row.category == category)

    def to_frame(self) -> pd.DataFrame:
        """One line per row: category, bytes, known, place, note."""
        import pandas as pd

        return pd.DataFrame(
            [dataclasses.asdict(row) for row in self.rows], columns=["category", "bytes", "known", "place", "note"]
        )

    def _line_(self) -> Line:
        return {"forecast of": self.title, "in all": memory_size(self.total), "may page": memory_size(self.managed)}

    def _show_(self) -> View:
        plan = self.plan
        shape = f"{plan.per_device_train_batch_size} × {plan.max_length:,} tokens"
        lines = [
            {
                "category": row.category, "memory": memory_size(row.bytes), "of all": percent(row.bytes / self.total, 1),
                "": bar(row.bytes / self.total), "known": row.known + (", may page" if row.place == MANAGED else ""),
            }
            for row in self.rows
        ]  # fmt: skip
        return View(
            f"Forecast of {self.title} on {self.model}: {memory_size(self.total)} for {shape}, device {plan.device}",
            lines=lines,
            total={"category": "in all", "memory": memory_size(self.total)},
            note="Forecast, not measured: a sum of peaks, which do not all come at the same moment.",
        )


def forecast(src: Source | str | os.PathLike[str], cfg: Any, device: str = "cuda") -> MemoryLedger:
    """The ledger of fine-tuning ``src`` (a source, or what ``open_model`` takes) as ``cfg`` says, on one device.

    ``cfg`` is a ``TrainConfig`` or anything with its fields; which model it names does not matter here.
    ``device`` is ``cuda`` or ``cpu``: a CPU computes in float32 unless ``cfg`` says another, pages nothing, and has no context.

    >>> ledger = wb.forecast("builtin", wb.TrainConfig(max_length=256))
    >>> max(ledger.rows, key=lambda row: row.bytes).category, ledger.total
    ('CUDA context', 618457440)
    """
    source = open_model(src)
    tensors, plan = _planned(source, cfg, device)
    return _ledger(tensors, source.config, source.name, plan)


def forecast_methods(src: Source | str | os.PathLike[str], cfg: Any, device: str = "cuda") -> list[MemoryLedger]:
    """The same model, data and adapters under five methods, from everything in 16 bits to QLoRA with all its parts.

    >>> [ledger.title for ledger in wb.forecast_methods("builtin", wb.TrainConfig())][1:3]
    ['LoRA on a 16-bit base', 'QLoRA, NF4']
    """
    src = open_model(src)
    tensors, plan = _planned(src, cfg, device)
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
    ledgers = [_ledger(tensors, src.config, src.name, plan, title) for title, plan in plans.items()]
    return ShownList(ledgers, f"Memory of fine-tuning {src.name}, forecast")


def _planned(src: Source, cfg: Any, device: str) -> tuple[list[TensorInfo], Plan]:
    """The tensors as a load has them, and the plan: a checkpoint that is packed in 4 bits decides how they are held."""
    tensors, spec = as_loaded(src)
    plan = Plan.of(cfg, device)
    if spec is not None:
        plan = dataclasses.replace(plan, quant_type=spec.format, block_size=spec.block_size, double_quant=spec.double_quant)
    return taken(tensors, src.config), plan


def _ledger(tensors: list[TensorInfo], config: Mapping[str, Any], model: str, plan: Plan, title: str = "") -> MemoryLedger:
    weights = base_weights(tensors, plan)
    parameters = _trained(tensors, plan, config)
    state = _optimizer_state(parameters, plan)
    rows = _rows(weights)
    known, note = COMPUTED, f"{sum(parameters.values()):,} parameters in fp32"
    if (between := trained_between(tensors, plan, config)) is not None:
        known = ESTIMATED
        note = f"{note}, by names alone: the model's type is not known here; between {between[0]:,} and {between[1]:,}"
    size = 4
    if plan.method == FULL:
        size, note = plan.compute_bytes, "of every weight, in its dtype"
    else:
        rows.append(Row(ADAPTERS, 4 * sum(parameters.values()), known, note))
        note = "of the adapters, fp32"
    rows.append(Row(GRADIENTS, size * sum(parameters.values()), known, note))
    rows += [dataclasses.replace(row, known=known) for row in _rows(state)]
    rows += _transient(tensors, config, plan, parameters)
    adapters = [Piece(ADAPTERS, name, 4 * numel) for name, numel in parameters.items() if plan.method != FULL]
    return MemoryLedger(title or plan.method, model, plan, tuple(r for r in rows if r.bytes), (*weights, *adapters, *state))


def _rows(pieces: Iterable[Piece]) -> list[Row]:
    sums: dict[str, int] = defaultdict(int)
    for piece in pieces:
        sums[piece.category] += piece.bytes
    return [_row(name, sums[name]) for name in BY_NAME if name in sums]


def _row(name: str, size: int, note: str = "") -> Row:
    category = BY_NAME[name]
    return Row(name, size, category.known, note or category.note, category.place)


def _transient(tensors: list[TensorInfo], config: Mapping[str, Any], plan: Plan, parameters: Mapping[str, int]) -> list[Row]:
    """What comes and goes within a step (estimated)."""
    c, tokens = plan.compute_bytes, plan.tokens
    kept = activations(tensors, config, plan)
    how = "a layer's input each, and one layer computed again" if plan.gradient_checkpointing else "kept by every layer"
    shape = f"{plan.per_device_train_batch_size} × {plan.max_length:,} tokens"
    heads = [t.numel for t in loaded(tensors) if t.role in HEADS]
    embeddings = [t for t in tensors if t.role in EMBEDDINGS and len(t.shape) == 2]
    vocabulary = max((max(t.shape) for t in embeddings), default=0)
    rows = [
        _row(ACTIVATIONS, kept.bytes(tokens, plan.gradient_checkpointing), f"{shape}, {how}; {kept.formula}"),
        _row(
            LOGITS,
            tokens * vocabulary * 12,
            f"{shape} × vocabulary {vocabulary:,} × (4 + 4 + 4) bytes: log-probabilities, their gradient, that of the logits",
        ),
    ]
    if plan.method == QLORA:
        largest = max((t.numel for t in tensors if in_four_bits(t, plan)), default=0)
        rows.append(_row(DEQUANTIZED, largest * c))
    if plan.method != FULL and c == 2:
        head = sum(heads) or max((t.numel for t in embeddings), default=0)
        casts = sum(parameters.values()) + (head if plan.method == QLORA else 0)
        rows.append(_row(CASTS, casts * c))
    if plan.device == "cuda":
        rows.append(_row(CONTEXT, _CUDA_CONTEXT))
    return rows


@dataclass(frozen=True, repr=False)
class Fit(Shown):
    """Whether a ledger fits a GPU."""

    gpu: Gpu
    verdict: str
    """``fits``; ``close``: under a tenth is left, less than the estimates are good for; ``pages``: only if the paged optimizer
    state moves out; ``does not fit``."""
    headroom: int
    """Bytes left, negative where they are missing."""

    def _line_(self) -> Line:
        left = f"{memory_size(self.headroom)} left" if self.headroom >= 0 else f"{memory_size(-self.headroom)} missing"
        return {"GPU": self.gpu.name, "usable memory": memory_size(self.gpu.usable), "forecast": self.verdict, "room": left}

    def _show_(self) -> View:
        return View(f"Forecast on {self.gpu.name}: {self.verdict}", self._line_())


def fit(ledger: MemoryLedger, gpu: Gpu | str) -> Fit:
    """The judgement of a ledger against a GPU, given as a ``Gpu`` or by its name, as ``gpus.find`` has it.

    >>> wb.fit(wb.forecast("builtin", wb.TrainConfig()), "T4").verdict
    'fits'
    """
    if not is_a(ledger, MemoryLedger):
        what, remedy = f"{described(ledger)} is no forecast.", "Give that of wb.forecast(src, config)."
        raise WorkbenchError(what, where="ledger", remedy=remedy)
    gpu = find(gpu)
    left = gpu.usable - ledger.total
    if left >= gpu.usable // 10:
        verdict = "fits"
    elif left >= 0:
        verdict = "close"
    else:
        verdict = "pages" if left + ledger.managed >= 0 else "does not fit"
    return Fit(gpu, verdict, left)


@dataclass(frozen=True, repr=False)
class Change(Record):
    """Fields of the configuration to change, and what that saves after the changes before it."""

    fields: Mapping[str, Any]
    saved: int

    def _line_(self) -> Line:
        change = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return {"change": change, "saves": memory_size(self.saved)}


def ways_to_fit(src: Source | str | os.PathLike[str], cfg: Any, gpu: Gpu | str) -> tuple[Change, ...] | None:
    """The cheapest changes after which the fine-tune fits; () if it does as it is, None if all of them together do not help.

    Where nothing makes it fit, those after which it is close; where nothing does that, those after which it pages.

    >>> model = wb.PublishedShapes("Qwen/Qwen3-8B")
    >>> [dict(change.fields) for change in wb.ways_to_fit(model, wb.TrainConfig(), "T4")]
    [{'per_device_train_batch_size': 2}]
    """
    gpu = find(gpu)
    return _cheapest(
        open_model(src),
        cfg,
        "cuda",
        lambda ledger: ("fits", "close", "pages", "does not fit").index(fit(ledger, gpu).verdict),
        2,
    )


def cheapest(src: Source, cfg: Any, most: int, device: str = "cuda") -> tuple[Change, ...] | None:
    """The cheapest changes after which the forecast is at most ``most`` bytes; None if all of them together are not enough."""
    return _cheapest(src, cfg, device, lambda ledger: ledger.total > most, 0)


def _cheapest(
    src: Source, cfg: Any, device: str, short: Callable[[MemoryLedger], int], at_most: int
) -> tuple[Change, ...] | None:
    """The changes after which the ledger is as little ``short`` as after all of them; None if that is more than ``at_most``.

    One change where one is enough, and otherwise no more than are needed. Cheap is what costs little accuracy, then what costs
    little time.
    """
    tensors, plan = _planned(src, cfg, device)
    steps = _changes(plan)

    @functools.cache
    def after(*chosen: int) -> MemoryLedger:
        changed = plan
        for i in chosen:
            changed = dataclasses.replace(changed, **steps[i])
        return _ledger(tensors, src.config, src.name, changed)

    every = tuple(range(len(steps)))
    best = short(after(*every))
    if best > at_most:
        return None
    found = next(
        some for some in [(), *((i,) for i in every), *(every[:n] for n in every[2:]), every] if short(after(*some)) <= best
    )
    for i in found if len(found) > 1 else ():
        without = tuple(other for other in found if other != i)
        if short(after(*without)) <= best:
            found = without
    totals = [after(*found[:n]).total for n in range(len(found) + 1)]
    changes = (
        Change(MappingProxyType(steps[i]), before - then)
        for i, (before, then) in zip(found, itertools.pairwise(totals), strict=True)
    )
    return ShownTuple(changes, "The cheapest changes after which it fits, forecast")


def _changes(plan: Plan) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"double_quant": True}, {"optim": "paged_adamw_8bit"}, {"gradient_checkpointing": True}, {"method": QLORA},
    ]  # fmt: skip
    rows = plan.per_device_train_batch_size
    while rows > 1:
        rows = (rows + 1) // 2
        steps.append({"per_device_train_batch_size": rows})
    length = plan.max_length
    while length > 256:
        length = max(256, length // 2)
        steps.append({"max_length": length})
    return steps
