"""How far a run's adapters make up for 4 bits, measured on real activations, module by module. Needs torch, peft, transformers.

Covers the forward pass of the unquantized model over held-out rows, and at each adapted module the outputs' errors with and
without the adapter of each checkpoint. Memory: the model in the compute dtype, and of one module at a time a few float32 copies
of its weight and its outputs. What the figures mean is in ``repairs``, which gathers them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.errors import RunError
from workbench.sources.base import Cancelled, Progress, TensorInfo, Watch
from workbench.training import data
from workbench.training.batches import Collator
from workbench.training.merging import Merge
from workbench.training.model import compute_dtype, load_base
from workbench.training.runs import Run
from workbench.training.trainer import measuring

_TOKENS = 4_096
"""Tokens in one forward pass at most, padding counted."""
Tell = Callable[[str, int, float, float, float], object]
"""Told as soon as they are known: a module's path, the checkpoint's steps, the error without and with its adapter, and how far
that goes back along the error itself."""


def measure_repairs(
    run: Run,
    adapters: dict[int, Path],
    max_rows: int,
    tell: Tell,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> None:
    """Tells the errors of every adapted module that was in 4 bits, for each of ``adapters`` (steps → folder).

    ``progress`` counts modules over all batches; once ``cancelled`` says yes it raises InterruptedError.
    """
    merges = {steps: Merge(run, folder) for steps, folder in sorted(adapters.items())}
    merge = next(iter(merges.values()))
    modules = {merge.paths[info.name]: info for info in merge.tensors if info.name in merge.paths and merge.in_four_bits(info)}
    config = dataclasses.replace(merge.config, method="lora", llm_int8_skip_modules=())
    if merge.source.path is None:
        raise RunError("the base model is no longer on this machine.", where=merge.source.name, remedy="Download it again.")
    batches = _batches(run, merge.source.path, max_rows)
    watch = Watch(len(modules) * len(batches), progress, cancelled)
    watch.check()
    dtype = compute_dtype(config)
    model = load_base(config, merge.source.path, dtype, watch.check)
    sums = {path: np.zeros((2 + len(merges), 2)) for path in modules}
    last = False

    def at_module(path: str, x: Any, kept: Any) -> None:
        watch.check()
        sums[path] += _products(x[kept].float(), modules[path], merges)
        if last:
            (whole, _), (error, _), *adapted = sums[path].tolist()
            for steps, (left, undone) in zip(merges, adapted, strict=True):
                tell(path, steps, math.sqrt(_ratio(error, whole)), math.sqrt(_ratio(left, whole)), _ratio(undone, error))
        watch.moved(1)

    mask: Any = None
    for path in modules:
        model.get_submodule(path).register_forward_pre_hook(lambda _, inputs, at=path: at_module(at, inputs[0], mask))
    inner = model.base_model_prefix + "."
    net = getattr(model, model.base_model_prefix) if all(path.startswith(inner) for path in modules) else model
    with measuring(model, dtype):
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            mask = batch["attention_mask"].to(model.device).bool()
            net(input_ids=batch["input_ids"].to(model.device), attention_mask=batch["attention_mask"].to(model.device))


def _batches(run: Run, model: Path, max_rows: int) -> list[dict[str, Any]]:
    """Held-out rows, or where the run has none the first that it learnt from, a forward pass at a time."""
    config = run.config
    tokenizer = data.open_tokenizer(model)
    rows = data.load(config, tokenizer, data.held_out_files(config), max_rows).rows
    size = max(_TOKENS // max(len(row.input_ids) for row in rows), 1)
    collator = Collator.of(tokenizer)
    return [collator.batch(rows[at : at + size]) for at in range(0, len(rows), size)]


def _products(x: Any, info: TensorInfo, merges: dict[int, Merge]) -> NDArray[np.float64]:
    """x (tokens, in) → (2 + checkpoints, 2): ‖Wx‖²; ‖E‖², with E = (W − Ŵ)x; and for each adapter's D ‖E − D‖² and ⟨E, D⟩."""
    merge = next(iter(merges.values()))
    original, held = merge.original(info), merge.held(info)

    def outputs(weight: NDArray[Any]) -> Any:
        y = x @ torch.from_numpy(weight).to(x.device).T  # (tokens, in) × (in, out)
        return y.double()

    error = outputs(original - held)
    found = [(_square(outputs(original)), 0.0), (_square(error), 0.0)]
    for each in merges.values():
        change = outputs(each.trained(info, held) - held)
        found.append((_square(error - change), float((error * change).sum())))
    return np.array(found)


def _square(y: Any) -> float:
    return float(y.square().sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
