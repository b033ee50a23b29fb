"""Measuring what a run's memory goes to, in the worker: the live tensors by category, and what a forward pass keeps.

Covers the walk over a model's and an optimizer's tensors (storages counted once), the bytes that autograd saves for the
backward pass, with and without checkpointing, and the events that record both at marked moments. A forward pass is watched in
the first step, and after that only where a batch is larger than any before: other steps run as if this were not here. Does not
judge: ``receipt_meter`` does. Worker only (needs torch).
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from workbench import compat
from workbench.errors import WorkbenchError
from workbench.memory.footprint import QLORA, Plan
from workbench.memory.forecast import forecast
from workbench.memory.ledger import (
    ABSMAX,
    ACTIVATIONS,
    ADAPTERS,
    BUFFERS,
    CASTS,
    CODEBOOKS,
    FOUR_BIT,
    FULL_WEIGHTS,
    GRADIENTS,
    INTEGERS,
    LOGITS,
    OF_TRAINING,
    OPTIMIZER,
    PAGED,
    SAVED,
    SECOND_LEVEL,
    UPCAST,
    WEIGHTS,
)
from workbench.sources import Source
from workbench.training.config import TrainConfig
from workbench.training.events import EventWriter
from workbench.training.host import host_counters
from workbench.training.watch.shortage import Shortage, headroom, shortage
from workbench.training.worker import telemetry
from workbench.training.worker.offload import HiddenOnHost


class Walk:
    """Bytes of storages by category; a storage that several tensors share is counted where it is met first."""

    def __init__(self, categories: Iterable[str]) -> None:
        self.held = dict.fromkeys(categories, 0)
        self.seen: set[int] = set()

    def add(self, category: str, tensor: Any) -> None:
        """Counts a tensor's storage; anything else is passed over."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.held[category] += storage.nbytes()


def weights_held(model: Any, method: str) -> dict[str, int]:
    """Bytes of the model's parameters, quantization states and buffers, by the forecast's categories."""
    walk = Walk(WEIGHTS)
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            walk.add(FOUR_BIT, parameter)
            walk.add(ABSMAX, state.absmax)
            walk.add(CODEBOOKS, state.code)
            if state.nested:
                walk.add(SECOND_LEVEL, state.state2.absmax)
                walk.add(SECOND_LEVEL, state.offset)
                walk.add(CODEBOOKS, state.state2.code)
        elif not parameter.is_floating_point():
            walk.add(INTEGERS, parameter)
        elif "lora_" in name:
            walk.add(ADAPTERS, parameter)
        else:
            upcast = method == QLORA and parameter.dtype is torch.float32
            walk.add(UPCAST if upcast else FULL_WEIGHTS, parameter)
    for buffer in model.buffers():
        walk.add(BUFFERS, buffer)
    return walk.held


def training_held(model: Any, optimizer: Any) -> dict[str, int]:
    """Bytes of the gradients and of the optimizer's state; the part of it in managed memory by itself."""
    walk = Walk(OF_TRAINING)
    for parameter in model.parameters():
        walk.add(GRADIENTS, parameter.grad)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    for state in optimizer.state.values():
        for tensor in state.values() if isinstance(state, dict) else ():
            walk.add(PAGED if getattr(tensor, "is_paged", False) else OPTIMIZER, tensor)
    return walk.held


class Alive:
    """Storages that were met, as long as they live: one that is freed, whose address may be taken anew, no longer counts."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def add(self, category: str, tensor: torch.Tensor) -> None:
        """Takes note of a tensor's storage."""
        storage = tensor.untyped_storage()
        known = self._met.get(storage.data_ptr())
        if known is None or known[0]() is None:
            self._met[storage.data_ptr()] = weakref.ref(storage), storage.nbytes(), category

    def held(self) -> dict[str, int]:
        """Bytes by category now."""
        sums = dict.fromkeys(SAVED, 0)
        for storage, nbytes, category in self._met.values():
            if storage() is not None:
                sums[category] += nbytes
        return sums


class Kept:
    """What one batch's forward pass keeps for the backward pass, and what checkpointing computes again there.

    ``saved``: bytes by category when the forward pass ends, parameters, buffers and quantization states left out.
    ``recomputed``: bytes of activations of the layer that takes most while it is computed again; 0 without checkpointing.
    Casts of weights and logits are distinguished from activations by their shapes.
    """

    def __init__(self, model: Any) -> None:
        fixed = Walk(("fixed",))
        for tensor in (*model.parameters(), *model.buffers()):
            fixed.add("fixed", tensor)
        self._fixed = frozenset(fixed.seen)
        self._casts = {tuple(p.shape) for p in model.parameters() if p.dtype is torch.float32 and p.ndim == 2}
        head = model.get_output_embeddings()
        self._vocabulary = head.weight.shape[0] if head is not None else -1
        self._in_forward = False
        self.saved = dict.fromkeys(SAVED, 0)
        self.recomputed = 0

    def _add(self, alive: Alive, tensor: torch.Tensor) -> None:
        if tensor.untyped_storage().data_ptr() in self._fixed:
            return
        shape, category = tuple(tensor.shape), ACTIVATIONS
        if tensor.dtype in (torch.bfloat16, torch.float16) and (shape in self._casts or shape[::-1] in self._casts):
            category = CASTS
        elif shape and shape[-1] == self._vocabulary:
            category = LOGITS
        alive.add(category, tensor)

    @contextlib.contextmanager
    def forward(self, on_host: HiddenOnHost | None = None) -> Iterator[None]:
        """Around the forward pass; its result must be alive when this ends. What ``on_host`` moves is not counted."""
        alive = Alive()

        def pack(tensor: torch.Tensor) -> Any:
            kept = on_host.pack(tensor) if on_host else tensor
            if kept is tensor:
                self._add(alive, tensor)
            return kept

        self._in_forward = True
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, on_host.unpack if on_host else lambda tensor: tensor):
                yield
        finally:
            self._in_forward = False
        self.saved = alive.held()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Around the forward and the backward pass: while it is open, what checkpointing computes again is counted."""

        def layer() -> Callable[[torch.Tensor], None] | None:
            if self._in_forward:
                return None
            alive = Alive()

            def see(tensor: torch.Tensor) -> None:
                self._add(alive, tensor)
                self.recomputed = max(self.recomputed, alive.held()[ACTIVATIONS])

            return see

        with compat.saved_tensors_seen(layer):
            yield


class Account:
    """Records a run's memory as events: the forecast, what is held at marked moments, and what the largest batch took."""

    def __init__(
        self, plan: Plan, source: Callable[[], Source], writer: EventWriter, gpu: telemetry.CudaMemory | None = None
    ) -> None:
        self.plan, self.writer, self.gpu = plan, writer, gpu
        self._source = source
        self._on_host = HiddenOnHost() if plan.inputs_on_host else None
        self._largest = 0
        self._batch: dict[str, Any] = {}
        self._kept: Kept | None = None
        self._before = _rss() or 0
        self._others = 0

    def usable(self) -> int:
        """Bytes that there are for all that is forecast: on the GPU without other processes, on the host without libraries."""
        if self.gpu is not None:
            return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory) - self._others
        return max((_rss() or 0) - self._before, 0) + headroom()

    def shortage(self, config: TrainConfig, where: Mapping[str, Any], asked: int | None) -> Shortage:
        """The shortage of a batch that did not fit. Raises ``WorkbenchError`` where the model has no forecast."""
        return shortage(self._source(), self.plan, where, asked, self.usable(), config.gradient_accumulation_steps)

    def forecast(self) -> None:
        """Records what a full batch is forecast to take; where a model's shapes give no forecast, why."""
        try:
            ledger = forecast(self._source(), self.plan, self.plan.device)
        except WorkbenchError as error:
            self.writer.emit("log", level="warning", text=f"No memory forecast: {error}")
            return
        shape = [self.plan.per_device_train_batch_size, self.plan.max_length]
        rows = [dataclasses.asdict(row) for row in ledger.rows]
        self.writer.emit("forecast", device=self.plan.device, method=self.plan.method, shape=shape, rows=rows)

    def moment(self, name: str, model: Any = None, **fields: Any) -> None:
        """Records what the process takes now, and what of it the model's weights hold."""
        held = weights_held(model, self.plan.method) if model is not None else None
        self.writer.emit("memory", moment=name, rss=_rss(), held=held, gpu=self._counters(), **fields)

    def _counters(self) -> dict[str, int | None] | None:
        return self.gpu.counters(0) | {"nvml_process": self.gpu.process()} if self.gpu else None

    def context(self) -> None:
        """Makes the CUDA context, and records what the device had in use before and what the context took."""
        if self.gpu is None:
            return
        counters = self.gpu.counters(0)
        before, held = counters["nvml_used"], counters["reserved"] or 0
        self._others = before or 0
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        after = self.gpu.counters(0)
        used, reserved = after["nvml_used"], (after["reserved"] or 0) - held
        took = None if before is None or used is None else used - before - reserved
        self.moment("context", context=took, others=before)

    @contextlib.contextmanager
    def batch(self, model: Any, mask: torch.Tensor) -> Iterator[None]:
        """Around a forward and a backward pass; ``mask`` (rows, longest) is 1 at tokens. Watches larger ones only."""
        if self._on_host:
            self._on_host.of(model, *mask.shape)
        if mask.numel() <= self._largest:
            yield
            return
        self._largest = mask.numel()
        rows, longest = mask.shape
        self._batch = {"rows": rows, "longest": longest, "padded": mask.numel() - int(mask.sum()), "rss": _rss() or 0}
        self.writer.emit("batch", rows=rows, longest=longest)  # before it: memory may run out in it
        self._kept = kept = Kept(model)
        try:
            with kept.batch():
                yield
        finally:
            self._kept = None
        self._mark()
        self._batch |= {"saved": kept.saved, "recomputed": kept.recomputed}

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass of a batch."""
        if self._kept is None:
            hooks = (self._on_host.pack, self._on_host.unpack) if self._on_host else None
            with torch.autograd.graph.saved_tensors_hooks(*hooks) if hooks else contextlib.nullcontext():
                yield
            return
        with self._kept.forward(self._on_host):  # only the innermost pair of hooks applies: this one does both
            yield
        self._mark()

    def _mark(self) -> None:
        self._batch["rss"] = max(self._batch["rss"], _rss() or 0)

    def step(self, n: int, model: Any, optimizer: Any) -> None:
        """Between the optimizer's step and the end of its gradients: records the step if a batch of it was measured."""
        if "saved" not in self._batch:
            return
        self._mark()
        batch, self._batch = self._batch, {}
        held = weights_held(model, self.plan.method) | training_held(model, optimizer)
        rows, longest, padded = batch["rows"], batch["longest"], batch["padded"] > 0
        of_batch = dataclasses.replace(self.plan, per_device_train_batch_size=rows, max_length=longest, padded=padded)
        with contextlib.suppress(WorkbenchError):  # recorded once, by ``forecast``
            ledger = forecast(self._source(), of_batch, self.plan.device)
            batch["forecast"] = {row.category: row.bytes for row in ledger.rows}
        self.writer.emit("memory", moment="step", n=n, held=held, gpu=self._counters(), **batch)


def _rss() -> int | None:
    return host_counters().get("rss")
