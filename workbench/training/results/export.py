"""A run's adapter merged into its base, or alone, written for the program that will run it: transformers or llama.cpp.

Covers the folder, put in place in one go, its card, and a merged 16-bit model as safetensors, a tensor at a time, with its
config.json without quantization and its tokenizer. GGUF is written by ``gguf_model.py`` and ``gguf_adapter.py``. What merging
changes is ``merging.py``'s part, and is shown first: ``merge_errors(run)``.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.atomic import new_folder
from workbench.errors import RunError
from workbench.progress import Cancelled, Progress
from workbench.show import Shown, View
from workbench.sources.packed import packed
from workbench.sources.rule import TRANSPOSED
from workbench.sources.tensor_info import Role, TensorInfo
from workbench.text import amount, percent
from workbench.training.paths import is_free, path_of
from workbench.training.results import loading, on_bases
from workbench.training.results.card import code, write_card
from workbench.training.results.gguf_adapter import GgufAdapter
from workbench.training.results.gguf_model import GgufModel
from workbench.training.results.merged import Merged
from workbench.training.results.merging import half
from workbench.training.results.shards import Planned, write_shards
from workbench.training.runs import attach

if TYPE_CHECKING:
    from workbench.training.runs import Run

FORMATS = ("transformers", "gguf", "gguf-adapter")
MAX_SHARD_SIZE = 5 * 10**9
"""Bytes of weights in one file, as Hugging Face's Hub recommends at most."""
_CHUNK = 1 << 22
_BESIDE = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*",
    "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
_NAMES = {"bfloat16": "BF16", "float16": "F16"}
_TITLES = {"transformers": "a merged model", "gguf": "a merged model as GGUF", "gguf-adapter": "an adapter as GGUF"}


@dataclass(frozen=True, repr=False)
class Exported(Shown):
    """What was written."""

    folder: Path
    """For ``AutoModelForCausalLM.from_pretrained``; in GGUF it holds ``model.gguf`` or ``adapter.gguf``."""
    base: str | None
    """``"dequantized"`` or ``"original"``; None for an adapter, which is merged into none."""
    dtype: str
    nbytes: int
    """Of weights."""
    errors: dict[str, float]
    """Adapted weight → ‖written − trained‖ / ‖trained‖, as in ``MergeError``; empty for an adapter."""
    format: str = "transformers"

    def _show_(self) -> View:
        facts = {
            "folder": str(self.folder), "base": self.base or "", "dtype": self.dtype, "weights": amount(self.nbytes),
        }  # fmt: skip
        worst = sorted(self.errors.items(), key=lambda item: -item[1])
        lines = [{"adapted weight": name, "differs from what was trained by": percent(error)} for name, error in worst]
        return View(f"Exported: {_TITLES.get(self.format, self.format)}", facts, lines)


def export(
    run: Run | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    format: str = "transformers",
    base: str | None = None,
    dtype: str | None = None,
    base_gguf: str | os.PathLike[str] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    changed_ok: bool = False,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Exported:
    """Writes what the run trained into a folder, with a README.md that says how it is loaded.

    Args:
        run: A run or its folder.
        folder: Where it goes: a folder that is new or empty.
        format: ``"transformers"``, the adapter merged into its base as a 16-bit model; ``"gguf"``, the same as one file for
            llama.cpp and Ollama, with a Modelfile; or ``"gguf-adapter"``, the adapter alone, for llama.cpp with a GGUF of the
            base; not one with DoRA, nor one begun by LoftQ, PiSSA or OLoRA, which belongs to no GGUF of it.
        base: What it is merged into: ``"dequantized"``, the weights that a QLoRA run trained on, or ``"original"``, those of
            the checkpoint; None: the first where the run's base was in 4 bits.
        dtype: ``"bfloat16"`` or ``"float16"``; in GGUF also ``"float32"`` and, merged, ``"q8_0"``; None: bfloat16, in GGUF
            float16, of an adapter float32.
        base_gguf: A GGUF of the same base, whose keys and tokenizer are copied; without one they are written for tokenizers of
            byte-level BPE.
        max_shard_size: Bytes of a file of weights at most.
        changed_ok: Go on where base, tokenizer or chat template are no longer what the run was begun with; the card then says
            so.
        progress: A function of the elements done and their total.
        cancelled: Asked meanwhile; a yes ends the call, and nothing is left behind.

    Returns:
        The folder, what was merged into which base and dtype, the bytes of weights, and each merged weight's error (relative).

    Raises:
        RunError: Where there is no run or adapter, where it cannot be merged by parts, for a folder that is not empty or a
            choice that there is not, and where the disk does not take it; as ``Changed`` for what ``changed_ok`` allows.
        ModelError: As ``open_model`` does for the base; and for a model that was not tried in GGUF, with the line that converts
            it otherwise.
        InterruptedError: Once cancelled.

    >>> exported = wb.export("runs/20260314-142200-builtin", "merged")  # doctest: +SKIP
    """
    run, target = attach(run), path_of(folder, "folder")
    if format not in FORMATS:
        named = ", ".join(f'"{name}"' for name in FORMATS)
        raise RunError(f"format is {format!r}.", where="export", remedy=f"Use one of {named}.")
    if base_gguf is not None and format != "gguf":
        raise RunError("base_gguf is given.", where="export", remedy='It is for format="gguf" only.')
    if base is not None and format == "gguf-adapter":
        raise RunError(f"base is {base!r}.", where="export", remedy="An adapter is merged into none: leave it out.")
    if not is_free(target):
        raise RunError("the folder is not empty.", where=str(target), remedy="Name a new folder.")
    exporter: _Transformers | GgufModel | GgufAdapter
    if format == "transformers":
        exporter = _Transformers(run, base, dtype, max_shard_size, changed_ok, progress, cancelled)
    elif format == "gguf":
        exporter = GgufModel(run, base, dtype, base_gguf, changed_ok, progress, cancelled)
    else:
        exporter = GgufAdapter(run, dtype, changed_ok, progress, cancelled)
    try:
        with new_folder(target) as draft:
            if (free := shutil.disk_usage(draft).free) < exporter.nbytes:
                what = f"the model takes {amount(exporter.nbytes)}, and {amount(free)} are free."
                remedy = "Free some space, or name a folder on another disk."
                raise RunError(what, where=str(draft.parent), remedy=remedy)
            exporter.write(draft)
            _finish(exporter, draft)
    except OSError as error:
        if isinstance(error, InterruptedError):
            raise
        what = f"the model cannot be written ({error.strerror or error})."
        remedy = f"Name a folder that can be written to, with {amount(exporter.nbytes)} free."
        raise RunError(what, where=str(target), remedy=remedy) from error
    return Exported(target, exporter.base, exporter.dtype, exporter.nbytes, exporter.errors, format)


def _finish(exporter: _Transformers | GgufModel | GgufAdapter, draft: Path) -> None:
    """What lies beside the weights: card, Modelfile, licences."""
    merge = exporter.merge
    if isinstance(exporter, GgufModel):
        (draft / "Modelfile").write_text(loading.modelfile(exporter.chats), "utf-8")
        what, lines = "gguf", loading.of_model(exporter.chats)
    elif isinstance(exporter, GgufAdapter):
        what, lines = "gguf-adapter", loading.of_adapter() + _bases(on_bases.read(exporter.run.dir, merge.folder))
    else:
        what, lines = "merged", loading.of_transformers()
    beside = _BESIDE if isinstance(exporter, _Transformers) else _LICENCES
    for path in sorted(merge.source.path.iterdir()) if merge.source.path else ():
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in beside):
            shutil.copyfile(path, draft / path.name)
    write_card(exporter.run.dir, draft, what, exporter.notes(), lines)


def _bases(rows: Sequence[on_bases.OnBase]) -> str:
    """What was measured of the adapter on other bases, for the card; empty where nothing was."""
    if not rows:
        return ""
    heads = list(rows[0]._line_())
    lines = [{**row._line_(), "base": code(row.name)} for row in rows]
    table = "\n".join(f"| {' | '.join(line.values())} |" for line in lines)
    head = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    intro = "Measured against the model as it was trained, on held-out rows; intervals over rows."
    return f"\n\n## On other bases\n\n{intro}\n\n{head}\n{table}"


class _Transformers:
    """One export as safetensors: what is written, in which order, and what came of it."""

    def __init__(
        self,
        run: Run,
        base: str | None,
        dtype: str | None,
        max_shard_size: int,
        changed_ok: bool,
        progress: Progress | None,
        cancelled: Cancelled | None,
    ) -> None:
        self.run, self.dtype = run, dtype or "bfloat16"
        self.rounded, self._max_shard_size = half(self.dtype), max_shard_size
        self.merged = Merged(run, base, changed_ok, progress, cancelled)
        self.merge, self.base, self.errors = self.merged.merge, self.merged.base, self.merged.errors
        self.infos = {info.name: info for info in self.merge.tensors}
        self.planned = [self._plan(info) for info in self.merge.tensors]
        self.nbytes = sum(tensor.nbytes for tensor in self.planned)

    def _plan(self, info: TensorInfo) -> Planned:
        _, entry = self.merge.source.find(info.name)
        if entry.dtype.floating or info.quantizable or info.role is Role.PACKED:  # codes of weights are integers too
            shape = info.shape[::-1] if info.layout == TRANSPOSED and not entry.dtype.floating else info.shape
            return Planned(info.name, shape, _NAMES[self.dtype], 2)
        return Planned(info.name, info.shape, entry.dtype.name, entry.dtype.bits // 8)

    def write(self, draft: Path) -> None:
        """Fills the folder."""
        write_shards(draft, self.planned, self._pieces, self._max_shard_size)
        source = self.merge.source
        config = {k: v for k, v in source.config.items() if k not in ("quantization_config", "torch_dtype", "_name_or_path")}
        (draft / "config.json").write_text(json.dumps({**config, "dtype": self.dtype}, indent=2) + "\n", "utf-8")

    def notes(self) -> list[str]:
        """What was merged, for the card."""
        return [self.merged.note(self.dtype), *self.merged.changed]

    def _pieces(self, tensor: Planned) -> Iterator[NDArray[Any]]:
        """The tensor's data, as it is stored in the checkpoint but in 16 bits: merged, dequantized, or only cast."""
        watch = self.merged.watch
        watch.check()
        info = self.infos[tensor.name]
        if info.name in self.merge.paths:
            values, trained = self.merged.adapted(info)
            written = values.astype(self.rounded)
            self.merged.wrote(info, written, trained)
            yield self._as_stored(info, written)
        elif self.base == "dequantized" and self.merge.in_four_bits(info):
            yield self._as_stored(info, self.merge.held(info).astype(self.rounded))
        elif (held_packed := packed(self.merge.source, info.name)) is not None:
            yield held_packed.dequantize().astype(self.rounded)
        else:
            cast = tensor.dtype == _NAMES[self.dtype]
            for chunk in self.merge.source.chunks(info.name, _CHUNK):
                watch.check()
                yield chunk.astype(self.rounded, copy=False) if cast else chunk
        watch.moved(info.numel)

    @staticmethod
    def _as_stored(info: TensorInfo, weight: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(weight.T) if info.layout == TRANSPOSED else weight
