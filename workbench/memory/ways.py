"""What would make a fine-tune fit: the cheapest changes of its configuration, each with what it saves and what it costs.

Tries changes in the order of what they cost, accuracy first, then time, by forecasts alone: ``memory/forecast.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from workbench.memory.footprint import QLORA, Plan
from workbench.memory.forecast import MemoryLedger, fit, ledger_of, planned
from workbench.memory.gpus import Gpu, find
from workbench.show import Line, Record, ShownTuple
from workbench.sources import Source, open_model
from workbench.text import memory_size


@dataclass(frozen=True, repr=False)
class Change(Record):
    """Fields of the configuration to change, and what that saves after the changes before it."""

    fields: Mapping[str, Any]
    saved: int

    def _line_(self) -> Line:
        change = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return {"change": change, "saves": memory_size(self.saved), "costs": costs(self.fields)}


_COSTS = {
    "double_quant": "scales in 8 bits",
    "optim": "moments in 8 bits",
    "gradient_checkpointing": "time: each layer is computed twice",
    "method": "another base, or other weights that are trained",
    "per_device_train_batch_size": "smaller batches, which more of them a step make up for",
    "max_length": "rows are cut shorter",
    "norms_in_16_bits": "rounding: losses moved by 0.002 on average on a CPU; not yet run on a GPU",
    "inputs_on_host": "time for inputs to move both ways, and pinned memory of the host; not yet run on a GPU",
}


def costs(fields: Iterable[str]) -> str:
    """What changing these fields to make a fine-tune smaller costs, in words; "" where nothing is known of it."""
    return "; ".join(_COSTS[name] for name in fields if name in _COSTS)


def ways_to_fit(src: Source | str | os.PathLike[str], cfg: Any, gpu: Gpu | str) -> tuple[Change, ...] | None:
    """The cheapest changes after which the fine-tune fits.

    Where nothing makes it fit, those after which it is close; where nothing does that, those after which it pages.

    Args:
        src: A source, or what ``open_model`` takes.
        cfg: A ``TrainConfig`` or anything with its fields, as in ``forecast``.
        gpu: A ``Gpu`` or its name, as ``gpus.find`` has it.

    Returns:
        The changes; () if it fits as it is, None if all of them together do not help.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        ConfigError: For an unknown GPU, and where ``cfg`` has no field of a configuration.

    >>> model = wb.PublishedShapes("Qwen/Qwen3-8B")
    >>> [dict(change.fields) for change in wb.ways_to_fit(model, wb.TrainConfig(max_length=2048), "T4")]
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
    tensors, plan = planned(src, cfg, device)
    steps = _changes(plan)

    @functools.cache
    def after(*chosen: int) -> MemoryLedger:
        changed = plan
        for i in chosen:
            changed = dataclasses.replace(changed, **steps[i])
        return ledger_of(tensors, src.config, src.name, changed)

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
    steps += [{name: True} for name in ("inputs_on_host", "norms_in_16_bits") if not getattr(plan, name)]
    length = plan.max_length
    while length > 256:
        length = max(256, length // 2)
        steps.append({"max_length": length})
    return steps
