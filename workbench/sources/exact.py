"""Which tensors a QLoRA load holds in 4 bits, asked of transformers' own model class, built without weights.

Covers every model type of the installed transformers: the class is built on the meta device, as a load builds it, and
transformers' own functions say which modules stay as they are and which parameter a checkpoint's tensor becomes. Runs no code
of the model's, and needs torch; imports it only when called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.errors import ModelError
from workbench.sources.header import Entry, shown
from workbench.sources.packed_names import find_packings
from workbench.sources.rule import AS_STORED, FUSED, SPLIT, TRANSPOSED, describe, info
from workbench.sources.tensor_info import Role, TensorInfo

_COUNT = re.compile(r"(?:num|n)_(?:\w+_)?(?:layers?|blocks?|experts|heads)(?:_\w+)?|depths?")


def describe_exactly(entries: Mapping[str, Entry], config: Mapping[str, Any], where: str) -> list[TensorInfo]:
    """A ``TensorInfo`` for every entry, as the model class of ``config`` would load it; ModelError where it cannot be built.

    A checkpoint that is quantized already is loaded as it is, so that the rule's answer, which its parts give, is exact for it.
    """
    if find_packings(entries, config):
        return describe(entries, config)
    _check_counts(config, len(entries), where)
    try:
        import torch
        from transformers.pytorch_utils import Conv1D
        from transformers.quantizers.base import HfQuantizer
        from transformers.quantizers.quantizers_utils import should_convert_module
    except ImportError as error:
        remedy = "Install torch and transformers 5, or leave exact out: the fast rule needs neither."
        raise ModelError(f"The exact answer needs transformers' own loader: {error}.", where=where, remedy=remedy) from error

    model = _without_weights(config, where)
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    modules = dict(model.named_modules())
    becomes = loaded_into(model, entries)

    def judge(entry: Entry, by_rule: TensorInfo) -> tuple[Role, str, str]:
        if entry.name not in becomes:
            return Role.UNUSED, Role.UNUSED.sentence(type(model).__name__), AS_STORED
        loaded, layout = becomes[entry.name]
        path, _, leaf = loaded.rpartition(".")
        module = modules.get(path)
        linear = type(module) is torch.nn.Linear or isinstance(module, Conv1D)
        if linear and leaf == "weight" and should_convert_module(path, skipped):
            role, layout = (Role.CONV1D, TRANSPOSED) if isinstance(module, Conv1D) else (Role.LINEAR, layout)
        elif not by_rule.quantizable:
            return by_rule.role, by_rule.reason, layout
        else:
            role = Role.SKIPPED_LINEAR if linear else Role.OTHER_MODULE
        return role, role.sentence(type(module).__name__), layout

    return [
        info(entry, *judge(entry, by_rule)) for entry, by_rule in zip(entries.values(), describe(entries, config), strict=True)
    ]


def loaded_into(model: Any, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A checkpoint's tensor → the parameter that transformers loads it into (one of them, where it is split), and its layout.

    Without those that the model has no parameter for. The layout is ``as stored``, ``fused`` or ``split``.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    layouts = {p: SPLIT if len(c.target_patterns) > 1 else FUSED for c in converters for p in c.source_patterns}
    parts = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    there = {name: True for named in parts for name, _ in named}
    found = {}
    for name in names:
        loaded, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, there)
        if loaded not in there and name in there:
            loaded, pattern = name, None
        if loaded in there:
            found[name] = loaded, AS_STORED if pattern is None else layouts[pattern]
    return found


def _without_weights(config: Mapping[str, Any], where: str) -> Any:
    import torch
    import transformers
    from transformers import initialization

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        what = f"The installed transformers {transformers.__version__} has no model type {shown(str(kind))}."
        raise ModelError(what, where=where, remedy="Leave exact out, or upgrade transformers.")
    named = config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    first = names[0] if names else ""
    try:
        # JSON has no infinity, which is why transformers writes it as an object.
        plain = json.loads(json.dumps({**config, "architectures": names or None}), object_hook=_float)
        values = transformers.CONFIG_MAPPING[kind].from_dict(plain)
        auto = transformers.AutoModelForCausalLM
        cls: Any = getattr(transformers, first, None) if first.isidentifier() else None
        # What a load leaves in 16 bits it decides before weights are tied, when the last parameter may still be a tied head.
        with torch.device("meta"), initialization.no_tie_weights():
            ours = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
            if ours and getattr(cls, "config_class", None) is type(values):
                return cls(values)
            fallback = auto if type(values) in auto._model_mapping else transformers.AutoModel
            return fallback.from_config(values, trust_remote_code=False)
    except Exception as error:  # whatever a model class makes of a config.json that it does not expect
        what = f"transformers cannot build the model from it: {type(error).__name__}: {shown(str(error), 200)}."
        raise ModelError(
            what, where=f"{where}: config.json", remedy="Leave exact out: the fast rule needs no class."
        ) from error


def _float(value: dict[str, Any]) -> Any:
    """The number that transformers 5 writes as ``{"__float__": "Infinity"}``, or else the object itself."""
    tag = value.get("__float__") if len(value) == 1 else None
    return float(tag) if tag in ("Infinity", "-Infinity", "NaN") else value


def _check_counts(config: Mapping[str, Any], tensors: int, where: str) -> None:
    """Refuse a config.json whose model would take for ever to build: every layer and every expert has a tensor or more."""
    most = 64 * max(tensors, 16)
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for key, value in ((key, value) for part in parts for key, value in part.items()):
        if _COUNT.fullmatch(key) and isinstance(value, int) and value > most:
            what = f"{key} is {shown(str(value))}, for a checkpoint of {tensors:,} tensors."
            raise ModelError(what, where=f"{where}: config.json", remedy="Leave exact out, or mend config.json.")
