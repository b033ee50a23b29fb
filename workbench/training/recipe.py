"""A run as code: one cell of transformers, peft and bitsandbytes that trains the same, step by step, without the workbench.

Covers adapters and training, with ``base_code`` the model, and with ``recipe_rows`` data: the same seed, rows and order, so the
same losses. Leaves out what only watches: the held-out loss, samples, events, pausing, the mirror. Imports none of those
libraries.
"""

from __future__ import annotations

import inspect
from importlib.resources import files as inside
from typing import Any

from workbench import compat
from workbench.training.base_code import at_commit, at_revision, dtype, loaded, model_name
from workbench.training.beginnings import first_adapter, taken
from workbench.training.choices import EVA_ROWS, EVA_TOKENS_A_RANK
from workbench.training.config import OF_ADAPTERS, PAGE_MIN_NUMEL, TrainConfig, as_config
from workbench.training.data import training_files
from workbench.training.dataset_files import Files, on_hub
from workbench.training.environment import ALLOCATOR, SEGMENTS
from workbench.training.recipe_rows import as_source, data_code
from workbench.training.rows.shapes import Shape, shape_of


def as_code(config: TrainConfig) -> str:
    """The run as one cell of Python, with transformers, peft and bitsandbytes.

    Returns:
        The text of the cell, which stands by itself.

    Raises:
        RunError: Where ``config`` is no configuration, or its ``init_adapter`` no run.
        DataError: Where the dataset cannot be found.
        ModelError: Where the model cannot be found.

    >>> "model = get_peft_model(model, LoraConfig(" in wb.as_code(wb.TrainConfig())
    True
    """
    config = taken(as_config(config, "as_code"))
    files = training_files(config)
    shape = shape_of(config, files)
    parts = [
        _start(config) + _imports(config, files, shape),
        data_code(config, files, shape),
        _model(config),
        _training(config),
    ]
    return at_revision("\n\n".join(part.strip("\n") for part in parts) + "\n", config)


def _start(config: TrainConfig) -> str:
    """What stands before torch is imported: how a script for several processes is started, and the environment."""
    lines = ["import os\n"]
    if config.nproc_per_node > 1:
        command = f"torchrun --nproc_per_node {config.nproc_per_node} train.py"
        lines.insert(0, f"# Not for a notebook: save it as train.py and start it in a terminal with\n# {command}")
    else:
        lines.append("# Trainer would share out each batch over all the GPUs that one process sees.")
        lines.append('os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]')
    new, old = map(as_source, ALLOCATOR)
    lines.append(f"if not {{{new}, {old}}} & set(os.environ):  # the second is its name before torch 2.10")
    lines.append(f"    os.environ |= dict.fromkeys([{new}, {old}], {as_source(SEGMENTS)})")
    return "\n".join(lines) + "\n\n"


def _imports(config: TrainConfig, files: Files, shape: Shape) -> str:
    from_transformers = ["AutoModelForCausalLM", "AutoTokenizer", "Trainer", "TrainingArguments"]
    if not config.packing:
        from_transformers.append("DataCollatorForSeq2Seq")
    lines = ["import torch"]
    if config.method == "qlora":
        from_transformers.append("BitsAndBytesConfig")
        if config.block_size != 64:
            lines = ["import bitsandbytes as bnb", *lines]
        if config.llm_int8_skip_modules:
            from_transformers.append("AutoConfig")
    if shape.chats:
        lines.insert(0, "import re")
    if files.loader == "json" or shape.chats:
        lines.insert(0, "import json")
    if shape.chats:
        lines += ["from collections.abc import Callable", "from typing import Any"]
    lines.append("from datasets import load_dataset")
    if config.init_lora_weights == "loftq" and at_commit(config):
        lines.append("from huggingface_hub import snapshot_download")
    if config.method != "full":
        from_transformers.append("set_seed")
        needed = ["LoraConfig", *["PeftModel"] * _on_residual(config), "get_peft_model"]
        needed += ["prepare_model_for_kbit_training"] * config.upcast_to_fp32
        needed += ["load_peft_weights", "set_peft_model_state_dict"] * (config.init_adapter is not None)
        needed += ["replace_lora_weights_loftq"] * (config.init_lora_weights == "loftq")
        needed += ["EvaConfig", "initialize_lora_eva_weights"] * (config.init_lora_weights == "eva")
        lines.append(f"from peft import {', '.join(needed)}")
    lines.append(f"from transformers import ({_listed(sorted(from_transformers, key=str.lower))})")
    if config.method == "qlora" and config.llm_int8_skip_modules:
        lines.append("from transformers.quantizers.base import get_keys_to_not_convert")
    if config.group_by_length:
        lines.append("from transformers.trainer_pt_utils import LengthGroupedSampler")
    mended = inspect.getsource(compat.heads_by_turns).rpartition('"""')[2].rstrip()
    lines.append("\n# The fast attention of such a GPU takes no keys that heads share: heads that share none attend in turn.")
    lines.append(f"if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):{mended}")
    lines.append(f"\nMODEL = {as_source(model_name(config))}\ndtype = {dtype(config)}")
    if config.nproc_per_node > 1:
        lines.append('if torch.cuda.is_available():\n    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))')
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    """Names in lines of a readable width."""
    line, lines = "    ", list[str]()
    for name in names:
        if len(line) + len(name) > 100:
            lines, line = [*lines, line.rstrip()], "    "
        line += f"{name}, "
    return "\n" + "\n".join([*lines, line.rstrip()]) + "\n"


def _on_residual(config: TrainConfig) -> bool:
    """Whether the base is what PiSSA leaves of the model, in 4 bits."""
    return config.method == "qlora" and config.init_lora_weights == "pissa"


def _model(config: TrainConfig) -> str:
    lines = loaded(config, as_source(_RESIDUAL) if _on_residual(config) else "MODEL")
    if _on_residual(config):
        lines = [_PISSA.format(seed=config.seed, lora=_arguments(_lora(config)), residual=_RESIDUAL, begun=_BEGUN), *lines]
    if config.method == "qlora":
        peft = "model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)"
        lines.append(peft if config.upcast_to_fp32 else _PREPARED)
        if config.norms_in_16_bits:
            lines.append(_NARROWED)
    if _on_residual(config):
        lines.append(f"model = PeftModel.from_pretrained(model, {as_source(_BEGUN)}, is_trainable=True)")
    elif config.method != "full":
        arguments = _arguments(_lora(config))
        if config.init_lora_weights == "eva":
            arguments += "    eva_config=EvaConfig(rho=1.0),  # the rank is the same everywhere\n"
        lines.append(f"set_seed({config.seed})\nmodel = get_peft_model(model, LoraConfig({arguments}))")
    if config.init_adapter is not None:
        folder = as_source(str(first_adapter(config.init_adapter)))
        lines.append(f'set_peft_model_state_dict(model, load_peft_weights({folder}, device="cpu"))')
    if config.init_lora_weights == "loftq":
        path = _SNAPSHOT * at_commit(config) if on_hub(config.model) else ", MODEL"
        lines.append(f"replace_lora_weights_loftq(model{path})  # peft computes this on a GPU, and has no way to on a CPU")
    if config.rescale_mlp:
        lines.append(_RESCALED.format(power=config.rescale_mlp))
    lines.append("model.config.use_cache = False")
    return "\n".join(line.strip("\n") for line in lines)


_SNAPSHOT = ", snapshot_download(MODEL, revision=REVISION, local_files_only=True)"
"""Where peft would take the weights of the branch main."""
_BEGUN, _RESIDUAL = "pissa-begun", "pissa-residual"
_PISSA = """
# PiSSA begins on the 16-bit model; what it leaves of that is written, and quantized as it is loaded.
whole = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
set_seed({seed})
begun = get_peft_model(whole, LoraConfig({lora}))
begun.peft_config["default"].init_lora_weights = True  # so that it is not done again
begun.save_pretrained("{begun}")
begun.unload().save_pretrained("{residual}")
"""
_PREPARED = """
for parameter in model.parameters():
    parameter.requires_grad_(False)
    if parameter.ndim == 1 and parameter.dtype is dtype:  # norms and biases
        parameter.data = parameter.data.float()
# Embeddings and head stay in 16 bits, between them all is summed in float32.
model.get_input_embeddings().register_forward_hook(lambda module, given, answer: answer.float())
model.get_output_embeddings().register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype), *given[1:]))
"""


_NARROWED = """
for module in model.modules():
    if type(module).__name__.endswith("Norm"):
        module.register_forward_hook(lambda module, given, answer: answer.to(dtype))
"""
_RESCALED = """
for module in model.modules():
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
        module.up_proj.register_forward_hook(lambda module, given, answer: answer * 2.0**-{power})
        module.down_proj.register_forward_hook(lambda module, given, answer: answer.float() * 2.0**{power})
"""
_ON_HOST = """
def to_host(tensor):
    \"\"\"A layer's input, which checkpointing keeps, in pinned memory until the backward pass.\"\"\"
    if not tensor.is_cuda or tensor.ndim != 3 or tensor.shape[-1] != model.config.get_text_config().hidden_size:
        return tensor
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return held.copy_(tensor.detach(), non_blocking=True), tensor.device


def from_host(kept):
    return kept if isinstance(kept, torch.Tensor) else kept[0].to(kept[1], non_blocking=True)


with torch.autograd.graph.saved_tensors_hooks(to_host, from_host):
    trainer.train()"""


def _lora(config: TrainConfig) -> dict[str, Any]:
    targets = config.target_modules
    usual: dict[str, Any] = {
        "task_type": "CAUSAL_LM", "r": config.lora_r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
    }  # fmt: skip
    changed = {name: value for name, default in OF_ADAPTERS.items() if (value := getattr(config, name)) != default}
    if changed.get("init_lora_weights") == "loftq":  # which follows in a call of its own
        del changed["init_lora_weights"]
    return usual | changed


def _training(config: TrainConfig) -> str:
    steps: dict[str, Any] = {"max_steps": config.max_steps, "warmup_steps": config.warmup}
    if config.num_train_epochs is not None:
        steps = {"num_train_epochs": config.num_train_epochs, "warmup_steps": config.warmup_steps}
    same = (
        "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "weight_decay",
        "adam_beta1", "adam_beta2", "max_grad_norm", "optim", "seed",
    )  # fmt: skip
    saved: dict[str, Any] = {"save_strategy": "no"}
    if config.save_steps:
        saved = {"save_steps": config.save_steps, "save_total_limit": config.save_total_limit}
    arguments = {"output_dir": "training"} | steps | {name: getattr(config, name) for name in same} | saved
    if config.gradient_checkpointing:
        arguments |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    if config.nproc_per_node > 1:
        arguments |= {"ddp_find_unused_parameters": False}
    kept = "model" if config.method == "full" else "adapter"
    saving = [f'model.save_pretrained("{kept}")']
    if config.push_to_hub:
        named = f"{as_source(config.hub_model_id or kept)}, private={config.hub_private_repo}"
        saving += [f"{part}.push_to_hub({named})" for part in ("model", "tokenizer")]
    save = "\n".join(saving)
    if config.nproc_per_node > 1:
        save = "if trainer.is_world_process_zero():\n    " + "\n    ".join(saving)
    note = ""
    if config.mirror_dir is not None:
        note = "# The workbench mirrors its runs to another folder by itself; here, copy output_dir.\n"
    if config.optim.startswith("paged_") and config.page_min_numel != PAGE_MIN_NUMEL:
        note += f"# bitsandbytes pages optimizer state from {PAGE_MIN_NUMEL:,} elements on, whatever page_min_numel was.\n"
    if config.load_best_model_at_end or config.early_stopping_patience:
        note += "# load_best_model_at_end and early_stopping_patience are the workbench's part: this cell takes every step.\n"
    kind, grouping = "Trainer", ""
    if config.group_by_length:
        kind, grouping = "TrainerByLength", _GROUPED.format(seed=config.seed, together=config.rows_a_step)
    few, asked = "", ""
    if _few_logits(config):
        source = inside("workbench.training.worker").joinpath("head.py").read_text("utf-8")
        few = _FEW.format(source=source.partition("import annotations\n")[2].strip("\n"), kind=kind)
        kind, asked = "TrainerOfFewLogits", _ASKED.format(at_once=config.logits_at_once)
    return f"""
{note}arguments = TrainingArguments({_arguments(arguments)}    bf16=dtype is torch.bfloat16,
    fp16=dtype is torch.float16,
    use_cpu=not torch.cuda.is_available(),
    logging_steps=1,
    logging_nan_inf_filter=False,
    report_to={as_source(config.report_to)},
)
{"" if config.packing else "collator = DataCollatorForSeq2Seq(tokenizer)"}
{_eva(config)}{grouping}{few}trainer = {kind}(model=model, args=arguments, train_dataset=rows, data_collator=collator)
{asked}{_ON_HOST if config.inputs_on_host else "trainer.train()"}
{save}
"""


def _few_logits(config: TrainConfig) -> bool:
    """Whether the run may make some logits at a time: a head that is trained whole needs all."""
    return config.logits_at_once > 0 and config.method != "full"


def _eva(config: TrainConfig) -> str:
    eva = config.init_lora_weights == "eva"
    never = _NEVER_REPACKED if config.method == "qlora" and (eva or _few_logits(config)) else ""
    if not eva:
        return never
    return (
        "\n"
        + never
        + _EVA.format(
            seed=config.seed, rows=EVA_ROWS, size=config.per_device_train_batch_size, least=EVA_TOKENS_A_RANK * config.lora_r
        )
    )


_NEVER_REPACKED = """
# Else bitsandbytes repacks 4-bit weights on some CPUs as the model runs without gradients, and then they pass none on.
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
"""
_EVA = """
# EVA goes over some rows, until the directions in which each module's input varies most have settled.
drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed({seed}))[:{rows}].tolist()
batches = [dict(collator([rows[i] for i in drawn[at : at + {size}]])) for at in range(0, len(drawn), {size})]
batches = [batch for batch in batches if (batch["labels"] != -100).sum() >= {least}]  # fewer tokens have too few directions
initialize_lora_eva_weights(model, batches, gather_distributed_inputs=False)
model.peft_config["default"].init_lora_weights = True  # so that the adapter is loaded without rows
model.peft_config["default"].eva_config = None

"""
_FEW = """
# The loss makes a few logits at a time: those of a whole batch are what most memory would go to.
{source}


class TrainerOfFewLogits({kind}):
    def compute_loss(self, *given, **named):
        with self.compute_loss_func.around() if self.compute_loss_func else contextlib.nullcontext():
            return super().compute_loss(*given, **named)


"""
_ASKED = """
few = LossWithoutLogits(model, {at_once})
model.eval()
mixed = contextlib.nullcontext() if dtype is torch.float32 else torch.autocast(model.device.type, dtype)
with torch.no_grad(), mixed:  # whether the head is one that this can be done with
    trainer.compute_loss_func = None if few.refusal(model, torch.tensor([rows[0]["input_ids"][:16]])) else few
model.train()
"""
_GROUPED = """

class ByLength(LengthGroupedSampler):
    \"\"\"Rows of like lengths together, in another order each epoch, the longest first.\"\"\"

    def __iter__(self):
        self.generator = torch.Generator().manual_seed({seed} + int(trainer.state.epoch or 0))
        return super().__iter__()


class TrainerByLength(Trainer):
    def _get_train_sampler(self, *given):
        return ByLength({together}, lengths=[len(row["input_ids"]) for row in rows])


"""


def _arguments(values: dict[str, Any]) -> str:
    return "\n" + "".join(f"    {name}={as_source(value)},\n" for name, value in values.items())
