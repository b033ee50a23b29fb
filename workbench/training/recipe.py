"""A run as code: one cell of transformers, peft and bitsandbytes that trains the same, step by step, without the workbench.

Covers data, model, adapters and training: the same seed, rows and order, so the same losses. Leaves out what only watches: the
held-out loss, samples, events, pausing. Imports none of those libraries.
"""

from __future__ import annotations

import glob
import inspect
import json
from typing import Any

from workbench.sources import open_model
from workbench.training.config import OF_ADAPTERS, PAGE_MIN_NUMEL, TrainConfig, as_config
from workbench.training.data import training_files
from workbench.training.dataset_files import Files, on_hub
from workbench.training.lengths import packs
from workbench.training.row_files import ending, is_list

_AUTO = {
    False: "torch.float16 if torch.cuda.is_available() else torch.float32",
    True: "torch.float32",  # every weight: float16 cannot take small steps
}


def as_code(config: TrainConfig) -> str:
    """The cell. ``DataError`` or ``ModelError`` where dataset or model cannot be found.

    >>> wb.as_code(wb.TrainConfig()).splitlines()[:2]
    ['import json', 'import torch']
    """
    config = as_config(config, "as_code")
    files = training_files(config)
    parts = [_start(config) + _imports(config, files), _data(config, files), _model(config), _training(config)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def loading_code(config: TrainConfig) -> str:
    """Only how the model of a QLoRA run is loaded, its ``BitsAndBytesConfig`` above all, as a cell of its own."""
    needed, after = ["AutoModelForCausalLM", "BitsAndBytesConfig"], ""
    if config.llm_int8_skip_modules:
        needed, after = ["AutoConfig", *needed], "from transformers.quantizers.base import get_keys_to_not_convert\n"
    first = "import bitsandbytes as bnb\n" if config.block_size != 64 else ""
    start = f"{first}import torch\nfrom transformers import {', '.join(needed)}\n{after}"
    named = f"MODEL = {_shown(_model_name(config))}\ndtype = {_dtype(config)}"
    return "\n".join([start, named, *_loaded(config)]) + "\n"


def _start(config: TrainConfig) -> str:
    """How a cell for several processes is started: as a script."""
    if config.nproc_per_node == 1:
        return ""
    command = f"torchrun --nproc_per_node {config.nproc_per_node} train.py"
    return f"# Not for a notebook: save it as train.py and start it in a terminal with\n# {command}\nimport os\n\n"


def _imports(config: TrainConfig, files: Files) -> str:
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
    if config.messages_column is not None and config.completion_only_loss:
        lines.insert(0, "import re")
    if files.loader == "json":
        lines.insert(0, "import json")
    lines.append("from datasets import load_dataset")
    if config.method != "full":
        from_transformers.append("set_seed")
        lines.append(
            "from peft import LoraConfig, get_peft_model" + ", prepare_model_for_kbit_training" * config.upcast_to_fp32
        )
    lines.append(f"from transformers import ({_listed(sorted(from_transformers, key=str.lower))})")
    if config.method == "qlora" and config.llm_int8_skip_modules:
        lines.append("from transformers.quantizers.base import get_keys_to_not_convert")
    if config.group_by_length:
        lines.append("from transformers.trainer_pt_utils import LengthGroupedSampler")
    lines.append(f"\nMODEL = {_shown(_model_name(config))}\ndtype = {_dtype(config)}")
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


def _model_name(config: TrainConfig) -> str:
    if on_hub(config.model):
        return config.model
    path = open_model(config.model).path
    return str(path.absolute()) if path else config.model


def _dtype(config: TrainConfig) -> str:
    if config.compute_dtype != "auto":
        return f"torch.{config.compute_dtype}"
    bf16 = "torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)"
    return f"torch.bfloat16 if {bf16} else (\n    {_AUTO[config.method == 'full']}\n)"


def _data(config: TrainConfig, files: Files) -> str:
    chats = config.messages_column is not None
    first = _WITHOUT_NULLS * (chats and files.loader in ("parquet", "arrow")) + _OPENING * (
        chats and config.completion_only_loss
    )
    packed = f"\n\n{inspect.getsource(packs)}{_PACKED.format(most=config.max_length)}" * config.packing
    return f"""
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.padding_side = "right"
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
{first}

def encode(row):
    \"\"\"A row's tokens; labels are -100 where no loss is taken.\"\"\"
{_chat(config, files) if chats else _passage(config)}
    labels = [token if bears else -100 for token, bears in zip(ids, learnt)]
    labels[:1] = [-100]  # the first token is predicted from nothing
    return {{"input_ids": ids[:{config.max_length}], "labels": labels[:{config.max_length}]}}


{_rows(config, files)}
rows = [row for row in map(encode, rows) if any(label != -100 for label in row["labels"])]
{packed}"""


_PACKED = """

def end_to_end(some):
    \"\"\"Rows as one, in which positions begin again with each.\"\"\"
    return {{
        "input_ids": [token for row in some for token in row["input_ids"]],
        "labels": [label for row in some for label in row["labels"]],
        "position_ids": [position for row in some for position in range(len(row["input_ids"]))],
    }}


def collator(some):
    \"\"\"One batch without an attention mask: transformers keeps rows apart where positions begin again.\"\"\"
    widest = max(len(row["input_ids"]) for row in some)
    padding = {{"input_ids": tokenizer.pad_token_id, "labels": -100, "position_ids": 0}}
    return {{
        name: torch.tensor([row[name] + [value] * (widest - len(row[name])) for row in some]) for name, value in padding.items()
    }}


lengths = [len(row["input_ids"]) for row in rows]
rows = [end_to_end([rows[i] for i in pack]) for pack in packs(lengths, {most})]
"""


def _rows(config: TrainConfig, files: Files) -> str:
    """How the rows are read: JSON by lines or as a list, as its loader would infer dates and numbers."""
    loader, options = files.loader, ""
    if loader == "csv":
        separated = ', sep="\\t"' if ending(files.paths[0]) == ".tsv" else ""
        options = f"{separated}, keep_default_na=False, converters={{{_converters(config)}}}"
    if loader in ("json", "text"):
        loader, options = "text", ', encoding="utf-8-sig"'
    listed = files.loader == "json" and is_list(files.paths[0])
    if listed:
        options += ', sample_by="document"'
    lines = f'rows = load_dataset({_shown(loader)}, data_files={_shown(_places(config, files))}, split="train"{options})'
    if files.loader != "json":
        return lines
    written = "" if config.messages_column is not None else ", parse_int=str, parse_float=str"  # numbers as they are written
    if listed:
        return f'{lines}\nrows = [row for file in rows for row in json.loads(file["text"]{written})]'
    return f'{lines}\nrows = [json.loads(row["text"]{written}) for row in rows if row["text"].strip()]'


def _places(config: TrainConfig, files: Files) -> list[str]:
    if files.revision is None:
        return [glob.escape(str(path)) for path in files.paths]
    inside = [path.parts[path.parts.index(files.revision) + 1 :] for path in files.paths]
    return [f"hf://datasets/{config.dataset}@{files.revision}/{'/'.join(parts)}" for parts in inside]


def _passage(config: TrainConfig) -> str:
    *prompt, completion = (f"row.get({_shown(name)})" for name in config.columns)
    first = prompt[0] if prompt else '""'
    only = config.completion_only_loss
    return f"""    prompt, text = ("" if value is None else str(value) for value in ({first}, {completion}))
    encoded = tokenizer(prompt + text, return_offsets_mapping=True)
    ids, bears_loss = encoded["input_ids"], bool({"text" if only else "(prompt + text)"}.strip())
    learnt = [bears_loss and end > {"max(start, len(prompt))" if only else "start"} for start, end in encoded["offset_mapping"]]
    if tokenizer.eos_token_id is not None and (prompt + text).strip():
        if ids[-1] != tokenizer.eos_token_id:
            ids, learnt = ids + [tokenizer.eos_token_id], learnt + [bears_loss]
        learnt[-1] = bears_loss"""


_OPENING = """
question = [{"role": "user", "content": "?"}]
opening = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
opening = opening.removeprefix(tokenizer.apply_chat_template(question, tokenize=False))
"""
_ANSWERS = """    for i, message in enumerate(chat):
        if message["role"] == "assistant":  # what the template adds to the turns before it and the opening of a reply
            upto = tokenizer.apply_chat_template(chat[: i + 1], tokenize=False)
            if i:
                start = len(tokenizer.apply_chat_template(chat[:i], tokenize=False, add_generation_prompt=True))
            else:
                start = upto.index(opening) + len(opening)
            if "</think>" not in str(message):  # a template's own empty thought is not learnt
                start = re.compile(r"(<think>\\s*</think>\\s*)?").match(upto, start).end()
            spans.append((start, len(upto)))"""
_WITHOUT_NULLS = """

def without_nulls(value):
    \"\"\"Without the fields that a columnar file adds to rows that lack them.\"\"\"
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
"""


def _chat(config: TrainConfig, files: Files) -> str:
    answers = _ANSWERS if config.completion_only_loss else "    spans.append((0, len(text)))"
    found = f"row.get({_shown(config.messages_column)}) or []"
    chat = f"without_nulls({found})" if files.loader in ("parquet", "arrow") else found
    return f"""    chat, spans = {chat}, []
    for message in chat:
        if isinstance(message.get("content"), list):  # parts of text
            message["content"] = "".join(part["text"] for part in message["content"])
    text = tokenizer.apply_chat_template(chat, tokenize=False) if chat else ""
{answers}
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    learnt = [any(a < stop and b > max(a, start) for start, stop in spans) for a, b in encoded["offset_mapping"]]"""


def _loaded(config: TrainConfig) -> list[str]:
    """The model as it is loaded, before anything is trained."""
    lines: list[str] = []
    quantized = ""
    if config.method == "qlora":
        quantized = ", quantization_config=quantization"
        if config.block_size != 64:
            lines.append(f"""
# BitsAndBytesConfig has no block size; every 4-bit weight has.
new = bnb.nn.Params4bit.__new__
bnb.nn.Params4bit.__new__ = staticmethod(
    lambda cls, *args, blocksize=None, **kwargs: new(cls, *args, blocksize=blocksize or {config.block_size}, **kwargs)
)
""")
        skipped = ""
        if config.llm_int8_skip_modules:
            lines.append("""
with torch.device("meta"):
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))""")
            names = [f"\n        {_shown(name)}," for name in config.llm_int8_skip_modules]
            first = "*get_keys_to_not_convert(skeleton),  # the head, and these:"
            skipped = f"\n    llm_int8_skip_modules=[\n        {first}{''.join(names)}\n    ],"
        lines.append(f"""
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type={_shown(config.quant_type)},
    bnb_4bit_use_double_quant={config.double_quant},
    bnb_4bit_compute_dtype=dtype,{skipped}
)""")
    return [*lines, f"model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype{quantized})"]


def _model(config: TrainConfig) -> str:
    lines = _loaded(config)
    if config.method == "qlora":
        peft = "model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)"
        lines.append(peft if config.upcast_to_fp32 else _PREPARED)
    if config.method != "full":
        lines.append(f"set_seed({config.seed})\nmodel = get_peft_model(model, LoraConfig({_arguments(_lora(config))}))")
    lines.append("model.config.use_cache = False")
    return "\n".join(line.strip("\n") for line in lines)


_PREPARED = """
for parameter in model.parameters():
    parameter.requires_grad_(False)
    if parameter.ndim == 1 and parameter.dtype is dtype:  # norms and biases
        parameter.data = parameter.data.float()
# Embeddings and head stay in 16 bits, between them all is summed in float32.
model.get_input_embeddings().register_forward_hook(lambda module, given, answer: answer.float())
model.get_output_embeddings().register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype), *given[1:]))
"""


def _lora(config: TrainConfig) -> dict[str, Any]:
    targets = config.target_modules
    usual: dict[str, Any] = {
        "task_type": "CAUSAL_LM", "r": config.lora_r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
    }  # fmt: skip
    return usual | {name: value for name, default in OF_ADAPTERS.items() if (value := getattr(config, name)) != default}


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
    save = f'model.save_pretrained("{kept}")'
    if config.nproc_per_node > 1:
        save = f"if trainer.is_world_process_zero():\n    {save}"
    note = ""
    if config.optim.startswith("paged_") and config.page_min_numel != PAGE_MIN_NUMEL:
        note = f"# bitsandbytes pages optimizer state from {PAGE_MIN_NUMEL:,} elements on, whatever page_min_numel was.\n"
    if config.logits_at_once and config.method != "full":
        note += (
            f"# The workbench makes {config.logits_at_once} logits at a time: in less memory, the same loss but for rounding.\n"
        )
    kind, grouping = "Trainer", ""
    if config.group_by_length:
        kind, grouping = "TrainerByLength", _GROUPED.format(seed=config.seed, together=config.rows_a_step)
    return f"""
{note}arguments = TrainingArguments({_arguments(arguments)}    bf16=dtype is torch.bfloat16,
    fp16=dtype is torch.float16,
    use_cpu=not torch.cuda.is_available(),
    logging_steps=1,
    logging_nan_inf_filter=False,
    report_to={_shown(config.report_to)},
)
{"" if config.packing else "collator = DataCollatorForSeq2Seq(tokenizer)"}
{grouping}trainer = {kind}(model=model, args=arguments, train_dataset=rows, data_collator=collator)
trainer.train()
{save}
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
    return "\n" + "".join(f"    {name}={_shown(value)},\n" for name, value in values.items())


def _converters(config: TrainConfig) -> str:
    return ", ".join(f"{_shown(column)}: str" for column in config.columns)


def _shown(value: Any) -> str:
    """A value as Python writes it, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_shown(k)}: {_shown(v)}' for k, v in value.items())}}}"
    return repr(value)
