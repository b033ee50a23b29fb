"""Which of a checkpoint's tensors a run held in 4 bits, and how each was laid out: what merging must know of each.

Covers asking the loaded model, which the worker does once, keeping the answer in the run's folder, and reading it. For an older
run, whose folder has no answer, transformers' own class is asked. Imports torch only when called.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workbench.errors import ModelError, RunError
from workbench.memory.footprint import Plan, in_four_bits
from workbench.sources import Source, TensorInfo
from workbench.sources.rule import AS_STORED, TRANSPOSED
from workbench.training.folder import RunFolder, write_json


@dataclass(frozen=True)
class Held:
    """What a run's base was held as; tensors by their names in the checkpoint."""

    four_bits: frozenset[str]
    layouts: dict[str, str]
    """As in ``TensorInfo``, of linear layers' weights that are not ``as stored``."""

    def write(self, folder: RunFolder) -> None:
        """Keeps it in the run's folder."""
        write_json(folder.held, {"four_bits": sorted(self.four_bits), "layouts": self.layouts})

    def described(self, tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
        """The tensors with the layouts that they had."""
        return [dataclasses.replace(t, layout=self.layouts.get(t.name, AS_STORED)) for t in tensors]


def held_by(model: Any, tensors: Iterable[str]) -> Held:
    """What the loaded ``model`` holds of a checkpoint's ``tensors``, before adapters are attached."""
    from bitsandbytes.nn import Linear4bit
    from transformers.pytorch_utils import Conv1D

    from workbench.sources.exact import loaded_into

    modules = dict(model.named_modules())
    four_bits, layouts = set(), {}
    for name, (parameter, layout) in loaded_into(model, tensors).items():
        path, _, leaf = parameter.rpartition(".")
        module = modules.get(path)
        if leaf != "weight":
            continue
        if isinstance(module, Linear4bit):
            four_bits.add(name)
        if isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D:
            layout = TRANSPOSED
        if layout != AS_STORED:
            layouts[name] = layout
    return Held(frozenset(four_bits), layouts)


def read_held(folder: RunFolder) -> Held | None:
    """What the worker has kept; None in an older folder, without it. RunError where it cannot be read."""
    try:
        fields = json.loads(folder.held.read_text("utf-8"))
        return Held(frozenset(fields["four_bits"]), dict(fields["layouts"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Remove it: transformers is then asked which weights a load holds in 4 bits."
        raise RunError(f"it cannot be read ({type(error).__name__}).", where=str(folder.held), remedy=remedy) from error


def held_exactly(source: Source, plan: Plan, where: str) -> Held:
    """What a load by the installed transformers holds; RunError where it has no class to ask."""
    try:
        tensors = source.tensors(exact=True)
    except ModelError as error:
        what = f"it does not say which weights were in 4 bits, and transformers cannot be asked: {error.what}"
        raise RunError(what, where=where, remedy="Use the transformers that the run was trained with.") from error
    layouts = {t.name: t.layout for t in tensors if t.layout != AS_STORED}
    return Held(frozenset(t.name for t in tensors if in_four_bits(t, plan)), layouts)
