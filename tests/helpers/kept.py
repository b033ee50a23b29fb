"""What autograd keeps of a batch on a model that is loaded and adapted as the worker does it, beside its forecast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import workbench as wb
from tests.helpers import tiny
from workbench.memory.footprint import Plan, activations


def loaded(config: wb.TrainConfig) -> Any:
    """The model as it is trained."""
    from workbench.training import data
    from workbench.training.worker.model import attach_adapters, compute_dtype, load_base

    tiny.quiet()
    base = load_base(config, data.model_folder(config.model), compute_dtype(config), lambda: None)
    model = attach_adapters(base, config).train()
    model.config.use_cache = False
    if config.gradient_checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def activation_bytes(model: Any, config: wb.TrainConfig, rows: int, length: int, padded: bool = False) -> tuple[int, int]:
    """Activations of one batch: forecast, and measured over a forward and a backward pass."""
    import torch

    from workbench.training.worker.accounting import Kept
    from workbench.training.worker.model import compute_dtype

    ids = torch.arange(rows * length).reshape(rows, length) % 100 + 3
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = int(not padded)
    dtype = compute_dtype(config)
    kept = Kept(model)
    with kept.batch():
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32), kept.forward():
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
    source = wb.open_model(config.model)
    plan = replace(Plan.of(config, "cpu"), per_device_train_batch_size=rows, max_length=length, padded=padded)
    forecast = activations(source.tensors(), source.config, plan).bytes(plan.tokens, plan.gradient_checkpointing)
    return forecast, kept.saved["activations"] + kept.recomputed
