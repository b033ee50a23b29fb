"""A run's adapter as a GGUF file, which llama.cpp puts on a GGUF of the base while it runs.

Covers which adapters can be one, their two factors a weight, and the keys. llama.cpp scales by alpha / rank, the same for all
weights, or by 1 where alpha is 0. So peft's own scaling is multiplied into B, and alpha is 0: right with rsLoRA, and where
ranks or alphas differ from weight to weight. The base's part is ``gguf_model.py``'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import RunError
from workbench.progress import Cancelled, Progress
from workbench.sources import TensorInfo
from workbench.sources.base import Watch
from workbench.training import lineage
from workbench.training.origins import BASE
from workbench.training.results.card import base_of
from workbench.training.results.gguf_files import Tensor, Writer, encoded
from workbench.training.results.gguf_layouts import Layout
from workbench.training.results.merged import changed
from workbench.training.results.merging import Merge

if TYPE_CHECKING:
    from workbench.training.runs import Run

FILE = "adapter.gguf"
KINDS = {"float32": "F32", "float16": "F16"}
_MERGE = 'Export the merged model instead: format="gguf".'
_ON_FOUR_BITS = (
    "It was trained on the base in bitsandbytes' 4 bits, and no GGUF of the base holds the same weights, whatever its type: "
    '`wb.deployed` measures what the difference costs. A merged model (`format="gguf"`) is on the base that it was trained on.'
)


class GgufAdapter:
    """The export of one adapter. Raises at once where it cannot be one that llama.cpp loads."""

    base = None
    """It is merged into nothing."""

    def __init__(
        self, run: Run, dtype: str | None, changed_ok: bool, progress: Progress | None, cancelled: Cancelled | None
    ) -> None:
        self.dtype = dtype or "float32"
        if self.dtype not in KINDS:
            what = f"dtype is {dtype!r}."
            raise RunError(what, where="export", remedy='Use "float32" or "float16" for an adapter in GGUF.')
        merge = Merge(run, changed_ok=changed_ok, progress=progress, cancelled=cancelled)
        self.run, self.merge = run, merge
        _check(merge, run)
        self.changed = changed(merge, run.dir, (BASE,), progress, cancelled) if changed_ok else []
        self.layout = Layout(merge.source.config, merge.source.name)
        self.infos = [info for info in merge.tensors if info.name in merge.paths]
        self.watch = Watch(sum(info.numel for info in self.infos), progress, cancelled)
        self.planned = [tensor for info in self.infos for tensor in self._plan(info)]
        self.nbytes = sum(tensor.nbytes for tensor in self.planned)
        self.errors: dict[str, float] = {}

    def _plan(self, info: TensorInfo) -> tuple[Tensor, Tensor]:
        name, rank = self.layout.name(info.name), self.merge.rank(info)
        out, inner = info.shape
        kind = KINDS[self.dtype]
        return Tensor(f"{name}.lora_a", (rank, inner), kind), Tensor(f"{name}.lora_b", (out, rank), kind)

    def write(self, draft: Path) -> None:
        """Fills the folder."""
        keys = {
            "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 0.0,
            "general.name": f"LoRA adapter of {self.merge.source.name}", **base_keys(self.merge),
        }  # fmt: skip
        writer = Writer(draft / FILE, self.layout.architecture.name, keys, self.planned)
        try:
            for info in self.infos:
                self.watch.check()
                a, b = self.merge.factors(info)
                writer.write(encoded(a, KINDS[self.dtype]))
                writer.write(encoded(self.layout.turned(info.name, b), KINDS[self.dtype]))
                self.watch.moved(info.numel)
        finally:
            writer.close()

    def notes(self) -> list[str]:
        """What it is, for the card."""
        return [
            f"A LoRA adapter as GGUF ({self.dtype}), for llama.cpp with a GGUF of the same base. Its scaling is multiplied in. "
            "Any base of the same shape loads with it: name the right one.",
            *[_ON_FOUR_BITS] * self.merge.on_four_bits,
            *self.changed,
            *self.layout.notes(),
        ]


def _check(merge: Merge, run: Run) -> None:
    """Refuses what is more than two factors a weight on the base as it is."""
    where = str(merge.folder)
    config: dict[str, Any] = json.loads((merge.folder / "adapter_config.json").read_text("utf-8"))
    if config.get("use_dora"):
        raise RunError("DoRA's magnitudes have no place in a GGUF adapter.", where=where, remedy=_MERGE)
    if merge.from_weights:
        what = f"an adapter begun by {merge.config.init_lora_weights!r} belongs to a base that it changed, and not to its GGUF."
        raise RunError(what, where=where, remedy=_MERGE)
    begun = (merge.config.init_lora_weights, *(one.begun for one in lineage.read(run.dir).before))
    if merge.on_four_bits and "loftq" in begun:
        what = "an adapter begun by 'loftq' makes up for what the run's 4 bits lost of the base, which no GGUF has lost."
        raise RunError(what, where=where, remedy=_MERGE)
    if config.get("modules_to_save"):
        raise RunError("whole modules were trained beside the adapter (modules_to_save).", where=where, remedy=_MERGE)


def base_keys(merge: Merge) -> dict[str, Any]:
    """``general.base_model``: which base, and where it is from."""
    name, commit, licence = base_of(merge.config, Path(merge.source.path).name if merge.source.path else None)
    prefix = "general.base_model.0"
    found: dict[str, Any] = {"general.base_model.count": 1, f"{prefix}.name": name.partition("/")[2] or name}
    if "/" in name:
        found |= {f"{prefix}.organization": name.partition("/")[0], f"{prefix}.repo_url": f"https://huggingface.co/{name}"}
    if commit:
        found[f"{prefix}.version"] = commit
    if licence:
        found["general.license"] = licence
    return found
