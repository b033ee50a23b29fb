"""The pager: what a fine-tune would page on a GPU with too little memory. A simulation, never a measurement.

Covers the working set of a QLoRA, LoRA or full fine-tune over forward, backward and optimizer, layer by layer, from the same
figures as the forecast (``memory``), the pages that move under a budget (``lru``), and what PCIe would charge for them
at its nominal rate. Does not cover what a driver really does: that is measured by ``training.cupti`` where there is a GPU.

Only what bitsandbytes puts into managed memory can leave the device: Adam's moments of parameters from ``page_min_numel``
elements on, under a paged optimizer. ``managed="everything"`` shows what would happen if all of it could.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ConfigError
from workbench.given import is_number
from workbench.memory.footprint import FULL, activations
from workbench.memory.forecast import MemoryLedger, forecast
from workbench.memory.gpus import Gpu, find
from workbench.memory.ledger import (
    ACTIVATIONS,
    ADAPTERS,
    BASE,
    BY_NAME,
    FULL_WEIGHTS,
    GRADIENTS,
    GROUPS,
    LIVE,
    LOGITS,
    OPTIMIZER,
    PAGED,
    SCALES,
    SCRATCH,
)
from workbench.memory.lru import Bytes, Extent, Moment, demand, move
from workbench.show import Shown, View, sparkline
from workbench.sources import Source, open_model
from workbench.sources.kinds import layer_of
from workbench.sources.packed import as_loaded
from workbench.sources.tensor_info import EMBEDDINGS
from workbench.text import count, memory_size

if TYPE_CHECKING:
    import pandas as pd

PAGE_SIZES = (2 << 20, 64 << 10)
"""2 MiB: what NVIDIA's driver evicts at a time (the largest chunk of its open kernel module, uvm_pmm_gpu.h); 64 KiB: what a
page fault usually brings at least (its prefetcher's smallest region)."""
PCIE: Mapping[str, float] = MappingProxyType(
    {f"PCIe {name}.0 x16": 16 * rate * 128 / 130 / 8 for name, rate in (("3", 8e9), ("4", 16e9), ("5", 32e9))}
)
"""Bytes a second each way, by the specification: 16 lanes × transfers a second × 128/130 (coding) / 8. Real transfers take
longer, and page faults longer still."""
CATEGORIES = ("weights", "scales", ADAPTERS, GRADIENTS, ACTIVATIONS, OPTIMIZER, PAGED, SCRATCH)
KEPT = "kept by the allocator"
_COLUMNS = {BASE: "weights", SCALES: "scales", LIVE: ACTIVATIONS}
_BARS = 60
"""Moments of a step that a value shows itself with."""
_STEPS = 3
"""Simulated steps: in the first the optimizer's state comes into being, and from the second on they repeat."""


@dataclass(frozen=True, repr=False)
class PagerSimulation(Shown):
    """What a budget makes of a step. Simulated; arrays run over the moments of three steps, in bytes."""

    model: str
    budget: int
    page_size: int
    bandwidth: float
    """Bytes a second that the bus carries each way."""
    least: int
    """The budget below which memory runs out, however much is paged."""
    enough: int
    """The budget from which on nothing is evicted."""
    step: Bytes
    """(moments,): from 1."""
    phase: tuple[str, ...]
    """``load``, ``forward``, ``backward`` or ``optimizer``."""
    name: tuple[str, ...]
    """The layer, or what it is otherwise."""
    categories: tuple[str, ...]
    resident: Bytes
    """(moments, categories): bytes on the device; their sum never exceeds the budget."""
    host: Bytes
    """(moments,): managed bytes on the host."""
    h2d: Bytes
    d2h: Bytes
    """(moments,): bytes that move each way; all of ``d2h`` is evictions."""
    out_of_memory: str
    """Where memory ran out, "" where it did not."""
    needed: int
    """What has to be on the device there, all else paged out; 0 where memory did not run out."""

    @property
    def per_step(self) -> Bytes:
        """(steps, 2): bytes to the device and to the host. The last row is what every later step repeats."""
        steps = int(self.step.max(initial=0))
        columns = [np.bincount(self.step, moved, steps + 1)[1:] for moved in (self.h2d, self.d2h)]
        return np.stack(columns, axis=1).astype(np.int64)

    @property
    def evictions(self) -> Bytes:
        """(steps,): pages evicted in each step."""
        return self.per_step[:, 1] // self.page_size

    @property
    def bus_seconds(self) -> float:
        """What a step takes on the bus at its nominal rate, one direction after the other."""
        steps = self.per_step
        return float(steps[-1].sum() / self.bandwidth) if len(steps) else 0.0

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""
        with_budget = f"Simulated, with {memory_size(self.budget)}: "
        if self.out_of_memory:
            return f"{with_budget}out of memory at {self.out_of_memory}; {memory_size(self.least)} is the least that would do."
        if not self.d2h.any():
            return f"{with_budget}nothing is evicted; {memory_size(self.enough)} would do for that."
        to_device, to_host = self.per_step[-1].tolist()
        return (
            f"{with_budget}each step evicts {count(int(self.evictions[-1]))} pages ({memory_size(to_host)}) and brings "
            f"{memory_size(to_device)} back, {self.bus_seconds:.2g} s on the bus at its nominal rate; with "
            f"{memory_size(self.enough)} nothing is evicted."
        )

    def _show_(self) -> View:
        last = np.flatnonzero(self.step == self.step.max(initial=0))
        some = last[np.linspace(0, last.size - 1, min(last.size, _BARS)).astype(int)] if last.size else last
        facts = {
            "budget": memory_size(self.budget), "least that would do": memory_size(self.least),
            "nothing is evicted from": memory_size(self.enough), "pages of": memory_size(self.page_size),
            "bus, each way": f"{self.bandwidth / 1e9:.3g} GB/s, nominal",
            "on the GPU, over a step": sparkline(self.resident[some].sum(1)),
            "on the host, over a step": sparkline(self.host[some]),
        }  # fmt: skip
        lines = [
            {"step": f"{i}", "to the GPU": memory_size(h2d), "to the host": memory_size(d2h), "pages evicted": f"{evicted:,}"}
            for i, ((h2d, d2h), evicted) in enumerate(zip(self.per_step.tolist(), self.evictions.tolist(), strict=True), 1)
        ]
        return View(f"Simulated paging of {self.model}", facts, lines, self.summary)

    def to_frame(self) -> pd.DataFrame:
        """One line a moment: step, phase, name, the categories' bytes on the device, host, h2d, d2h, bus_seconds."""
        import pandas as pd

        frame = pd.DataFrame({"step": self.step, "phase": self.phase, "name": self.name})
        frame[list(self.categories)] = self.resident
        return frame.assign(host=self.host, h2d=self.h2d, d2h=self.d2h, bus_seconds=(self.h2d + self.d2h) / self.bandwidth)


def simulate_paging(
    src: Source | str | os.PathLike[str], cfg: Any, budget: float | Gpu | str, *, page_size: int = PAGE_SIZES[0],
    bandwidth: float | str = PCIE["PCIe 3.0 x16"], managed: str = "as configured", keeps_freed: bool = True,
) -> PagerSimulation:  # fmt: skip
    """What a fine-tune would page within a budget of memory.

    Args:
        src: A source, or what ``open_model`` takes.
        cfg: A ``TrainConfig`` or anything with its fields, as in ``forecast``.
        budget: Bytes, a ``Gpu``, or a GPU's name (see ``gpus.find``).
        page_size: Bytes of a page.
        bandwidth: Bytes a second between host and device, or a name of ``PCIE``.
        managed: ``as configured``, or ``everything``.
        keeps_freed: PyTorch's allocator keeps what was freed, so that after a step's peak nothing comes back into what was
            evicted for it; False shows memory that breathes, as in the QLoRA paper's account.

    Returns:
        Over the moments of three steps the bytes on the device by category, those on the host, and those moved each way.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        ConfigError: For a budget, page size or bandwidth that is no positive number, an unknown GPU or name, another
            ``managed``, and where ``cfg`` has no field of a configuration.

    >>> wb.simulate_paging("builtin", wb.TrainConfig(page_min_numel=1), "T4").summary
    'Simulated, with 14.56 GiB: nothing is evicted; 227.49 MiB would do for that.'
    """
    src = open_model(src)
    size, rate = _checked(budget, page_size, bandwidth, managed)
    extents, moments = working_set(src, cfg, managed == "everything")
    # Loading, then the steps, each the same.
    times = [moments[0], *list(moments[1:]) * _STEPS]
    steps = np.array([1, *np.repeat(np.arange(1, _STEPS + 1), len(moments) - 1)], np.int64)
    need = demand(extents, times, page_size, keeps_freed)
    moved = move(extents, times, size, page_size, keeps_freed)
    done = len(moved.host)
    failed = times[done] if done < len(times) else None
    needed = int(need.reserved[done]) + page_size * any(extents[e].managed for e in failed.touches) if failed else 0
    kept = (need.reserved - need.fixed)[:done, None]
    columns = [[i for i, e in enumerate(extents) if e.category == category] for category in CATEGORIES]
    resident = np.concatenate([*(moved.resident[:, c].sum(1, keepdims=True) for c in columns), kept], axis=1)
    return PagerSimulation(
        model=src.name, budget=size, page_size=page_size, bandwidth=rate,
        least=int(need.reserved.max()) + page_size * bool(need.managed.any()), enough=int((need.reserved + need.managed).max()),
        step=steps[:done], phase=tuple(m.phase for m in times[:done]), name=tuple(m.name for m in times[:done]),
        categories=(*CATEGORIES, KEPT), resident=resident, host=moved.host, h2d=moved.h2d, d2h=moved.d2h,
        out_of_memory=f"{failed.phase}, {failed.name}" if failed else "", needed=needed,
    )  # fmt: skip


def _checked(budget: float | Gpu | str, page_size: int, bandwidth: float | str, managed: str) -> tuple[int, float]:
    size = find(budget).usable if isinstance(budget, str | Gpu) else budget
    if is_number(size) and size == round(size):  # 15.75e9
        size = int(size)
    bandwidth = PCIE.get(bandwidth, bandwidth) if isinstance(bandwidth, str) else bandwidth
    faults = [
        f"{name} is {value!r}; it must be {wanted}."
        for name, value, wanted, right in (
            ("budget", size, "a number of bytes, 1 or more", isinstance(size, int) and size >= 1),
            ("page_size", page_size, "a number of bytes, 4,096 or more", isinstance(page_size, int) and page_size >= 4096),
            ("bandwidth", bandwidth, "bytes a second, above 0", isinstance(bandwidth, int | float) and bandwidth > 0),
            ("managed", managed, "'as configured' or 'everything'", managed in ("as configured", "everything")),
        )
        if not right
    ]
    if faults:
        raise ConfigError(faults, where="simulate_paging", remedy="Change these and try again.")
    return int(size), float(bandwidth)


def working_set(src: Source, cfg: Any, everything: bool = False) -> tuple[list[Extent], list[Moment]]:
    """The extents of a fine-tune and the moments of loading it (the first) and of one step (the others).

    What a layer touches together lies together. Activations are the forecast's estimate, shared out evenly over the layers.
    """
    ledger = forecast(src, cfg, "cuda")
    return _Timeline(src, ledger, everything).moments(max(1, getattr(cfg, "gradient_accumulation_steps", 1)))


class _Timeline:
    """The extents of a ledger by layer, and which moments touch them."""

    def __init__(self, src: Source, ledger: MemoryLedger, everything: bool) -> None:
        self.extents: list[Extent] = []
        self.everything = everything
        self.checkpointing = ledger.plan.gradient_checkpointing
        tensors = as_loaded(src)[0]
        embeddings = {t.name for t in tensors if t.role in EMBEDDINGS}
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for piece in ledger.pieces:
            place = _place(piece.tensor, embeddings)
            sums[place, _column(piece.category)] += piece.bytes
            if piece.category == ADAPTERS or (ledger.plan.method == FULL and piece.category == FULL_WEIGHTS):
                sums[place, GRADIENTS] += piece.bytes
        inner = {place for place, _ in sums if place not in _OUTER}
        self.layers = sorted(inner, key=lambda place: ("decoder" in place, _natural(place)))
        self.parts = {key: self._extent(key[1], key[0], size) for key, size in sums.items()}
        kept = activations(tensors, src.config, ledger.plan)
        share = kept.checkpoints if self.checkpointing else kept.all_layers
        per_layer = ledger.plan.tokens * share // max(1, len(self.layers))
        self.kept = {place: self._extent(ACTIVATIONS, place, per_layer) for place in self.layers}
        again = ledger.plan.tokens * kept.largest_layer if self.checkpointing else 0
        self.again = self._extent(ACTIVATIONS, "one layer computed again", again)
        self.logits = self._extent(ACTIVATIONS, LOGITS, ledger[LOGITS])
        scratch = sum(ledger[name] for name in GROUPS[SCRATCH])
        self.scratch = self._extent(SCRATCH, SCRATCH, scratch, fixed=True)

    def _extent(self, category: str, name: str, size: int, fixed: bool = False) -> int:
        managed = not fixed and (self.everything or category == PAGED)
        self.extents.append(Extent(category, name, size, managed))
        return len(self.extents) - 1

    def _at(self, place: str, *categories: str) -> tuple[int, ...]:
        return tuple(self.parts[place, c] for c in categories if (place, c) in self.parts)

    def moments(self, batches: int) -> tuple[list[Extent], list[Moment]]:
        """All extents, and the moments of loading and of a step of so many batches."""
        base = ("weights", "scales", ADAPTERS)
        there = {place for place, _ in self.parts}
        places = [place for place in (_BEFORE, *self.layers, _AFTER) if place in there]
        everywhere = tuple(i for place in places for i in self._at(place, *base))
        step: list[Moment] = []
        for _ in range(batches):
            step += [self._forward(place, base) for place in places]
            step.append(Moment("forward", LOGITS, (self.logits,), (self.logits,)))
            step += [self._backward(place, base, place == places[-1]) for place in reversed(places)]
        gradients = tuple(i for place in places for i in self._at(place, GRADIENTS))
        for place in places:
            if state := self._at(place, OPTIMIZER, PAGED):
                touched = self._at(place, ADAPTERS, GRADIENTS)
                step.append(Moment("optimizer", place, state, (*touched, *state)))
        step[-1] = dataclasses.replace(step[-1], frees=gradients)
        return self.extents, [Moment("load", "model and adapters", (*everywhere, self.scratch)), *step]

    def _forward(self, place: str, base: Sequence[str]) -> Moment:
        kept = (self.kept[place],) if place in self.kept else ()
        return Moment("forward", place, kept, (*self._at(place, *base), *kept))

    def _backward(self, place: str, base: Sequence[str], first: bool) -> Moment:
        kept = (self.kept[place],) if place in self.kept else ()
        again = (self.again,) if kept and self.checkpointing else ()
        gradients = self._at(place, GRADIENTS)
        logits = (self.logits,) if first else ()
        touches = (*logits, *kept, *self._at(place, *base), *again, *gradients)
        return Moment("backward", place, (*again, *gradients), touches, (*logits, *kept, *again))


_BEFORE, _AFTER = _OUTER = ("embedding", "norm and head")


def _column(category: str) -> str:
    """Where the simulation counts a category of the forecast: what may leave the device apart, and else by its group."""
    group = BY_NAME[category].group
    return PAGED if category == PAGED else _COLUMNS.get(group, group)


def _place(tensor: str, embeddings: set[str]) -> str:
    """A tensor's layer; outside the layers the embedding comes before them and everything else after."""
    if layer_of(tensor) is not None and (match := re.match(r"^(.*?\.\d+)\.", tensor)):
        return match[1]
    return _BEFORE if tensor in embeddings or tensor.partition(".lora_")[0] + ".weight" in embeddings else _AFTER


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
