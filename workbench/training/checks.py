"""Everything that is wrong with a ``TrainConfig``'s fields, at once: each by its declaration, and which exclude each other.

Covers everything that the fields alone decide. What the model, the dataset or the machine adds (a missing column, 4-bit kernels
that are wrong on this CPU) is checked by ``launch`` and by the worker. Takes any value with these fields, not the class.
"""

from __future__ import annotations

from typing import Any

from workbench.training.row_kinds import COLUMNS, ROW_SHAPES, template_fields
from workbench.training.settings import ADAPTED, METHODS, QUANTIZED, settings_of

_LACKS = {ADAPTED: "has no adapters", QUANTIZED: "quantizes nothing"}
"""What other methods than these lack."""
_MOST_RESCALED = 12
NAMED = (
    "it must be name or owner/name, of letters, digits, '-', '_' and '.', with no '--' or '..', neither '-' nor '.' at either "
    "end, and no '.git' behind."
)
"""What the name of a repository must be."""
_MAGNITUDES = 'init_lora_weights "{}" changes the directions after use_dora has taken the magnitudes: turn one of them off.'


def faults_of(config: Any) -> list[str]:
    """Every fault, in a sentence each; [] where there is none."""
    faults = [*_field_faults(config), *_data_faults(config), *_evaluation_faults(config), *_method_faults(config)]
    return [*faults, *_hub_faults(config)]


def schedule_faults(config: Any) -> list[str]:
    """A warm-up that is longer than the run, once its steps are known; the form, launch and the worker ask for it.

    Not among ``faults_of``: a run that was launched so can still be looked at.
    """
    if config.num_train_epochs is None and config.warmup > config.max_steps:
        return [
            f"warmup_steps is {config.warmup_steps:g}, and the run has {config.max_steps:,} steps: its learning rate would "
            "never be reached. Give fewer, or a share below 1."
        ]
    return []


def _field_faults(config: Any) -> list[str]:
    return [
        f"{name} is {value!r}; it must be {declared.must_be}."
        for name, declared in settings_of(config).items()
        if not declared.allows(value := getattr(config, name))
    ]


def _data_faults(config: Any) -> list[str]:
    faults = _column_faults(config)
    if config.dataset != "builtin" and config.eval_dataset == "builtin":
        faults.append('eval_dataset is "builtin" but dataset is not: name a held-out dataset with the same columns.')
    if config.dataset == "builtin" and (config.dataset_config or config.dataset_revision or config.dataset_split != "train"):
        faults.append(
            "dataset_config, dataset_split and dataset_revision are for folders and the Hub, not for the builtin set."
        )
    if config.dataset == "builtin" and config.eval_dataset is None and config.eval_split is not None:
        faults.append("eval_split is for folders and the Hub: the builtin set has held-out rows of its own.")
    if config.num_train_epochs is not None and config.max_steps != -1:
        faults.append("max_steps and num_train_epochs exclude each other: with num_train_epochs leave max_steps at -1.")
    return faults


def _evaluation_faults(config: Any) -> list[str]:
    asked = [name for name in ("load_best_model_at_end", "early_stopping_patience") if getattr(config, name)]
    missing = [name for name in ("eval_steps", "max_eval_rows") if asked and getattr(config, name) == 0]
    return [f"{name} is 0, and {' and '.join(asked)} {'go' if asked[1:] else 'goes'} by evaluations." for name in missing]


def _hub_faults(config: Any) -> list[str]:
    name = config.hub_model_id
    return [f"hub_model_id is {name!r}; {NAMED}"] if isinstance(name, str) and not is_repository(name) else []


def is_repository(name: str) -> bool:
    """Whether a repository on the Hub can be called so: ``name`` or ``owner/name``.

    >>> from workbench.training.checks import is_repository
    >>> is_repository("owner/name"), is_repository("name.git")
    (True, False)
    """
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return name.isascii() and name.isprintable()  # the Hub's own rule


def _column_faults(config: Any) -> list[str]:
    """Fields that name columns: which go together, and which mean nothing beside others."""
    faults = list[str]()
    if config.row_shape not in list(ROW_SHAPES):
        return faults
    named = {name for name in COLUMNS["auto"] if getattr(config, name) is not None}
    meant = COLUMNS.get(config.row_shape, ())
    if config.row_shape != "auto" and (others := [name for name in COLUMNS["auto"] if name in named and name not in meant]):
        faults.append(f'{", ".join(others)}: rows of the row_shape "{config.row_shape}" have no such column.')
        return faults
    pair = {"prompt_column", "completion_column"} & named
    if len(pair) == 1 and (pair == {"prompt_column"} or "prompt_template" not in named):
        faults.append("prompt_column and completion_column go together: name both or neither.")
    if {"text_column", "prompt_column"} <= named:
        faults.append("text_column and prompt_column exclude each other: learn the whole text or completions only.")
    if "messages_column" in named and named & {"text_column", "prompt_column"}:
        faults.append("messages_column excludes text_column and prompt_column: a row is a chat or a text.")
    if "prompt_template" in named and named & {"text_column", "prompt_column", "messages_column"}:
        faults.append(
            "prompt_template excludes text_column, prompt_column and messages_column: it makes the prompt of columns."
        )
    if config.row_shape == "template" and "prompt_template" not in named:
        faults.append("prompt_template is empty; write the prompt, with {column} where a column's text stands.")
    if isinstance(config.prompt_template, str):
        try:
            template_fields(config.prompt_template)
        except ValueError as error:
            faults.append(f"prompt_template: {error}; a brace that is meant as such is written twice.")
    return faults


def _method_faults(config: Any) -> list[str]:
    faults = []
    begin = config.init_lora_weights
    if config.method == "full" and config.compute_dtype == "float16":
        faults.append('compute_dtype float16 cannot train every weight (method "full"): use "bfloat16" or "float32".')
    if config.inputs_on_host and not config.gradient_checkpointing:
        faults.append("inputs_on_host moves what gradient_checkpointing keeps: turn that on too.")
    if type(config.rescale_mlp) is int and config.rescale_mlp > _MOST_RESCALED:
        faults.append(f"rescale_mlp is {config.rescale_mlp}; beyond {_MOST_RESCALED} small numbers would be lost in float16.")
    for methods, lacks in _LACKS.items():
        unused = [
            name for name, declared in settings_of(config).items()
            if declared.refused and declared.methods == methods and getattr(config, name) != declared.default
        ]  # fmt: skip
        if unused and config.method in METHODS and config.method not in methods:
            faults.append(f'{", ".join(unused)}: method "{config.method}" {lacks}.')
    if config.init_adapter is not None and begin is not True:
        faults.append(f"init_adapter says how adapters begin, and init_lora_weights {begin!r} says another way: leave one out.")
    if config.method == "qlora" and begin == "pissa" and config.use_dora:
        faults.append(_MAGNITUDES.format("pissa"))
    if config.method == "qlora" and begin == "loftq":
        faults += _loftq_faults(config)
    if config.method == "lora" and begin == "loftq":
        faults.append('init_lora_weights "loftq" makes up for quantization, and method "lora" quantizes nothing.')
    if config.method == "qlora" and begin == "eva" and config.llm_int8_skip_modules and not config.upcast_to_fp32:
        faults.append(
            'init_lora_weights "eva" has peft run the model without mixed precision, which modules in 16 bits among those in 4 '
            "do not take: turn upcast_to_fp32 on, or leave llm_int8_skip_modules empty."
        )
    if config.method == "qlora" and begin == "olora" and config.block_size != 64:
        faults.append(
            f'init_lora_weights "olora" has peft quantize the base again, in blocks of 64 whatever it was: block_size is '
            f"{config.block_size}; use 64."
        )
    return faults


def _loftq_faults(config: Any) -> list[str]:
    """LoftQ's product is what 4 bits have lost: it makes up for that only where it is added as it is."""
    faults = []
    if config.use_rslora or config.lora_alpha != config.lora_r:
        scale = "√rank" if config.use_rslora else "rank"
        rest = " and turn use_rslora off" if config.use_rslora else ""
        faults.append(
            f'init_lora_weights "loftq" begins with what 4 bits have lost, which has to be added once, and lora_alpha '
            f"{config.lora_alpha} scales it by alpha / {scale}: make lora_alpha {config.lora_r}, as lora_r is{rest}."
        )
    if config.use_dora:
        faults.append(_MAGNITUDES.format("loftq"))
    return faults
