"""A run's adapter on other bases against what was trained, measured: ``python -m workbench.cost.deploying FOLDER PID``.

Covers putting each base's weights, merged with the adapter, into one model in 16 bits that multiplies in float32, and passing
held-out rows through it. A second model shares all weights with the first but embeddings and head, which the reference needs
as they are. What the figures mean is in ``deployed``, which gathers them. On a CPU, or on a GPU where there is one [not yet
run on a GPU].
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.cost.divergence import Reference, RowSums, gathered
from workbench.cost.engine import own_weights, widen
from workbench.cost.process import Reporter, serve
from workbench.cost.repairing import held_out_batches, unquantized
from workbench.errors import ModelError, RunError
from workbench.quant.quantize import quantize
from workbench.quant.spec import QuantSpec
from workbench.sources import TensorInfo
from workbench.sources.exact import loaded_into
from workbench.sources.rule import FUSED, SPLIT, TRANSPOSED
from workbench.sources.tensor_info import EMBEDDINGS, HEADS
from workbench.training.results.gguf_files import Read, decoded, encoded
from workbench.training.results.gguf_layouts import Layout
from workbench.training.results.gguf_model import check_same_base
from workbench.training.results.merging import Merge
from workbench.training.runs import attach
from workbench.training.worker.model import load_base

Array = NDArray[Any]
Values = Callable[[TensorInfo], Array]
_BLOCK = 32


def measure(reporter: Reporter) -> None:
    """Works off a request of ``Deployed``: reports each base's sums by row as soon as they are known."""
    request = json.loads((reporter.root / "request.json").read_text("utf-8"))
    run = attach(request["run"])
    merge = Merge(run, changed_ok=True)  # the caller has checked the base
    if merge.source.path is None:
        raise RunError("the base model is no longer on this machine.", where=merge.source.name, remedy="Download it again.")
    batches = held_out_batches(run, merge.source.path, request["max_rows"])
    stored = [info.dtype for info in merge.tensors]
    dtype = torch.float16 if stored.count("F16") > len(stored) / 2 else torch.bfloat16
    model = load_base(unquantized(merge.config), merge.source.path, dtype, lambda: None)
    own_weights(model, merge.source.path)
    deploying = _Deploying(merge, model)
    total, done = (1 + len(request["bases"])) * (len(batches) + len(merge.tensors)), 0

    def passed() -> None:
        nonlocal done
        done += 1
        reporter.progress(done, total)

    reference = Reference(batches, reporter.root)
    for _ in deploying.put_trained():
        passed()
    reporter.emit("trained", **_together(reference.take(deploying.model), passed))
    for key, base in request["bases"].items():
        for _ in deploying.put(base):
            passed()
        reporter.emit("base", key=key, base=base, **_together(reference.compare(deploying.on(base)), passed))


def _together(batches: Iterator[RowSums], passed: Callable[[], None]) -> dict[str, Any]:
    found = []
    for sums in batches:
        found.append(sums)
        passed()
    return gathered(found)


class _Deploying:
    """The model whose weights are exchanged, base by base."""

    def __init__(self, merge: Merge, model: Any) -> None:
        self.merge, self.model = merge, model
        ends = {id(p) for module in (model.get_input_embeddings(), model.get_output_embeddings()) for p in module.parameters()}
        shared = {id(p): p for p in (*model.parameters(), *model.buffers()) if id(p) not in ends}
        self._twin = copy.deepcopy(model, shared)  # with embeddings and head of its own
        for each in (model, self._twin):
            widen(each)
        self._ends = [t.name for t in merge.tensors if t.role in EMBEDDINGS | HEADS]
        self._loaded = loaded_into(model, (t.name for t in merge.tensors))
        self._own = {each: self._parameters(each) for each in (model, self._twin)}
        """Of each model: a checkpoint's tensor → the parameter that it alone is loaded into."""
        for info in merge.tensors:
            held = info.name in merge.paths or merge.in_four_bits(info)
            parameter = self._own[model].get(info.name)
            if held if parameter is None else tuple(parameter.shape) != info.shape:
                raise self._refused(info)

    def _parameters(self, model: Any) -> dict[str, Any]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        alone = {name: loaded for name, (loaded, layout) in self._loaded.items() if layout not in (FUSED, SPLIT)}
        return {name: parameters[loaded] for name, loaded in alone.items() if loaded in parameters}

    def _refused(self, info: TensorInfo) -> ModelError:
        what = f"transformers loads {info.name} into no parameter of its own (it is fused, split or named otherwise)."
        remedy = 'Ask for the bases "original" and "nf4", which leave it as it is, or save the model anew with transformers 5.'
        return ModelError(what, where=self.merge.source.name, remedy=remedy)

    def on(self, base: str) -> Any:
        """The model that has the base's weights: the twin where embeddings and head differ too."""
        return self.model if base in ("original", "nf4") else self._twin

    def put_trained(self) -> Iterator[None]:
        """The weights as the run held them, with its adapter. Yields after each tensor."""
        for info in self.merge.tensors:
            if info.name in self.merge.paths:
                self._set(self.model, info, self.merge.trained(info, self.merge.held(info)))
            elif self.merge.in_four_bits(info):
                self._set(self.model, info, self.merge.held(info))
            yield

    def put(self, base: str) -> Iterator[None]:
        """A base's weights, with the adapter. Yields after each tensor."""
        values, target = self._values(base), self.on(base)
        for info in self.merge.tensors:
            if target is self._twin and self._loaded.get(info.name, ("", ""))[1] in (FUSED, SPLIT):
                raise self._refused(info)
            if target is self._twin or info.name not in self._ends:
                weight = values(info)
                self._set(target, info, self.merge.onto(info, weight) if info.name in self.merge.paths else weight)
            yield

    def _set(self, model: Any, info: TensorInfo, values: Array) -> None:
        """Puts values, (out, in), into the tensor's parameter, where it has one: buffers, and what a model ignores, stay."""
        if (parameter := self._own[model].get(info.name)) is not None:
            turned = values.T if info.layout == TRANSPOSED else values
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.array(turned, np.float32)))  # a file that is mapped may not be written to

    def _values(self, base: str) -> Values:
        """What gives the base's weights, float32 as the checkpoint lays them out."""
        merge = self.merge
        if base == "original":
            return merge.original
        if base == "nf4":
            own = merge.spec.format == "nf4" and merge.on_four_bits
            spec = merge.spec if own else QuantSpec("nf4", double_quant=True)

            def four_bits(info: TensorInfo) -> Array:
                if own:
                    return merge.held(info)
                return quantize(merge.original(info), spec).dequantize() if info.quantizable else merge.original(info)

            return four_bits
        if base in ("q8_0", "q4_0"):
            return lambda info: self._in_blocks(info, base.upper())
        read, layout = Read(base), Layout(merge.source.config, merge.source.name)
        infos = {name: info for info in merge.tensors if (name := layout.name(info.name)) is not None}
        check_same_base(
            read, layout, {name: info.shape for name, info in infos.items()},
            lambda name: layout.turned(infos[name].name, merge.original(infos[name])),
        )  # fmt: skip
        names = {info.name: name for name, info in infos.items()}

        def from_file(info: TensorInfo) -> Array:
            name = names.get(info.name, "")
            if name not in read.tensors:
                name = "token_embd.weight" if name == "output.weight" else ""
            return layout.turned_back(info.name, read.read(name)) if name else merge.original(info)

        return from_file

    def _in_blocks(self, info: TensorInfo, kind: str) -> Array:
        """A matrix through one of GGUF's types and back; vectors as they are."""
        values = self.merge.original(info)
        if values.ndim < 2 or values.shape[-1] % _BLOCK:
            return values
        kind = "Q8_0" if info.name in self._ends else kind
        return decoded(encoded(values, kind), kind).reshape(values.shape)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], measure)
