"""The measuring itself: weights replaced by what a format makes of them, and the losses and outputs that follow. Needs torch.

Covers loading the model in 16 bits, replacing its linear layers' weights one at a time from the checkpoint, losses and the
divergence from 16 bits row by row, and in one forward pass the outputs' errors and the input channels that stand out. Memory:
the model in 16 bits and, for the largest weight, some 16 bytes a weight while it is quantized; besides, a batch's activations
and logits. What is kept of the model in 16 bits is ``divergence``'s. What is measured, and in which order, is decided
elsewhere. On a CPU, or on a GPU where there is one [not yet run on a GPU].
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from workbench.cost.assignments import spec_key
from workbench.cost.divergence import Reference, RowSums, gathered
from workbench.cost.jobs import BATCH, Job
from workbench.errors import DataError, ModelError
from workbench.quant.quantize import quantize
from workbench.quant.spec import QuantSpec
from workbench.sources.packed import weights
from workbench.sources.rule import TRANSPOSED
from workbench.sources.tensor_info import TensorInfo
from workbench.training import data
from workbench.training.host import host_counters, mappings
from workbench.training.worker.batches import Collator, summed_loss
from workbench.training.worker.head import IGNORED

CALIBRATION = 8
"""Rows that the outputs' errors are measured on."""
STANDS_OUT, _MOST_CHANNELS = 5.0, 8
"""From so many times the median channel's activations on a channel is named; at most so many in a module."""
_AT_ONCE = 1 << 20
_WARM, _NF4 = 64, QuantSpec("nf4")
Emit = Callable[..., object]
Array = NDArray[Any]


class Engine:
    """A model, its held-out batches, and what of it is quantized at the moment: nothing at first."""

    def __init__(self, job: Job, emit: Emit, folder: Path | None = None) -> None:
        """``folder``: where the states of the model in 16 bits lie while it works, if they are large."""
        self.job, self._emit = job, emit
        self._held: dict[str, QuantSpec] = {}
        self._emitted: set[tuple[str, str]] = set()
        model = Path(job.config.model)
        tokenizer = data.open_tokenizer(model)
        files = data.held_out_files(job.config)
        assert files is not None  # job_of has refused such a configuration
        rows = data.load(job.config, tokenizer, files, job.config.max_eval_rows).rows
        collator = Collator.of(tokenizer)
        # By length, so that little is padded: a third less to compute on the builtin rows.
        self._order = sorted(range(len(rows)), key=lambda row: len(rows[row].input_ids))
        inside = [self._order[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        self.batches = [collator.batch([rows[row] for row in batch]) for batch in inside]
        self.sums: dict[str, Any] = {}
        """Of the last pass, by the names of ``RowCosts``: sums of each row, in the order of the data."""
        self._reference = Reference(self.batches, folder)
        self._calibration = collator.batch(rows[:CALIBRATION])
        self._class = _class_of(model)
        self._dtype = _dtype(job)
        quantize(np.ones(_WARM, np.float32), _NF4).dequantize()  # loads the kernels before memory is counted
        self.base = host_counters().get("rss") or 0
        """Resident memory with libraries and rows, before the model."""
        self.model = self._load(model)
        self._modules = self._placed()

    @property
    def tokens(self) -> list[int]:
        """Tokens that bear a loss, row by row."""
        return self._by_row([n for batch in self.batches for n in (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()])

    @property
    def digest(self) -> str:
        """SHA-256 of all batches: it identifies them."""
        digest = hashlib.sha256()
        for batch in self.batches:
            digest.update(batch["input_ids"].numpy().tobytes() + batch["labels"].numpy().tobytes())
        return digest.hexdigest()

    def _load(self, folder: Path) -> Any:
        with _refusing(folder):
            model = self._class.from_pretrained(str(folder), dtype=self._dtype, local_files_only=True, use_safetensors=True)
        own_weights(model, folder)
        widen(model)
        model.config.use_cache = False
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def _placed(self) -> dict[str, tuple[TensorInfo, Any]]:
        """Module of the checkpoint → its weight and the parameter that it was loaded into; ``prefix`` is what its path adds."""
        found, prefix = {}, f"{self.model.base_model_prefix}."
        modules = dict(self.model.named_modules())
        for name, info in self.job.weights.items():
            # A checkpoint of the bare model has names without the first part, which transformers adds on loading.
            path = name if name in modules else f"{prefix}{name}"
            weight = getattr(modules.get(path), "weight", None)
            if weight is None or tuple(weight.shape) != info.shape:
                what = f"transformers loads {name} into no module of its own (it is fused, split or named otherwise)."
                raise ModelError(what, where=self.job.source.name, remedy="Save the model anew with transformers 5.")
            found[name], self.prefix = (info, weight), path.removesuffix(name)
        return found

    def assign(self, assigned: Mapping[str, QuantSpec]) -> None:
        """Quantizes these modules so, and puts all others back into 16 bits: only what differs is read and written."""
        for name, (info, weight) in self._modules.items():
            wanted = assigned.get(name)
            if wanted == self._held.get(name):
                continue
            value = stored = self._stored(info)
            if wanted is None:
                self._held.pop(name)
            else:
                value = quantize(stored, wanted).dequantize()
                self._emit_error(name, wanted, stored, value)
                self._held[name] = wanted
            self._write(info, weight, value)

    def _stored(self, info: TensorInfo) -> Array:
        """The weight as bitsandbytes meets it: in the model's dtype, (out, in)."""
        return weights(self.job.source, info.name, info.layout).astype(_NUMPY[self._dtype], copy=False)

    def _write(self, info: TensorInfo, weight: Any, value: Array) -> None:
        """Puts values into the parameter, which rounds them to 16 bits as bitsandbytes does when it dequantizes."""
        turned = value.T if info.layout == TRANSPOSED else value
        with torch.no_grad():
            for rows in _pieces(len(turned), turned.shape[1]):
                weight.data[rows].copy_(torch.from_numpy(np.ascontiguousarray(turned[rows], np.float32)))

    def _emit_error(self, name: str, spec: QuantSpec, stored: Array, value: Array) -> None:
        key = name, spec_key(spec)
        if key not in self._emitted:
            self._emitted.add(key)
            error = signal = 0.0
            for rows in _pieces(*stored.shape):
                exact = np.asarray(stored[rows], np.float64)
                with np.errstate(over="ignore", invalid="ignore"):
                    error, signal = error + float(np.sum((value[rows] - exact) ** 2)), signal + float(np.sum(exact**2))
            self._emit("weights", module=name, spec=key[1], error=error, signal=signal)

    def passed(self, reference: bool) -> Iterator[int]:
        """Passes the batches through the model as it is, counting them; then ``sums`` are those of this pass.

        ``reference``: it is the one that the later ones are held against.
        """
        found: list[RowSums] = []
        for sums in self._reference.take(self.model) if reference else self._reference.compare(self.model):
            found.append(sums)
            yield len(found)
        self.sums = {name: self._by_row(values) for name, values in gathered(found).items()}

    def _by_row(self, values: Sequence[Any]) -> list[Any]:
        """Values of the rows as the batches have them → in the order of the data."""
        return [value for _, value in sorted(zip(self._order, values, strict=True), key=lambda pair: pair[0])]

    def outputs(self, specs: Sequence[QuantSpec]) -> None:
        """Emits ‖(W − Ŵ)x‖² and ‖Wx‖² of every module, and the channels of x that stand out, in one forward pass.

        x is the module's input in the 16-bit model.
        """
        self.assign({})
        mask = self._calibration["attention_mask"].bool()
        hooks = []
        for name, (info, weight) in self._modules.items():
            module = next(m for m in self.model.modules() if getattr(m, "weight", None) is weight)

            def look(module: Any, arguments: tuple[Any, ...], name: str = name, info: TensorInfo = info) -> None:
                x = arguments[0].float()
                if x.shape[:2] == mask.shape:
                    x = x[mask.to(x.device)]  # (tokens, in), without padding
                stored = self._stored(info)
                exact = np.asarray(stored, np.float32)
                signal = _norm(x, exact)
                self._emit("channels", module=name, channels=_standing_out(x))
                for spec in specs:
                    rounded = quantize(stored, spec).dequantize(_NUMPY[self._dtype]).astype(np.float32)
                    error = _norm(x, rounded - exact)
                    self._emit("outputs", module=name, spec=spec_key(spec), error=error, signal=signal, tokens=len(x))

            hooks.append(module.register_forward_pre_hook(look))
        try:
            with torch.inference_mode():
                summed_loss(self.model, dict(self._calibration))
        finally:
            for hook in hooks:
                hook.remove()


def _class_of(folder: Path) -> Any:
    """The model's class; ModelError where transformers has none, or only code that comes with the model."""
    with _refusing(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return AutoModelForCausalLM._model_mapping[type(config)]


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turns the errors by which transformers refuses a model into ModelError; a lack of memory is raised as it is."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        if "memory" in str(error):
            raise
        what = f"transformers cannot load it as a language model ({type(error).__name__}: {str(error)[:300]})."
        remedy = "Choose a causal language model that transformers knows without code of its own."
        raise ModelError(what, where=str(folder), remedy=remedy) from error


_NUMPY = {torch.bfloat16: np.dtype(ml_dtypes.bfloat16), torch.float16: np.dtype(np.float16)}


def _dtype(job: Job) -> torch.dtype:
    """The 16 bits that most weights are stored in; bfloat16 where they are stored in more."""
    stored = [info.dtype for info in job.weights.values()]
    return torch.float16 if stored.count("F16") > len(stored) / 2 else torch.bfloat16


def _norm(x: torch.Tensor, weight: Array) -> float:
    """‖x · Wᵀ‖², summed in float64."""
    y = times(x, torch.from_numpy(weight).to(x.device))
    return float((y.double() ** 2).sum())


def _standing_out(x: torch.Tensor) -> list[tuple[int, float]]:
    """(tokens, in) → the channels whose root mean square is far above the median channel's, and by how many times."""
    size = x.double().square().mean(0).sqrt()
    times = size / size.median().clamp_min(torch.finfo(torch.float32).tiny)
    most, where = times.topk(min(_MOST_CHANNELS, len(times)))
    return [(int(i), float(n)) for n, i in zip(most, where, strict=True) if STANDS_OUT <= n < torch.inf]


def _pieces(rows: int, width: int) -> Iterator[slice]:
    """A matrix's rows, some million elements at a time, so that intermediate arrays stay small."""
    step = max(1, _AT_ONCE // width)
    yield from (slice(start, start + step) for start in range(0, rows, step))


def own_weights(model: Any, folder: Path) -> None:
    """Gives a model from ``folder`` weights that can be written to without a chance to reach its file."""
    if not _mapped_privately(folder):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def _mapped_privately(folder: Path) -> bool:
    """Whether writing to a weight that safetensors has mapped cannot reach its file: known on Linux only."""
    if sys.platform != "linux":
        return False
    root = str(folder.resolve())
    return all(permissions.endswith("p") for permissions, path in mappings() if root in path)


def check_data(before: str | None, engine: Engine) -> None:
    """Raises DataError where the held-out rows are not those that a folder's other measurements were made on."""
    if before is not None and before != engine.digest:
        remedy = "Name another folder."
        raise DataError("the held-out rows have changed since the first measurement.", where="data", remedy=remedy)


_WIDENED_AT_ONCE = 1 << 22
"""Weights that are widened at a time: 16 MiB in float32."""


def widen(model: Any) -> None:
    """Holds the model's weights in 16 bits and multiplies in float32, so that losses differ by weights and not by rounding.

    A difference of a ten-thousandth of a nat, as one quantized layer often makes, is lost in 16-bit activations, and the whole
    model in float32 would take twice its size. So each linear layer widens its own weight while it multiplies, some rows at a
    time. This holds for ``nn.Linear``, ``Conv1D`` and embeddings; norms, biases and fused experts are held in float32. Changes
    the model in place.
    """
    kept = set()
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = functools.partial(_linear, module)
        elif type(module) is Conv1D:
            module.forward = functools.partial(_conv, module)
        elif isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda module, arguments, output: output.float())
        else:
            continue
        kept.add(id(module.weight))
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()


def times(x: torch.Tensor, weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """x · Wᵀ in float32, x (…, in) and W (out, in); or x · W with W (in, out), where ``transposed``."""
    x = x.float()
    outputs, step = weight.shape[transposed], max(1, _WIDENED_AT_ONCE // weight.shape[not transposed])
    parts = []
    for start in range(0, outputs, step):
        rows = weight[:, start : start + step].T if transposed else weight[start : start + step]  # (rows, in)
        parts.append(torch.nn.functional.linear(x, rows.float()))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = times(x, module.weight)
    return y if module.bias is None else y + module.bias


def _conv(module: Any, x: torch.Tensor) -> torch.Tensor:
    return times(x, module.weight, transposed=True) + module.bias
