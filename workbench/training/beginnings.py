"""A run that begins from an adapter: ``TrainConfig(init_adapter=…)``, a run, its folder, or a folder that peft saved.

Covers finding the adapter, taking its shape into the configuration, holding it against the base, and keeping a copy of its
weights in the new run's folder, so that the run can be resumed whatever becomes of them. Loading them is the worker's part.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, WorkbenchError
from workbench.sources import Source
from workbench.sources.local import LocalSource
from workbench.sources.packed import as_loaded
from workbench.sources.rule import TRANSPOSED
from workbench.text import listed
from workbench.training import fingerprints, lineage
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.events import EventReader
from workbench.training.folder import RunFolder, steps_of
from workbench.training.lineage import Ancestor, Lineage
from workbench.training.origins import BASE, changes_of_base
from workbench.training.paths import path_of
from workbench.training.results.card import shown_name
from workbench.training.results.history import RunHistory
from workbench.training.runs import Run, attach

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None), "modules_to_save": (None, []), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "layers_to_transform": (None,), "layer_replication": (None, []), "target_parameters": (None, []), "lora_bias": (False,),
    "exclude_modules": (None, []), "trainable_token_indices": (None, []), "use_qalora": (False,), "use_bdlora": (None,),
    "fan_in_fan_out": (False, True), "alora_invocation_tokens": (None,), "velora_config": (None,),
    "monteclora_config": (None,), "arrow_config": (None,), "kasa_config": (None,),
}  # fmt: skip
"""What peft's other settings must be: the workbench has no field for them."""
_FROM_WEIGHTS = ("olora", "pissa", "corda", "loftq", "lora_ga")
"""Beginnings after which the base is another one than the checkpoint's."""
_KEPT = "Name a run with an adapter, its folder, or a folder that peft saved an adapter in."


@dataclass(frozen=True)
class Beginning:
    """The adapter that a run begins from."""

    folder: Path
    config: TrainConfig
    """The run's configuration with the adapter's rank, alpha and targets."""
    run: Run | None
    """The run that trained it, where that is known."""
    before: tuple[Ancestor, ...] = ()
    """What that run began from, oldest first."""
    warning: str = ""
    """What could not be held against the base."""

    def keep(self, folder: RunFolder) -> None:
        """Copies the weights into a new run's folder, and notes where they are from. OSError where that cannot be written."""
        folder.first_adapter.mkdir()
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(self.folder / name, folder.first_adapter / name)
        Lineage((*self.before, self._ancestor(_sha256(folder.first_adapter / WEIGHTS)))).write(folder.root)

    def _ancestor(self, sha256: str) -> Ancestor:
        if self.run is None:
            named = _read(self.folder / CONFIG).get("base_model_name_or_path")
            return Ancestor(self.folder.name, sha256, shown_name(named) if isinstance(named, str) and named else "unknown")
        config, history = self.run.config, RunHistory()
        history.feed(event for event in EventReader(self.run.dir, without=("sample",)).poll() if event["k"] == "eval")
        steps, losses = steps_of(self.folder), history.evals
        done = int(steps) if steps < float("inf") else None
        last = history.best[0] if config.load_best_model_at_end and history.best else done
        return Ancestor(
            self.run.dir.name, sha256, shown_name(config.model), done, shown_name(config.dataset), config.method,
            config.learning_rate, losses.get(last) if last is not None else None, str(config.init_lora_weights),
        )  # fmt: skip


def taken(config: TrainConfig) -> TrainConfig:
    """The configuration with what its ``init_adapter`` decides: rank, alpha, targets, rsLoRA and DoRA; itself without one.

    ``ConfigError`` where there is no such adapter, or where it is one that the workbench cannot go on from.
    """
    return config if config.init_adapter is None else _taken(config, _found(config.init_adapter)[0])


def begin(config: TrainConfig, source: Source) -> Beginning | None:
    """The adapter that a run begins from, held against its base; None where it begins from nothing.

    ``ConfigError`` as ``taken``, and where the adapter is not one of this base: by the fingerprints of the run that trained it
    where there are any, and by the shapes of every weight. RunError where that run's lineage cannot be read.
    """
    if config.init_adapter is None:
        return None
    folder, run = _found(config.init_adapter)
    longer = dataclasses.replace(_taken(config, folder), init_adapter=str(folder))
    warning = ""
    known = fingerprints.read(run.dir) if run else None
    if known is not None:
        if found := changes_of_base(known, source, (BASE,)):
            what = f"init_adapter: the adapter was trained on another base. {found[0]}."
            raise ConfigError([what], where=str(folder), remedy="Name the base that it was trained on as model.")
    else:
        named = _read(folder / CONFIG).get("base_model_name_or_path")
        warning = f"No fingerprint says which base the adapter {folder.name} was trained on: only its shapes are known to fit."
        if isinstance(named, str) and on_hub(named) and on_hub(config.model) and named != config.model:
            warning = f"The adapter {folder.name} names {named} as its base, and it is put on {config.model}: its shapes fit."
    _check_shapes(folder, source)
    return Beginning(folder, longer, run, lineage.read(run.dir).before if run else (), warning)


def first_adapter(given: str) -> Path:
    """The folder of the adapter that ``init_adapter`` names. ``ConfigError`` where there is none."""
    return _found(given)[0]


def _found(given: str) -> tuple[Path, Run | None]:
    """The adapter's folder, and the run that it lies in."""
    path = path_of(given, "init_adapter")
    if (path / CONFIG).is_file():
        for place in (path.parent, path.parent.parent):  # an adapter's, or a checkpoint's
            try:
                return path, attach(place)
            except WorkbenchError:
                continue
        return path, None
    try:
        run = attach(path)
    except WorkbenchError:
        raise _refused("there is no adapter and no run in this folder.", path) from None
    if (adapter := run.adapter_dir) is None:
        raise _refused("the run has no adapter.", path)
    return adapter, run


def _taken(config: TrainConfig, folder: Path) -> TrainConfig:
    held = _read(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise _refused(f"there is no {WEIGHTS}.", folder, "Save the adapter with peft's save_pretrained, which writes it.")
    if held.get("peft_type") != "LORA":
        raise _refused(f"its peft_type is {held.get('peft_type')!r}, not LORA.", folder)
    odd = [name for name, usual in _PLAIN.items() if name in held and held[name] not in usual]
    if held.get("init_lora_weights") in _FROM_WEIGHTS or str(held.get("init_lora_weights")).startswith("pissa"):
        odd.append("init_lora_weights")
    targets = held.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) and name for name in targets) or not targets:
        odd.append("target_modules")
    odd += [name for name in ("r", "lora_alpha") if type(held.get(name)) is not int]
    if odd:
        given = ", ".join(f"{name}={held.get(name)!r}" for name in odd)[:300]
        raise _refused(f"it has settings that the workbench does not train with ({given}).", folder, "Train it on with peft.")
    return dataclasses.replace(
        config, lora_r=held["r"], lora_alpha=held["lora_alpha"], target_modules=tuple(sorted(targets or ())),
        use_rslora=bool(held.get("use_rslora")), use_dora=bool(held.get("use_dora")), init_lora_weights=True,
    )  # fmt: skip


def _check_shapes(folder: Path, source: Source) -> None:
    """Raises ``ConfigError`` where A (r, in) or B (out, r) is of another size than the base's weight (out, in).

    What the checkpoint names otherwise, or holds fused, the worker finds when it loads the weights.
    """
    shapes = {
        t.name.removesuffix(".weight"): t.shape[::-1] if t.layout == TRANSPOSED else t.shape for t in as_loaded(source)[0]
    }
    wrong = set()
    for matrix in LocalSource(folder).tensors():
        if match := _KEY.fullmatch(matrix.name):
            module, side = match["module"], int(match["side"] == "A")
            shape = shapes.get(module) or shapes.get(module.partition(".")[2])
            if shape is not None and len(shape) == 2 and matrix.shape[side] != shape[side]:
                wrong.add(module)
    if wrong:
        what = f"init_adapter: its matrices do not fit the weights of this base ({listed(sorted(wrong)[:3])})."
        raise ConfigError([what], where=str(folder), remedy="Name the base that it was trained on as model.")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        held = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(f"{path.name} cannot be read ({error}).", path.parent) from error
    if not isinstance(held, dict):
        raise _refused(f"{path.name} holds no settings.", path.parent)
    return held


def _refused(what: str, folder: Path, remedy: str = _KEPT) -> ConfigError:
    return ConfigError([f"init_adapter: {what}"], where=str(folder), remedy=remedy)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
