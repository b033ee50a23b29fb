"""What would change a forecast: the fine-tune with one thing set otherwise, each judged against the GPU.

Covers which changes are worth a look as the fine-tune stands: smaller ones where it does not fit, larger ones where there is
room, and the other methods always. The forecast and the verdicts are ``memory/forecast.py``'s.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from workbench.memory.footprint import FULL, LORA, QLORA, Plan
from workbench.memory.forecast import Fit, fit, forecast
from workbench.memory.gpus import Gpu, find
from workbench.memory.ways import costs, ways_to_fit
from workbench.show import Line, Record, ShownTuple
from workbench.sources import Source, open_model
from workbench.text import memory_size

_RANKS = (16, 64)
_LEAST_LENGTH = 128
_PAGED_8BIT = "paged_adamw_8bit"


@dataclass(frozen=True, repr=False)
class Alternative(Record):
    """A fine-tune that differs in these fields of its configuration, and what it comes to."""

    fields: Mapping[str, Any]
    total: int
    """Bytes on this GPU, as ``MemoryLedger.total``."""
    fit: Fit

    def _line_(self) -> Line:
        change = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        verdict = {"forecast": memory_size(self.total), f"on {self.fit.gpu.name}": self.fit.verdict}
        return {"change": change, **verdict, "costs": costs(self.fields)}


def alternatives(src: Source | str | os.PathLike[str], cfg: Any, gpu: Gpu | str) -> tuple[Alternative, ...]:
    """Changes of a configuration, each by itself, with their verdicts.

    Where it does not fit, the cheapest changes after which it does come first, as one.

    Args:
        src: A source, or what ``open_model`` takes.
        cfg: A ``TrainConfig`` or anything with its fields, as in ``forecast``.
        gpu: A ``Gpu`` or its name, as ``gpus.find`` has it.

    Returns:
        The changes, each with its fields, its bytes in total on that GPU, and its ``Fit``: larger runs where there is room,
        else smaller ones, then the other methods.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        ConfigError: For an unknown GPU, and where ``cfg`` has no field of a configuration.

    >>> model = wb.PublishedShapes("Qwen/Qwen3-8B")
    >>> [(dict(a.fields), a.fit.verdict) for a in wb.alternatives(model, wb.TrainConfig(), "A100 40 GB")][:2]
    [({'max_length': 1024}, 'fits'), ({'per_device_train_batch_size': 8}, 'fits')]
    """
    source, gpu = open_model(src), find(gpu)
    present = forecast(source, cfg)
    plan = present.plan
    methods: list[dict[str, Any]] = [{"method": method} for method in (QLORA, LORA, FULL) if method != plan.method]
    if fit(present, gpu).verdict in ("fits", "close"):
        changes = [*_larger(plan, source.config.get("max_position_embeddings")), *methods]
    else:
        changes = [*_smaller(plan), *methods]
        if enough := {name: value for way in ways_to_fit(source, cfg, gpu) or () for name, value in way.fields.items()}:
            changes = [enough, *(change for change in changes if change != enough)]
    found = []
    for fields in changes:
        judged = fit(forecast(source, dataclasses.replace(plan, **fields)), gpu)
        found.append(Alternative(MappingProxyType(fields), judged.ledger.total, judged))
    return ShownTuple(found, f"What would change the forecast on {gpu.name}")


def _larger(plan: Plan, positions: Any) -> list[dict[str, Any]]:
    length, rows = 2 * plan.max_length, 2 * plan.per_device_train_batch_size
    rank = next((rank for rank in reversed(_RANKS) if rank != plan.lora_r), plan.lora_r)
    changes: list[dict[str, Any]] = [{"max_length": length}, {"per_device_train_batch_size": rows}]
    if plan.method != FULL:
        changes.append({"lora_r": rank})
    return [change for change in changes if change.get("max_length", 0) <= (positions if type(positions) is int else length)]


def _smaller(plan: Plan) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    if plan.per_device_train_batch_size > 1:
        changes.append({"per_device_train_batch_size": (plan.per_device_train_batch_size + 1) // 2})
    if plan.max_length > _LEAST_LENGTH:
        changes.append({"max_length": max(_LEAST_LENGTH, plan.max_length // 2)})
    if plan.optim != _PAGED_8BIT:
        changes.append({"optim": _PAGED_8BIT})
    if not plan.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    if plan.gradient_checkpointing and not plan.inputs_on_host:
        changes.append({"inputs_on_host": True})
    if plan.method == QLORA and not plan.norms_in_16_bits:
        changes.append({"norms_in_16_bits": True})
    if plan.method == QLORA and not plan.double_quant:
        changes.append({"double_quant": True})
    return changes
