"""A run's adapter merged into its base: a folder with a whole 16-bit model, which transformers loads without peft.

Covers weights, streamed a tensor at a time, config.json without its quantization, tokenizer and card, all of them put in place
in one go. What merging changes is ``merging.py``'s part, and is shown first: ``merge_errors(run)``.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.atomic import new_folder
from workbench.errors import RunError
from workbench.progress import Cancelled, Progress
from workbench.show import Shown, View
from workbench.sources.base import Watch
from workbench.sources.packed import packed
from workbench.sources.rule import TRANSPOSED
from workbench.sources.tensor_info import Role, TensorInfo
from workbench.text import amount, percent
from workbench.training import fingerprints
from workbench.training.origins import OF_MODEL, changes_of_base
from workbench.training.paths import path_of
from workbench.training.results.card import write_card
from workbench.training.results.merging import Merge, half, relative
from workbench.training.results.shards import Planned, write_shards
from workbench.training.runs import attach

if TYPE_CHECKING:
    from workbench.training.runs import Run

MAX_SHARD_SIZE = 5 * 10**9
"""Bytes of weights in one file, as Hugging Face's Hub recommends at most."""
_CHUNK = 1 << 22
_BESIDE = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*",
    "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
_NAMES = {"bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, repr=False)
class Exported(Shown):
    """What was written."""

    folder: Path
    """For ``AutoModelForCausalLM.from_pretrained``."""
    base: str
    """``"dequantized"`` or ``"original"``."""
    dtype: str
    nbytes: int
    """Of weights."""
    errors: dict[str, float]
    """Adapted weight → ‖written − trained‖ / ‖trained‖, as in ``MergeError``."""

    def _show_(self) -> View:
        facts = {"folder": str(self.folder), "base": self.base, "dtype": self.dtype, "weights": amount(self.nbytes)}
        worst = sorted(self.errors.items(), key=lambda item: -item[1])
        lines = [{"adapted weight": name, "differs from what was trained by": percent(error)} for name, error in worst]
        return View("Exported: a merged model", facts, lines)


def export(
    run: Run | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    base: str | None = None,
    dtype: str = "bfloat16",
    max_shard_size: int = MAX_SHARD_SIZE,
    changed_ok: bool = False,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Exported:
    """Merges the run's adapter and writes a 16-bit model, a tensor at a time, into ``folder``, which must be new or empty.

    ``run``: a run or its folder.
    ``base``: ``"dequantized"``, the weights that a QLoRA run trained on, or ``"original"``, those of the checkpoint; None: the
    first where the run's base was in 4 bits. ``dtype``: ``"bfloat16"`` or ``"float16"``. ``progress(done, total)`` counts
    elements; once ``cancelled()`` says yes the call raises InterruptedError, and nothing is left behind. Raises ``RunError``
    where there is no adapter, where it cannot be merged by parts, or where the disk does not take it; as ``Changed`` if base,
    tokenizer or chat template are no longer what the run was begun with, unless ``changed_ok``, which the card then says.
    """
    run, target = attach(run), path_of(folder, "folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError("the folder is not empty.", where=str(target), remedy="Name a new folder.")
    exporter = _Exporter(run, base, dtype, changed_ok, progress, cancelled)
    try:
        with new_folder(target) as draft:
            exporter.write(draft, max_shard_size)
    except OSError as error:
        if isinstance(error, InterruptedError):
            raise
        what = f"the model cannot be written ({error.strerror or error})."
        remedy = f"Name a folder that can be written to, with {amount(exporter.nbytes)} free."
        raise RunError(what, where=str(target), remedy=remedy) from error
    return Exported(target, exporter.base, dtype, exporter.nbytes, exporter.errors)


class _Exporter:
    """One export: what is written, in which order, and what came of it."""

    def __init__(
        self, run: Run, base: str | None, dtype: str, changed_ok: bool, progress: Progress | None, cancelled: Cancelled | None
    ) -> None:
        self.run, self.dtype, self.rounded = run, dtype, half(dtype)
        self.merge = Merge(run, parts=OF_MODEL, changed_ok=changed_ok, progress=progress, cancelled=cancelled)
        known = fingerprints.read(run.dir) if changed_ok else None
        self.changes = changes_of_base(known, self.merge.source, OF_MODEL, progress, cancelled) if known else ()
        self.base = base or ("dequantized" if self.merge.on_four_bits else "original")
        if self.base not in ("dequantized", "original"):
            raise RunError(f"base is {base!r}.", where="export", remedy='Use "dequantized" or "original".')
        if self.base == "dequantized" and not self.merge.on_four_bits:
            raise RunError("the run's base was not in 4 bits.", where="export", remedy='Use base="original".')
        if self.base == "original" and self.merge.packed:
            raise RunError("the checkpoint itself holds 4 bits.", where="export", remedy='Use base="dequantized".')
        if (folder := self.merge.source.path) is None:
            remedy = f"Download it again ('hf download {self.merge.source.name}'), then export."
            raise RunError("the base model is no longer on this machine.", where=self.merge.source.name, remedy=remedy)
        self.folder = folder
        self.infos = {info.name: info for info in self.merge.tensors}
        self.planned = [self._plan(info) for info in self.merge.tensors]
        self.nbytes = sum(tensor.nbytes for tensor in self.planned)
        self.watch = Watch(sum(info.numel for info in self.merge.tensors), progress, cancelled)
        self.errors: dict[str, float] = {}

    def _plan(self, info: TensorInfo) -> Planned:
        _, entry = self.merge.source.find(info.name)
        if entry.dtype.floating or info.quantizable or info.role is Role.PACKED:  # codes of weights are integers too
            shape = info.shape[::-1] if info.layout == TRANSPOSED and not entry.dtype.floating else info.shape
            return Planned(info.name, shape, _NAMES[self.dtype], 2)
        return Planned(info.name, info.shape, entry.dtype.name, entry.dtype.bits // 8)

    def write(self, draft: Path, max_shard_size: int) -> None:
        """Fills the folder."""
        if (free := shutil.disk_usage(draft).free) < self.nbytes:
            what = f"the model takes {amount(self.nbytes)}, and {amount(free)} are free."
            raise RunError(what, where=str(draft.parent), remedy="Free some space, or name a folder on another disk.")
        write_shards(draft, self.planned, self._pieces, max_shard_size)
        source = self.merge.source
        config = {k: v for k, v in source.config.items() if k not in ("quantization_config", "torch_dtype", "_name_or_path")}
        (draft / "config.json").write_text(json.dumps({**config, "dtype": self.dtype}, indent=2) + "\n", "utf-8")
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in _BESIDE):
                shutil.copyfile(path, draft / path.name)
        write_card(self.run.dir, draft, "merged", [self._note(), *self._changed()])

    def _note(self) -> str:
        onto = "the dequantized 4-bit base it was trained on" if self.base == "dequantized" else "the base's own 16-bit weights"
        worst = max(self.errors, key=lambda name: self.errors[name])
        return (
            f"A LoRA adapter merged into {onto}, in {self.dtype}. Against what was trained, each adapted weight differs by at "
            f"most {percent(self.errors[worst])} (relative, Frobenius norm; most in `{worst}`)."
        )

    def _changed(self) -> list[str]:
        changed = "; ".join(map(str, self.changes)).replace("`", "'")
        return [f"This is not what the run was begun with: `{changed}`."] if changed else []

    def _pieces(self, tensor: Planned) -> Iterator[NDArray[Any]]:
        """The tensor's data, as it is stored in the checkpoint but in 16 bits: merged, dequantized, or only cast."""
        self.watch.check()
        info = self.infos[tensor.name]
        if info.name in self.merge.paths:
            held = self.merge.held(info)
            trained = self.merge.trained(info, held)
            elsewhere = self.base == "original" and self.merge.on_four_bits  # than on what it was trained on
            written = (self.merge.onto_original(info) if elsewhere else trained).astype(self.rounded)
            self.errors[info.name] = relative(written, trained)
            yield self._as_stored(info, written)
        elif self.base == "dequantized" and self.merge.in_four_bits(info):
            yield self._as_stored(info, self.merge.held(info).astype(self.rounded))
        elif (held_packed := packed(self.merge.source, info.name)) is not None:
            yield held_packed.dequantize().astype(self.rounded)
        else:
            cast = tensor.dtype == _NAMES[self.dtype]
            for chunk in self.merge.source.chunks(info.name, _CHUNK):
                self.watch.check()
                yield chunk.astype(self.rounded, copy=False) if cast else chunk
        self.watch.moved(info.numel)

    @staticmethod
    def _as_stored(info: TensorInfo, weight: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(weight.T) if info.layout == TRANSPOSED else weight
