"""What each field of a ``TrainConfig`` may be, and which fields exclude each other: all faults told together.

Covers everything that the fields alone decide. What the model, the dataset or the machine adds (a missing column, 4-bit kernels
that are wrong on this CPU) is told by ``runs.launch`` and by the worker.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING

from workbench.quant.formats import BLOCK_SIZES, FORMATS

if TYPE_CHECKING:
    from workbench.training.config import TrainConfig

METHODS = ("qlora", "lora", "full")
QUANT_TYPES = tuple(name for name, form in FORMATS.items() if form.trainable)
COMPUTE_DTYPES = ("auto", "bfloat16", "float16", "float32")
OPTIMIZERS = ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt")
INIT_LORA_WEIGHTS = (True, "gaussian", "olora", "pissa", "loftq")
REPORTS = ("none", "tensorboard")

_WHOLE = {  # field: smallest value
    "max_length": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 1, "save_steps": 0,
    "save_total_limit": 1, "eval_steps": 0, "max_eval_rows": 0, "lora_r": 1, "lora_alpha": 1, "page_min_numel": 1, "seed": 0,
    "sample_max_new_tokens": 1, "nproc_per_node": 1,
}  # fmt: skip
_REAL: dict[str, tuple[float, float, bool]] = {  # field: lowest, highest, whether the lowest itself is allowed
    "learning_rate": (0.0, math.inf, False), "warmup_steps": (0.0, math.inf, True), "weight_decay": (0.0, math.inf, True),
    "adam_beta1": (0.0, 1.0, True), "adam_beta2": (0.0, 1.0, True), "max_grad_norm": (0.0, math.inf, True),
    "lora_dropout": (0.0, 1.0, True), "num_train_epochs": (0.0, math.inf, False),
}  # fmt: skip
CHOICES = {
    "method": METHODS, "quant_type": QUANT_TYPES, "block_size": BLOCK_SIZES, "compute_dtype": COMPUTE_DTYPES,
    "optim": OPTIMIZERS, "lr_scheduler_type": SCHEDULES, "init_lora_weights": INIT_LORA_WEIGHTS,
    "report_to": REPORTS,
}  # fmt: skip
_FLAG = ("double_quant", "gradient_checkpointing", "completion_only_loss", "use_rslora", "use_dora")
_NAME = ("dataset_split",)
_NAME_OR_NONE = (
    "eval_dataset", "eval_split", "dataset_config", "dataset_revision", "text_column", "prompt_column", "completion_column",
    "messages_column",
)  # fmt: skip
OF_ADAPTERS = {"use_rslora": False, "use_dora": False, "init_lora_weights": True}
"""Fields that only adapters have, beside rank, alpha, dropout and targets, and what they are unless given."""
_TWO_STEPS = (
    "Two steps do it outside this run: begin adapters so on the unquantized model and save them and what is left of the model, "
    "as peft's documentation shows; then quantize that and go on training the saved adapters."
)


def faults_of(config: TrainConfig) -> list[str]:
    """Every fault, in a sentence each; [] where there is none."""
    return [*_field_faults(config), *_data_faults(config), *_method_faults(config)]


def schedule_faults(config: TrainConfig) -> list[str]:
    """A warm-up that is longer than the run, once its steps are known; told by the form, by launch and by the worker.

    Not among ``faults_of``: a run that was launched so can still be looked at.
    """
    if config.num_train_epochs is None and config.warmup > config.max_steps:
        return [
            f"warmup_steps is {config.warmup_steps:g}, and the run has {config.max_steps:,} steps: its learning rate would "
            "never be reached. Give fewer, or a share below 1."
        ]
    return []


def _field_faults(config: TrainConfig) -> list[str]:
    faults = []

    def fault(name: str, wanted: str) -> None:
        faults.append(f"{name} is {getattr(config, name)!r}; it must be {wanted}.")

    for name, least in _WHOLE.items():
        value = getattr(config, name)
        if name == "max_steps" and value == -1 and config.num_train_epochs is not None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            fault(name, f"a whole number, {least} or more")
    for name, (low, high, with_low) in _REAL.items():
        value = getattr(config, name)
        if name == "num_train_epochs" and value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not number or not (low <= value if with_low else low < value) or not value < high:
            above = f"{low:g} or more" if with_low else f"above {low:g}"
            fault(name, f"a number, {above}" + (f" and below {high:g}" if math.isfinite(high) else ""))
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            fault(name, "one of " + ", ".join(map(repr, choices)))
    for name in _FLAG:
        if not isinstance(getattr(config, name), bool):
            fault(name, "True or False")
    for name in ("model", "dataset"):
        if not isinstance(getattr(config, name), str) or not getattr(config, name):
            fault(name, '"builtin", a path or owner/name')
    for name in (*_NAME, *_NAME_OR_NONE):
        value = getattr(config, name)
        if (name in _NAME or value is not None) and (not isinstance(value, str) or not value):
            fault(name, "a name" if name in _NAME else "None or a name")
    if config.target_modules != "all-linear" and not _names(config.target_modules):
        fault("target_modules", '"all-linear" or a tuple of module names')
    if config.sample_prompts is not None and config.sample_prompts != () and not _names(config.sample_prompts):
        fault("sample_prompts", "None or a tuple of texts that are not empty")
    if config.llm_int8_skip_modules != () and not _patterns(config.llm_int8_skip_modules):
        fault("llm_int8_skip_modules", "a tuple of module names or regular expressions")
    return faults


def _data_faults(config: TrainConfig) -> list[str]:
    faults = []
    if (config.prompt_column is None) != (config.completion_column is None):
        faults.append("prompt_column and completion_column go together: name both or neither.")
    if config.text_column is not None and config.prompt_column is not None:
        faults.append("text_column and prompt_column exclude each other: learn the whole text or completions only.")
    if config.messages_column is not None and (config.text_column or config.prompt_column):
        faults.append("messages_column excludes text_column and prompt_column: a row is a chat or a text.")
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


def _method_faults(config: TrainConfig) -> list[str]:
    faults = []
    begin = config.init_lora_weights
    if config.method == "full" and config.compute_dtype == "float16":
        faults.append('compute_dtype float16 cannot train every weight (method "full"): use "bfloat16" or "float32".')
    if config.method == "full":
        unused = [name for name, default in OF_ADAPTERS.items() if getattr(config, name) != default]
        if unused:
            faults.append(f'{", ".join(unused)}: method "full" has no adapters.')
    if config.method in ("lora", "full") and config.llm_int8_skip_modules:
        faults.append(f'llm_int8_skip_modules: method "{config.method}" quantizes nothing.')
    if config.method == "qlora" and begin in ("pissa", "loftq"):
        faults.append(
            f'init_lora_weights "{begin}" needs unquantized weights, which method "qlora" does not hold. {_TWO_STEPS}'
        )
    if config.method == "lora" and begin == "loftq":
        faults.append('init_lora_weights "loftq" makes up for quantization, and method "lora" quantizes nothing.')
    if config.method == "qlora" and begin == "olora" and config.block_size != 64:
        faults.append(
            f'init_lora_weights "olora" has peft quantize the base again, in blocks of 64 whatever it was: block_size is '
            f"{config.block_size}; use 64."
        )
    return faults


def _patterns(value: object) -> bool:
    try:
        return _names(value) and all(re.compile(name) for name in value)  # type: ignore[attr-defined]
    except re.error:
        return False


def _names(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str) and v for v in value)
