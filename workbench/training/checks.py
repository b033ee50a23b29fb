"""Everything that is wrong with a ``TrainConfig``'s fields, at once: each by its declaration, and which exclude each other.

Covers everything that the fields alone decide. What the model, the dataset or the machine adds (a missing column, 4-bit kernels
that are wrong on this CPU) is checked by ``launch`` and by the worker. Takes any value with these fields, not the class.
"""

from __future__ import annotations

from typing import Any

from workbench.training.settings import ADAPTED, METHODS, QUANTIZED, settings_of

_LACKS = {ADAPTED: "has no adapters", QUANTIZED: "quantizes nothing"}
"""What other methods than these lack."""
_MOST_RESCALED = 12
_TWO_STEPS = (
    "Two steps do it outside this run: begin adapters so on the unquantized model and save them and what is left of the model, "
    "as peft's documentation shows; then quantize that and go on training the saved adapters."
)


def faults_of(config: Any) -> list[str]:
    """Every fault, in a sentence each; [] where there is none."""
    return [*_field_faults(config), *_data_faults(config), *_method_faults(config)]


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
    if config.method == "qlora" and begin == "pissa":
        faults.append(
            'init_lora_weights "pissa" needs unquantized weights, which method "qlora" does not hold, and leaves a base that '
            f"no checkpoint has. {_TWO_STEPS}"
        )
    if config.method == "qlora" and begin == "loftq":
        faults += _loftq_faults(config)
    if config.method == "lora" and begin == "loftq":
        faults.append('init_lora_weights "loftq" makes up for quantization, and method "lora" quantizes nothing.')
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
        faults.append(
            'init_lora_weights "loftq" changes the directions after use_dora has taken the magnitudes: turn one of them off.'
        )
    return faults
