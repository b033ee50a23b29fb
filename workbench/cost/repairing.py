"""How far a run's adapters make up for 4 bits, measured on real activations: ``python -m workbench.cost.repairing FOLDER PID``.

Covers passing held-out rows through the unquantized model, and through it with the weights that the run held, without an
adapter and with that of each checkpoint; and in one pass more, at each adapted module, the outputs' errors. Memory: the model
in the compute dtype, and of one module at a time a few float32 copies of its weight and its outputs. What the figures mean is
in ``repairs``, which gathers them. On a CPU, or on a GPU where there is one [not yet run on a GPU].
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.cost.divergence import Reference, gathered
from workbench.cost.engine import own_weights
from workbench.cost.process import Reporter, serve
from workbench.errors import RunError
from workbench.sources import TensorInfo
from workbench.sources.rule import TRANSPOSED
from workbench.training import data
from workbench.training.config import TrainConfig
from workbench.training.results.merging import Merge
from workbench.training.runs import Run, attach
from workbench.training.worker.batches import Collator
from workbench.training.worker.model import compute_dtype, load_base
from workbench.training.worker.trainer import measuring

Measured = Callable[[], AbstractContextManager[object]]
_TOKENS = 4_096
"""Tokens in one forward pass at most, padding counted."""


def measure(reporter: Reporter) -> None:
    """Works off a request of ``Repairs``: reports each module's errors as soon as they are known, for every checkpoint."""
    request = json.loads((reporter.root / "request.json").read_text("utf-8"))
    run = attach(request["run"])
    adapters = {int(step): Path(folder) for step, folder in request["adapters"].items()}
    merges = {step: Merge(run, folder, changed_ok=True) for step, folder in adapters.items()}  # the caller has checked the base
    merge = next(iter(merges.values()))
    infos = {merge.paths[t.name]: t for t in merge.tensors if merge.paths.get(t.name) in request["modules"]}
    if merge.source.path is None:
        raise RunError("the base model is no longer on this machine.", where=merge.source.name, remedy="Download it again.")
    batches = held_out_batches(run, merge.source.path, request["max_rows"])
    config = unquantized(merge.config)
    dtype = compute_dtype(config)
    model = load_base(config, merge.source.path, dtype, lambda: None)
    own_weights(model, merge.source.path)
    models = _Models(merges, model, Reference(batches, reporter.root), lambda: measuring(model, dtype))
    passes = 1 + len(request["models"]) if request["models"] else 0
    seen = (request["measured"] + (0 if passes else 2 + len(merges))) * len(batches)
    total, mask = seen + (passes + len(infos)) * len(batches), None
    for step in [None, *request["models"]] if passes else []:
        for _ in models.passed(step):
            seen += 1
            reporter.progress(seen, total)
        reporter.emit("model", step=step, **models.sums)
    models.restore()
    products = {path: np.zeros((2 + len(merges), 2)) for path in infos}

    def at_module(path: str, x: Any) -> None:
        nonlocal seen
        products[path] += _products(x[mask].float(), infos[path], list(merges.values()))
        if seen >= total - len(infos):  # the last batch
            (whole, _), (error, _), *adapted = products[path].tolist()
            for step, (left, undone) in zip(merges, adapted, strict=True):
                base, with_it = math.sqrt(_ratio(error, whole)), math.sqrt(_ratio(left, whole))
                along = _ratio(undone, error)
                reporter.emit("repair", name=path, step=step, error_base=base, error_adapted=with_it, along=along)
        seen += 1
        reporter.progress(seen, total)

    for path in infos:
        model.get_submodule(path).register_forward_pre_hook(lambda _, inputs, at=path: at_module(at, inputs[0]))
    if not infos:
        return
    inner = model.base_model_prefix  # without the head, which only logits need
    net = getattr(model, inner) if all(path.startswith(f"{inner}.") for path in infos) else model
    with measuring(model, dtype):
        for batch in batches:
            attended = batch["attention_mask"].to(model.device)
            mask = attended.bool()  # (rows, length): padding does not count as input
            net(input_ids=batch["input_ids"].to(model.device), attention_mask=attended)


class _Models:
    """The unquantized model, given the weights of the run's: in 4 bits without an adapter, and with that of a checkpoint."""

    def __init__(self, merges: Mapping[int, Merge], model: Any, reference: Reference, measured: Measured) -> None:
        self._merges, self._model, self._reference, self._measured = merges, model, reference, measured
        self._first = next(iter(merges.values()))
        parameters, prefix = dict(model.named_parameters()), f"{model.base_model_prefix}."
        changed = [t for t in self._first.tensors if self._first.in_four_bits(t) or t.name in self._first.paths]
        # A checkpoint of the bare model has names without the first part, which transformers adds on loading.
        self._weights = [(t, parameters[t.name if t.name in parameters else f"{prefix}{t.name}"]) for t in changed]

        self.sums: dict[str, Any] = {}
        """Of the last pass: each row's tokens, and the sums by the names of ``RowCosts``."""

    def passed(self, step: int | None) -> Iterator[None]:
        """Passes the rows through it, batch by batch; then ``sums`` are those of this pass.

        ``step``: None for the unquantized model, which must come first; 0 for 4 bits, with what the adapter begins with, if
        that is not nothing; else a checkpoint's.
        """
        if step is not None:
            merge = self._merges.get(step)
            self._write(lambda t: self._first.held(t) if merge is None else _with(merge, t))
        with self._measured():
            found = []
            for sums in self._reference.take(self._model) if step is None else self._reference.compare(self._model):
                found.append(sums)
                yield
        self.sums = gathered(found)

    def restore(self) -> None:
        """Makes it the unquantized model again."""
        self._write(self._first.original)

    def _write(self, value: Callable[[TensorInfo], NDArray[Any]]) -> None:
        with torch.no_grad():
            for info, parameter in self._weights:
                weight = value(info)
                turned = weight.T if info.layout == TRANSPOSED else weight
                parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(turned, np.float32)))


def _with(merge: Merge, info: TensorInfo) -> NDArray[Any]:
    """The weight with the adapter, if it has one."""
    held = merge.held(info)
    return merge.trained(info, held) if info.name in merge.paths else held


def unquantized(config: TrainConfig) -> TrainConfig:
    """As a LoRA run on the same model would hold its base."""
    return dataclasses.replace(config, method="lora", init_lora_weights=True, llm_int8_skip_modules=())


def held_out_batches(run: Run, model: Path, max_rows: int) -> list[dict[str, Any]]:
    """Held-out rows, or where the run has none the first that it learnt from, a forward pass at a time."""
    config = run.config
    tokenizer = data.open_tokenizer(model)
    rows = data.load(config, tokenizer, data.held_out_files(config), max_rows).rows
    size = max(_TOKENS // max(len(row.input_ids) for row in rows), 1)
    collator = Collator.of(tokenizer)
    return [collator.batch(rows[at : at + size]) for at in range(0, len(rows), size)]


def _products(x: Any, info: TensorInfo, merges: Sequence[Merge]) -> NDArray[np.float64]:
    """x (tokens, in) → (2 + checkpoints, 2): ‖Wx‖²; ‖E‖², with E = (W − Ŵ)x; and for each adapter's D ‖E − D‖² and ⟨E, D⟩."""
    original, held = merges[0].original(info), merges[0].held(info)

    def outputs(weight: NDArray[Any]) -> Any:
        y = x @ torch.from_numpy(weight).to(x.device).T  # (tokens, in) × (in, out)
        return y.double()

    error = outputs(original - held)
    found = [(_square(outputs(original)), 0.0), (_square(error), 0.0)]
    for each in merges:
        change = outputs(each.trained(info, held) - held)
        found.append((_square(error - change), float((error * change).sum())))
    return np.array(found)


def _square(y: Any) -> float:
    return float(y.square().sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], measure)
