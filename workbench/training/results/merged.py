"""The weights of a merged model, a tensor at a time: merged, dequantized, or as the checkpoint has them.

Covers which base an adapter is merged into, the float32 values of each tensor, and the error against what was trained. How
they are rounded and stored is decided by who writes them: ``export.py`` as safetensors, ``gguf_model.py`` as GGUF.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import RunError
from workbench.progress import Cancelled, Progress
from workbench.sources import TensorInfo
from workbench.sources.base import Watch
from workbench.sources.packed import weights
from workbench.text import percent
from workbench.training import fingerprints
from workbench.training.origins import OF_MODEL, changes_of_base
from workbench.training.results.card import code
from workbench.training.results.merging import Merge, relative

if TYPE_CHECKING:
    from workbench.training.runs import Run

BASES = ("dequantized", "original")


class Merged:
    """A run's adapter on one of its bases: what each tensor is, and what differs from what was trained once it is written."""

    def __init__(
        self, run: Run, base: str | None, changed_ok: bool, progress: Progress | None, cancelled: Cancelled | None
    ) -> None:
        self.run = run
        self.merge = Merge(run, parts=OF_MODEL, changed_ok=changed_ok, progress=progress, cancelled=cancelled)
        self.changed = changed(self.merge, run.dir, OF_MODEL, progress, cancelled) if changed_ok else []
        """A sentence on what of the base is not what the run was begun with, where that was accepted."""
        self.base = base or ("dequantized" if self.merge.on_four_bits else "original")
        if self.base not in BASES:
            raise RunError(f"base is {base!r}.", where="export", remedy='Use "dequantized" or "original".')
        if self.base == "dequantized" and not self.merge.on_four_bits:
            raise RunError("the run's base was not in 4 bits.", where="export", remedy='Use base="original".')
        if self.base == "original" and self.merge.packed:
            raise RunError("the checkpoint itself holds 4 bits.", where="export", remedy='Use base="dequantized".')
        if (folder := self.merge.source.path) is None:
            remedy = f"Download it again ('hf download {self.merge.source.name}'), then export."
            raise RunError("the base model is no longer on this machine.", where=self.merge.source.name, remedy=remedy)
        self.folder: Path = folder
        self.watch = Watch(sum(info.numel for info in self.merge.tensors), progress, cancelled)
        self.errors: dict[str, float] = {}
        """Adapted weight → ‖written − trained‖ / ‖trained‖, of those that were written."""

    def adapted(self, info: TensorInfo) -> tuple[NDArray[Any], NDArray[Any]]:
        """(what is written, what was trained) of a weight with an adapter, float32 (out, in)."""
        held = self.merge.held(info)
        trained = self.merge.trained(info, held)
        elsewhere = self.base == "original" and self.merge.on_four_bits  # than on what it was trained on
        return (self.merge.onto_original(info) if elsewhere else trained), trained

    def whole(self, info: TensorInfo) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """(the tensor's values in float32, what was trained): None for one without an adapter."""
        self.watch.check()
        if info.name in self.merge.paths:
            return self.adapted(info)
        if self.base == "dequantized" and self.merge.in_four_bits(info):
            return self.merge.held(info), None
        return np.asarray(weights(self.merge.source, info.name, info.layout), np.float32), None

    def wrote(self, info: TensorInfo, written: NDArray[Any], trained: NDArray[Any]) -> None:
        """Takes note of an adapted weight as it is stored."""
        self.errors[info.name] = relative(written, trained)

    def note(self, dtype: str) -> str:
        """What was merged and what that changed, for the card."""
        onto = "the dequantized 4-bit base it was trained on" if self.base == "dequantized" else "the base's own 16-bit weights"
        worst = max(self.errors, key=lambda name: self.errors[name])
        return (
            f"A LoRA adapter merged into {onto}, in {dtype}. Against what was trained, each adapted weight differs by at "
            f"most {percent(self.errors[worst])} (relative, Frobenius norm; most in {code(worst)})."
        )


def changed(merge: Merge, run: Path, parts: Sequence[str], progress: Progress | None, cancelled: Cancelled | None) -> list[str]:
    """A sentence for the card on what of these parts of the base is not what the run was begun with; [] where all is."""
    known = fingerprints.read(run)
    found = changes_of_base(known, merge.source, parts, progress, cancelled) if known else ()
    return [f"This is not what the run was begun with: {code('; '.join(map(str, found)))}."] if found else []
