"""The fields of a run's form as data: names, labels with units, groups, and how a control's value becomes a configuration's.

Covers what is asked, in which group, and which field a fault belongs to. Holds no widgets (``panels.run_form`` does) and no
rules about values (``workbench.training.checks`` does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import ConfigError
from workbench.quant.formats import BLOCK_SIZES
from workbench.training.checks import (
    COMPUTE_DTYPES,
    FSDP,
    INIT_LORA_WEIGHTS,
    METHODS,
    OF_ADAPTERS,
    OPTIMIZERS,
    QUANT_STORAGES,
    QUANT_TYPES,
    REPORTS,
    SCHEDULES,
    schedule_faults,
)
from workbench.training.config import TrainConfig

Kind = Literal["whole", "real", "text", "names", "choice", "flag"]
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Field:
    """One control. ``name``: the field of ``TrainConfig`` that it sets, or one of ``SWITCHES``."""

    name: str
    label: str
    kind: Kind
    options: Options = ()
    hint: str = ""
    wide: bool = False
    shown: tuple[str, ...] = ()
    """Fields of which one must be in use for this control to be there: a switch's value, or a method."""


@dataclass(frozen=True)
class Group:
    """Controls that belong together; one with a title is folded until it is asked for."""

    title: str
    fields: tuple[Field, ...]
    methods: tuple[str, ...] = METHODS
    """The methods for which the group means something."""


def _same(names: Iterable[Any]) -> Options:
    return tuple((str(name), name) for name in names)


_METHODS = (
    ("QLoRA: adapters on a 4-bit base", "qlora"),
    ("LoRA: adapters on a 16-bit base", "lora"),
    ("Full: every weight", "full"),
)
_BEGINNINGS = {"gaussian": "A normal, B zero", "olora": "OLoRA", "pissa": "PiSSA", "loftq": "LoftQ"}
_INITS = tuple((_BEGINNINGS.get(str(value), "A at random, B zero"), value) for value in INIT_LORA_WEIGHTS)
_AUTO = "auto (by the device)"
_SHARDS = tuple((name or "not sharded", name) for name in FSDP)

SWITCHES: Mapping[str, Options] = {
    "run_for": (("steps", "max_steps"), ("epochs", "num_train_epochs")),
    "columns": (
        ("the dataset's own", ""), ("one text", "text_column"), ("prompt and completion", "prompt_column"),
        ("chat messages", "messages_column"),
    ),
}  # fmt: skip
"""Controls that choose which of several fields counts; the others are as they come."""

GROUPS = (
    Group(
        "",
        (
            Field("model", "Model", "text", hint="builtin, a folder, owner/name", wide=True),
            Field("dataset", "Dataset", "text", hint="builtin, a file or folder, owner/name", wide=True),
            Field("method", "Method", "choice", _METHODS, wide=True),
            Field("run_for", "Run for", "choice", SWITCHES["run_for"]),
            Field("max_steps", "Steps", "whole", shown=("max_steps",)),
            Field("num_train_epochs", "Epochs", "real", shown=("num_train_epochs",)),
            Field("per_device_train_batch_size", "Batch (rows)", "whole"),
            Field("max_length", "Length (tokens)", "whole"),
            Field("learning_rate", "Learning rate", "real"),
            Field("lora_r", "Adapter rank", "whole", shown=("qlora", "lora")),
        ),
    ),
    Group(
        "Data",
        (
            Field("columns", "Columns", "choice", SWITCHES["columns"]),
            Field("text_column", "Text column", "text", shown=("text_column",)),
            Field("prompt_column", "Prompt column", "text", shown=("prompt_column",)),
            Field("completion_column", "Completion column", "text", shown=("prompt_column",)),
            Field("messages_column", "Messages column", "text", shown=("messages_column",)),
            Field("completion_only_loss", "Loss on completions only", "flag"),
            Field("dataset_config", "Configuration of the dataset", "text", hint="a folder inside it"),
            Field("dataset_split", "Split", "text"),
            Field("dataset_revision", "Revision (Hub)", "text", hint="branch, tag or commit"),
            Field("eval_dataset", "Held-out dataset", "text", hint="none, or the builtin's own"),
            Field("eval_split", "Held-out split", "text"),
        ),
    ),
    Group(
        "Quantization of the base",
        (
            Field("quant_type", "4-bit format", "choice", tuple((name.upper(), name) for name in QUANT_TYPES)),
            Field("block_size", "Block size (weights)", "choice", _same(BLOCK_SIZES)),
            Field("double_quant", "Double quantization", "flag"),
            Field("llm_int8_skip_modules", "Modules left out of 4 bits", "names", hint="the head is, always", wide=True),
        ),
        ("qlora",),
    ),
    Group(
        "Adapters",
        (
            Field("lora_alpha", "Alpha", "whole"),
            Field("lora_dropout", "Dropout (share)", "real"),
            Field("target_modules", "Modules with an adapter", "names", hint="all-linear", wide=True),
            Field("init_lora_weights", "Initialisation", "choice", _INITS),
            Field("use_rslora", "Scale by α / √rank (rsLoRA)", "flag"),
            Field("use_dora", "Train magnitudes too (DoRA)", "flag"),
        ),
        ("qlora", "lora"),
    ),
    Group(
        "Optimizer and schedule",
        (
            Field("optim", "Optimizer", "choice", _same(OPTIMIZERS), wide=True),
            Field("page_min_numel", "Page states from (elements)", "whole"),
            Field("lr_scheduler_type", "Schedule", "choice", _same(SCHEDULES), wide=True),
            Field("warmup_steps", "Warm-up (steps; below 1 a share)", "real"),
            Field("gradient_accumulation_steps", "Batches a step", "whole"),
            Field("max_grad_norm", "Clip gradients at (norm; 0: never)", "real"),
            Field("weight_decay", "Weight decay", "real"),
            Field("adam_beta1", "Adam β₁", "real"),
            Field("adam_beta2", "Adam β₂", "real"),
        ),
    ),
    Group(
        "Memory",
        (
            Field("compute_dtype", "Compute dtype", "choice", ((_AUTO, "auto"), *_same(COMPUTE_DTYPES[1:])), wide=True),
            Field("gradient_checkpointing", "Gradient checkpointing", "flag"),
        ),
    ),
    Group(
        "Checkpoints and evaluation",
        (
            Field("save_steps", "Checkpoint every (steps; 0: never)", "whole"),
            Field("save_total_limit", "Checkpoints kept", "whole"),
            Field("eval_steps", "Evaluate every (steps; 0: at both ends)", "whole"),
            Field("max_eval_rows", "Held-out rows at most (0: no evaluation)", "whole"),
            Field("sample_max_new_tokens", "Tokens generated for a sample", "whole"),
            Field("seed", "Seed", "whole"),
            Field("report_to", "Logs besides the workbench's", "choice", _same(REPORTS)),
        ),
    ),
    Group(
        "Several GPUs (not yet run on any)",
        (
            Field("nproc_per_node", "Processes (one a GPU)", "whole"),
            Field("fsdp", "Shard over them (FSDP; written as code, not launched)", "choice", _SHARDS, wide=True),
            Field("bnb_4bit_quant_storage", "4-bit weights stored as", "choice", _same(QUANT_STORAGES)),
        ),
    ),
)  # fmt: skip
FIELDS = {field.name: field for group in GROUPS for field in group.fields}
_OF_COLUMNS = ("text_column", "prompt_column", "completion_column", "messages_column")
_NOTHING_FOR: Mapping[str, tuple[tuple[str, ...], Any]] = {
    "llm_int8_skip_modules": (("qlora",), ()),
    **{name: (("qlora", "lora"), value) for name, value in OF_ADAPTERS.items()},
}
"""Fields that some methods refuse: the methods that have them, and their value for the others, whose forms lack them."""
_NO_NONE = ("model", "dataset", "dataset_split")


def shown_values(config: TrainConfig) -> dict[str, Any]:
    """What the controls say for a configuration."""
    return {name: _control_value(field, config) for name, field in FIELDS.items()}


def _control_value(field: Field, config: TrainConfig) -> Any:
    if field.name == "run_for":
        return "max_steps" if config.num_train_epochs is None else "num_train_epochs"
    if field.name == "columns":
        return next((value for _, value in SWITCHES["columns"] if value and getattr(config, value) is not None), "")
    value = getattr(config, field.name)
    if field.name == "max_steps" and config.num_train_epochs is not None:
        return TrainConfig().max_steps
    if field.name == "num_train_epochs":
        return 1.0 if value is None else value
    if field.kind == "names":
        return value if isinstance(value, str) else ", ".join(value)
    return "" if field.kind == "text" and value is None else value


def config_of(base: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that the controls say; what has no control is the base's. ``ConfigError`` with every fault."""
    said = {name: _config_value(FIELDS[name], value) for name, value in values.items() if name not in SWITCHES}
    if values["run_for"] == "max_steps":
        said["num_train_epochs"] = None
    else:
        said["max_steps"] = -1
    kept = {"prompt_column": ("prompt_column", "completion_column")}.get(values["columns"], (values["columns"],))
    said |= {name: None for name in _OF_COLUMNS if name not in kept}
    said |= {name: value for name, (methods, value) in _NOTHING_FOR.items() if values["method"] not in methods}
    faults = [f"{name} is empty; name the column." for name in kept if name and said[name] is None]
    try:
        config = TrainConfig.from_dict(base.to_dict() | said)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults], where=error.where, remedy=error.remedy) from None
    faults += schedule_faults(config)
    if faults:
        raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and try again.")
    return config


def _config_value(field: Field, value: Any) -> Any:
    if field.kind == "names":
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        return "all-linear" if field.name == "target_modules" and names in ((), ("all-linear",)) else names
    if field.kind == "text":
        return value.strip() or ("" if field.name in _NO_NONE else None)
    return value


def faults_by_field(faults: Iterable[str]) -> dict[str, list[str]]:
    """Each fault beside the control of the field that it names first; under "" those of no control."""
    found: dict[str, list[str]] = {}
    for fault in faults:
        named = (word for word in re.findall(r"\w+", fault) if word in FIELDS)
        name = next(named, "")
        found.setdefault(name, []).append(fault.replace(name, FIELDS[name].label.partition(" (")[0], 1) if name else fault)
    return found


def told(group: Group, values: Mapping[str, Any]) -> str:
    """What a folded group says, in a line: the values as the controls have them, and the flags that are on."""
    used = (field for field in group.fields if in_use(field, values) and field.name not in SWITCHES)
    return ", ".join(filter(None, (_said(field, values[field.name]) for field in used)))


def _said(field: Field, value: Any) -> str:
    label = field.label.partition(" (")[0]
    name = label if label[1:2].isupper() else label[:1].lower() + label[1:]
    if field.kind == "flag":
        return name if value else ""
    if field.kind == "choice":
        chosen = next(title for title, option in field.options if option == value)
        return f"{name} {chosen}" if isinstance(value, int) and not isinstance(value, bool) else chosen
    if field.kind in ("whole", "real"):
        return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:g}"
    return f"{name} {value}" if value else ""


def in_use(field: Field, values: Mapping[str, Any]) -> bool:
    """Whether a field's control is there, as the switches and the method stand."""
    return not field.shown or any(values[name] in field.shown for name in (*SWITCHES, "method"))
