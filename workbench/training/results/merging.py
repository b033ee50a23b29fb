"""Merging a run's adapter into its base, a weight at a time, and the error that this adds to what was trained.

What a QLoRA run trains is an adapter on a *dequantized* 4-bit base. Merging writes one 16-bit weight instead, and may change it
in three ways: rounding to 16 bits, which is small; putting the adapter on the original 16-bit base, whose difference from the
4-bit one the adapter never saw; and quantizing the merged weight to 4 bits again, which the adapter's product rarely survives
whole. ``merge_errors`` measures each of the three, layer by layer. The arithmetic is peft's own ``merge_and_unload``, on a
model of one module. Writing a merged model is ``export.py``'s part. Imports torch and peft only when called.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.errors import RunError
from workbench.memory.footprint import Plan
from workbench.progress import Cancelled, Progress
from workbench.quant.quantize import quantize
from workbench.quant.spec import QuantSpec
from workbench.show import Line, Record, Shown, View
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.base import Watch
from workbench.sources.local import LocalSource
from workbench.sources.packed import as_loaded, weights
from workbench.sources.rule import TRANSPOSED
from workbench.text import NONE, counted, percent
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.folder import RunFolder
from workbench.training.held import held_exactly, read_held
from workbench.training.origins import BASE, check_base
from workbench.training.runs import attach

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

    from workbench.training.runs import Run

_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?:[AB]\.weight|magnitude_vector(?:\.weight)?)")
_FROM_WEIGHTS = ("olora", "pissa")
_IN_MEMORY = "peft's merge_and_unload merges it in memory, on a base that is loaded whole."
Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class MergeError(Record):
    """One adapted weight. Errors are relative: ‖merged − trained‖ / ‖trained‖, Frobenius norms, ``trained`` in float32."""

    tensor: str
    shape: tuple[int, ...]
    adapter: float
    """What the adapter changed, to compare with: ‖trained − base‖ / ‖base‖, the base as the run held it."""
    dequantized: float | None
    """Merged into the dequantized 4-bit base and rounded to 16 bits; None where the base was not in 4 bits."""
    original: float | None
    """Merged into the original 16-bit base; None where the checkpoint holds 4 bits itself and there is no other base."""
    requantized: float | None
    """Merged into the dequantized base and quantized again to the run's 4-bit format; None where it was not in 4 bits."""

    def _line_(self) -> Line:
        shares = {
            "adapter": self.adapter, "on dequantized base": self.dequantized, "on original base": self.original,
            "in 4 bits again": self.requantized,
        }  # fmt: skip
        return {"tensor": self.tensor} | {head: NONE if share is None else percent(share) for head, share in shares.items()}


@dataclass(frozen=True, repr=False)
class MergeErrors(Shown):
    """What merging adds, adapted weight by adapted weight, in the order of the checkpoint."""

    rows: tuple[MergeError, ...]
    dtype: str
    """The 16-bit dtype that merged weights were rounded to."""

    def _show_(self) -> View:
        worst = sorted(self.rows, key=lambda row: -max(row.dequantized or 0.0, row.original or 0.0))
        title = f"What merging into {self.dtype} adds to {counted(len(self.rows), 'adapted weight')}, the worst first"
        return View(title, lines=worst, note="Measured, relative to what was trained, beside what the adapter changed.")

    def to_frame(self) -> pandas.DataFrame:
        """A row a weight; the columns are ``MergeError``'s fields."""
        import pandas

        frame = pandas.DataFrame([asdict(row) for row in self.rows], columns=[field.name for field in fields(MergeError)])
        return frame.astype({name: float for name in ("adapter", "dequantized", "original", "requantized")})


def merge_errors(
    run: Run | str | os.PathLike[str],
    dtype: str = "bfloat16",
    *,
    changed_ok: bool = False,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> MergeErrors:
    """The error that merging the run's adapter would add to each adapted weight; nothing is written.

    Large files of the base that were touched since are read whole first.

    Args:
        run: A run or its folder.
        dtype: ``"bfloat16"`` or ``"float16"``.
        changed_ok: Go on where the base is no longer what the run was begun with.
        progress: A function of the weights' elements done and their total; of bytes while large files are read whole.
        cancelled: Asked meanwhile; a yes ends the call.

    Returns:
        For each adapted weight what the adapter changed, and what rounding adds on each base; relative (‖error‖ / ‖trained‖).

    Raises:
        RunError: Where there is no run or adapter, or one of a kind that is not merged by parts, and for another dtype; as
            ``Changed`` for what ``changed_ok`` allows.
        ModelError: As ``open_model`` does, for the base.
        InterruptedError: Once cancelled.

    >>> wb.merge_errors("runs/20260314-142200-builtin").to_frame()  # doctest: +SKIP
    """
    merge = Merge(attach(run), changed_ok=changed_ok, progress=progress, cancelled=cancelled)
    rounded = half(dtype)
    infos = [info for info in merge.tensors if info.name in merge.paths]
    watch = Watch(sum(info.numel for info in infos), progress, cancelled)
    rows = []
    for info in infos:
        watch.check()
        rows.append(merge.error(info, rounded))
        watch.moved(info.numel)
    return MergeErrors(tuple(rows), dtype)


def half(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of a 16-bit dtype's name; ``RunError`` for any other."""
    if dtype not in ("bfloat16", "float16"):
        raise RunError(f"dtype is {dtype!r}.", where="merging", remedy='Use "bfloat16" or "float16".')
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)


class Merge:
    """A run's base and adapter, opened together: each weight as it was held, as it was trained, and merged.

    Weights are float32 arrays (out, in), as bitsandbytes sees them; a few copies of one are in memory at a time.
    """

    def __init__(
        self,
        run: Run,
        folder: Path | None = None,
        *,
        parts: Sequence[str] = (BASE,),
        changed_ok: bool = False,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> None:
        """``folder``: an earlier adapter of the run, a checkpoint's; None: its newest. ``parts``: what must be as at launch."""
        self.config: TrainConfig = run.config
        self.where = str(run.dir)
        folder = folder or run.adapter_dir
        if folder is None:
            trained = (
                "every weight was trained: its model folder is whole as it is" if run.model_dir else "nothing is saved yet"
            )
            raise RunError(f"the run has no adapter to merge ({trained}).", where=self.where, remedy="Choose a run with one.")
        self.folder = folder
        named = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        # The commit that was trained on: the Hub may have a newer one by now.
        self.source: Source = open_model(self.config.model, named.get("revision") if on_hub(self.config.model) else None)
        if not changed_ok:
            check_base(run.dir, self.config, self.source, parts, progress, cancelled)
        infos, packed_in = as_loaded(self.source)
        self.packed = packed_in is not None
        """Whether the checkpoint itself holds 4 bits."""
        plan = Plan.of(self.config, "cpu")
        held = read_held(RunFolder(run.dir))
        if held is None and not self.packed:
            held = held_exactly(self.source, plan, self.where)
        self._four_bits = frozenset(t.name for t in infos if t.quantizable) if held is None else held.four_bits
        self.tensors: list[TensorInfo] = [t for t in (infos if held is None else held.described(infos)) if t.numel]
        """Those of the merged model, in the order of the checkpoint."""
        self.spec: QuantSpec = packed_in or plan.spec
        self._adapter: Source = LocalSource(folder)
        self.paths = self._placed()
        """Checkpoint tensor → the module path that the adapter knows it by."""
        dtype = self.config.compute_dtype
        on_cpu = any(event["k"] == "hello" and event.get("device") == "cpu" for event in run.events())
        self._held_in = np.dtype(_DTYPES[("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype])

    @property
    def on_four_bits(self) -> bool:
        """Whether the run's base was in 4 bits."""
        return bool(self._four_bits)

    def in_four_bits(self, info: TensorInfo) -> bool:
        """Whether the run held this tensor in 4 bits."""
        return info.name in self._four_bits

    @property
    def from_weights(self) -> bool:
        """Whether its adapters began as a part of the base, which the base then lacked."""
        return self.config.init_lora_weights in _FROM_WEIGHTS

    def rank(self, info: TensorInfo) -> int:
        """The rank of a weight's adapter."""
        _, entry = self._adapter.find(f"base_model.model.{self.paths[info.name]}.lora_A.weight")
        return int(entry.shape[0])

    def _placed(self) -> dict[str, str]:
        known = {info.name for info in self.tensors}
        found: dict[str, str] = {}
        for key in (info.name for info in self._adapter.tensors()):
            match = _KEY.fullmatch(key)
            if match is None or match["path"].endswith(".base_layer"):
                raise self._refused(f"the adapter holds {key}, which is no plain adapter of a linear layer.")
            path = match["path"]
            # A checkpoint of the bare model has names without the first part, which transformers adds on loading.
            name = next((n for n in (f"{path}.weight", f"{path.partition('.')[2]}.weight") if n in known), None)
            if name is None:
                raise self._refused(
                    f"the checkpoint has no weight of its own for {path} (it is tied, fused or named otherwise)."
                )
            found[name] = path
        return found

    def _refused(self, what: str) -> RunError:
        return RunError(what, where=str(self.folder), remedy=_IN_MEMORY)

    def original(self, info: TensorInfo) -> Array:
        """The weight as the checkpoint holds it."""
        return np.asarray(weights(self.source, info.name, info.layout), np.float32)

    def held(self, info: TensorInfo) -> Array:
        """The weight as the run held it before adapters: through the compute dtype, and through 4 bits where it was in them."""
        stored = weights(self.source, info.name, info.layout)
        if self.packed and info.quantizable:
            return np.asarray(stored, np.float32)
        cast = stored.astype(self._held_in, copy=False)
        return quantize(cast, self.spec).dequantize() if self.in_four_bits(info) else np.asarray(cast, np.float32)

    def trained(self, info: TensorInfo, held: Array) -> Array:
        """The weight that the adapter makes of ``held``, in float32: what the run trained."""
        if not self.from_weights:
            return self._merged(info, held)
        # The base without what such adapters begin with: PiSSA's begin from the original weight, in 4 bits afterwards.
        from_original = self.config.init_lora_weights == "pissa" and self.in_four_bits(info)
        begun = self._begun(info, (self.original(info) if from_original else held).astype(self._held_in))
        if self.in_four_bits(info):
            begun = quantize(begun, self.spec).dequantize()
        return self._merged(info, np.asarray(begun, np.float32))

    def onto_original(self, info: TensorInfo) -> Array:
        """The weight that peft makes of the original base, in float32."""
        return self.onto(info, self.original(info))

    def onto(self, info: TensorInfo, weight: Array) -> Array:
        """The weight that peft makes of another base's, in float32."""
        return self._merged(info, self._begun(info, weight) if self.from_weights else weight)

    def factors(self, info: TensorInfo) -> tuple[Array, Array]:
        """(A (r, in), s · B (out, r)) in float32: the adapter's own product is their product, scaled as peft scales it."""
        out, inner = info.shape
        model = self._alone(info, np.zeros((out, inner), np.float32), begin=True, filled=True)
        layer = model.base_model.model.get_submodule(self.paths[info.name])
        (name,) = layer.lora_A
        a, b = (_numpy(side[name].weight) for side in (layer.lora_A, layer.lora_B))
        return a, np.asarray(b * layer.scaling[name], np.float32)

    def error(self, info: TensorInfo, rounded: np.dtype[Any]) -> MergeError:
        """What each way of merging adds to one adapted weight."""
        held = self.held(info)
        trained = self.trained(info, held)
        change, dequantized, original, requantized = relative(trained, held), None, None, None
        if not (self.packed and info.quantizable):
            original = relative(self.onto_original(info).astype(rounded), trained)
        if self.in_four_bits(info):
            merged = trained.astype(rounded)
            dequantized = relative(merged, trained)
            requantized = relative(quantize(merged, self.spec).dequantize(), trained)
        return MergeError(info.name, info.shape, change, dequantized, original, requantized)

    def _merged(self, info: TensorInfo, weight: Array) -> Array:
        """peft's merge of this weight's adapter into ``weight``, which stays as it is."""
        model = self._alone(info, weight.copy(), begin=True, filled=True)
        merged = model.merge_and_unload().get_submodule(self.paths[info.name]).weight
        return self._turned(info, _numpy(merged))

    def _begun(self, info: TensorInfo, weight: Array) -> Array:
        """What an initialisation from the weights leaves in ``weight``, in its dtype."""
        model = self._alone(info, weight.copy(), begin=self.config.init_lora_weights)
        layer = model.base_model.model.get_submodule(self.paths[info.name])
        return self._turned(info, _numpy(layer.get_base_layer().weight)).astype(weight.dtype, copy=False)

    def _alone(self, info: TensorInfo, weight: Array, begin: bool | str, filled: bool = False) -> Any:
        """peft's model of this one module; ``begin``: its ``init_lora_weights``; ``filled``: with what was trained."""
        import torch
        from peft import PeftConfig, PeftModel, set_peft_model_state_dict
        from transformers.pytorch_utils import Conv1D

        path = self.paths[info.name]
        config = PeftConfig.from_pretrained(str(self.folder))
        config.task_type = config.layers_to_transform = None
        config.target_modules, config.init_lora_weights, config.inference_mode = {path}, begin, False
        config.fan_in_fan_out = self._is_conv(info)
        out, inner = weight.shape
        with torch.device("meta"):
            linear = Conv1D(out, inner) if self._is_conv(info) else torch.nn.Linear(inner, out, bias=False)
        linear.weight = torch.nn.Parameter(_torch(self._turned(info, weight)), requires_grad=False)
        if self._is_conv(info):
            linear.bias = None
        root = torch.nn.Module()
        parent, (*parts, last) = root, path.split(".")
        for part in parts:
            parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, linear)
        model = PeftModel(root, config)
        if filled:
            set_peft_model_state_dict(model, self._state(path))
        return model

    def _is_conv(self, info: TensorInfo) -> bool:
        """Whether peft met a Conv1D, whose weight is (in, out): in 4 bits it is a linear layer like any other."""
        return info.layout == TRANSPOSED and not self.in_four_bits(info)

    def _turned(self, info: TensorInfo, weight: Array) -> Array:
        return np.ascontiguousarray(weight.T) if self._is_conv(info) else weight

    def _state(self, path: str) -> dict[str, Any]:
        prefix = f"base_model.model.{path}.lora_"
        names = [info.name for info in self._adapter.tensors() if info.name.startswith(prefix)]
        return {name: _torch(self._adapter.read(name).astype(np.float32)) for name in names}


_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_TINY = float(np.finfo(np.float32).tiny)


def relative(value: Array, reference: Array) -> float:
    """‖value − reference‖ / ‖reference‖, Frobenius norms; 0 where both are zero."""
    difference = float(np.linalg.norm(np.asarray(value, np.float32) - reference))
    return difference / max(float(np.linalg.norm(reference)), _TINY) if difference else 0.0


def _torch(array: Array) -> Any:
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def _numpy(tensor: Any) -> Array:
    """In float32, or bfloat16's own values as float32."""
    array: Array = tensor.detach().float().numpy()
    return array
