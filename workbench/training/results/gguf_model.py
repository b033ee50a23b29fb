"""A run's adapter merged into its base and written as one GGUF file, which llama.cpp and Ollama run by themselves.

Covers the merged tensors, a tensor at a time, in F32, F16, BF16 or Q8_0, and the keys: copied from a GGUF of the same base, or
written here for what ``gguf_layouts.py`` and ``gguf_tokenizers.py`` know. Vectors stay in float32, as everywhere in GGUF.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, RunError
from workbench.progress import Cancelled, Progress
from workbench.sources import TensorInfo
from workbench.training.results.gguf_adapter import base_keys
from workbench.training.results.gguf_files import Read, Tensor, Writer, decoded, encoded
from workbench.training.results.gguf_layouts import Layout
from workbench.training.results.gguf_tokenizers import tokenizer_keys
from workbench.training.results.merged import Merged

if TYPE_CHECKING:
    from workbench.training.runs import Run

FILE = "model.gguf"
KINDS = {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "float32": "F32"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
_QUANTIZATION_VERSION = 2
_BLOCK = 32
"""Weights of a row that Q8_0 scales together."""
_KEPT = ("general.name", "general.license", "general.languages", "general.tags", "general.size_label")
"""What is copied of a base's description; the rest of ``general`` is said anew."""
_NAME = "Merged LoRA fine-tune"
"""``general.name`` where none is copied. It names no model: llama.cpp treats some tokens otherwise where it has ``phi-3`` in
it, and does not load the file at all where those tokens are missing."""


class GgufModel:
    """The export of one merged model. Raises at once where llama.cpp would not run it as it was trained."""

    def __init__(
        self,
        run: Run,
        base: str | None,
        dtype: str | None,
        base_gguf: str | os.PathLike[str] | None,
        changed_ok: bool,
        progress: Progress | None,
        cancelled: Cancelled | None,
    ) -> None:
        self.dtype = dtype or "float16"
        if self.dtype not in KINDS:
            named = ", ".join(f'"{name}"' for name in KINDS)
            raise RunError(f"dtype is {dtype!r}.", where="export", remedy=f"For GGUF use one of {named}.")
        self.run, self.merged = run, Merged(run, base, changed_ok, progress, cancelled)
        self.merge, self.base, self.errors = self.merged.merge, self.merged.base, self.merged.errors
        source = self.merge.source
        self.layout = Layout(source.config, source.name)
        tensors = [(name, info) for info in self.merge.tensors if (name := self.layout.name(info.name)) is not None]
        self.infos = dict(tensors)
        if len(self.infos) < len(tensors):
            raise self.layout.refused("two of its tensors have one name in llama.cpp.")
        self.more = self.layout.more_tensors() if base_gguf is None else {}
        if base_gguf is None:
            rows = self.infos["token_embd.weight"].shape[0]
            self.keys = {**self.layout.keys(), **tokenizer_keys(self.merged.folder, rows)}
        else:
            self.keys = self._copied(Read(base_gguf))
        self.planned = [
            *(Tensor(name, values.shape, "F32") for name, values in self.more.items()),
            *(Tensor(name, info.shape, self._kind(info)) for name, info in self.infos.items()),
        ]
        self.nbytes = sum(tensor.nbytes for tensor in self.planned)

    def _kind(self, info: TensorInfo) -> str:
        if len(info.shape) < 2:
            return "F32"
        kind = KINDS[self.dtype]
        return "F16" if kind == "Q8_0" and info.shape[-1] % _BLOCK else kind

    def _copied(self, there: Read) -> dict[str, Any]:
        """The keys of a GGUF of the same base, and its tensors that no checkpoint has. ``ModelError`` if it is of another."""
        check_same_base(there, self.layout, {name: info.shape for name, info in self.infos.items()}, self._vector)
        self.more = {name: there.read(name) for name in there.tensors if name.startswith("rope_")}
        return {
            name: value
            for name, value in there.keys().items()
            if (not name.startswith("general.") or name in _KEPT) and not name.startswith(("split.", "quantize."))
        }

    def _vector(self, name: str) -> NDArray[Any]:
        info = self.infos[name]
        return self.layout.turned(info.name, np.asarray(self.merge.source.read(info.name), np.float32))

    def write(self, draft: Path) -> None:
        """Fills the folder."""
        keys = {
            "general.type": "model",
            "general.name": _NAME,
            "general.file_type": _FILE_TYPES[KINDS[self.dtype]],
            "general.quantization_version": _QUANTIZATION_VERSION,
            **base_keys(self.merge),
            **self.keys,
        }
        writer = Writer(draft / FILE, self.layout.architecture.name, keys, self.planned)
        try:
            for values in self.more.values():
                writer.write(values)
            for info in self.infos.values():
                self._write(writer, info)
        finally:
            writer.close()

    def _write(self, writer: Writer, info: TensorInfo) -> None:
        values, trained = self.merged.whole(info)
        kind = self._kind(info)
        if kind == "F16" and (most := float(np.max(np.abs(values), initial=0))) > np.finfo(np.float16).max:
            what = f"{info.name} holds {most:.3g}, more than float16 can."
            raise RunError(what, where="export", remedy='Use dtype="bfloat16".')
        data = encoded(self.layout.turned(info.name, values), kind)
        if trained is not None:
            stored = decoded(data, kind).reshape(info.shape)
            self.merged.wrote(info, self.layout.turned_back(info.name, stored), trained)
        writer.write(data)
        self.merged.watch.moved(info.numel)

    def notes(self) -> list[str]:
        """What was merged, for the card."""
        return [self.merged.note(KINDS[self.dtype]), *self.merged.changed, *self.layout.notes()]

    @property
    def chats(self) -> bool:
        """Whether it brings a chat template."""
        return "tokenizer.chat_template" in self.keys


def check_same_base(there: Read, layout: Layout, shapes: dict[str, tuple[int, ...]], vector: Any) -> None:
    """Raises ``ModelError`` where a GGUF is not of the base whose tensors have these shapes, by their GGUF names.

    Norms and biases are stored whole in every type, so they distinguish two models of one shape: ``vector(name)`` gives the
    base's.
    """
    remedy = "Name a GGUF of the base that the run was trained on."
    if there.architecture != layout.architecture.name:
        what = f"the GGUF is of a {there.architecture}, and the run's base is a {layout.architecture.name}."
        raise ModelError(what, where=str(there.path), remedy=remedy)
    optional = {"output.weight"}  # written twice, or once, where it is tied
    there_has = {name for name in there.tensors if not name.startswith("rope_")}
    if missing := sorted((set(shapes) ^ there_has) - optional):
        what = f"the GGUF and the run's base do not have the same tensors ({missing[0]} is in one only)."
        raise ModelError(what, where=str(there.path), remedy=remedy)
    for name in sorted(set(shapes) & there_has):
        if there.shape(name) != shapes[name]:
            what = f"{name} has the shape {there.shape(name)} in the GGUF, and {shapes[name]} in the run's base."
            raise ModelError(what, where=str(there.path), remedy=remedy)
    for name in sorted(set(shapes) & there_has):
        if len(shapes[name]) == 1 and not np.allclose(there.read(name), vector(name), rtol=1e-2, atol=1e-6):
            what = f"the GGUF is of another model of the same shape: {name} differs."
            raise ModelError(what, where=str(there.path), remedy=remedy)
