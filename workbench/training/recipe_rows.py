"""The part of a run's cell that makes rows of tokens of a dataset's files: as the run makes them, and packs of them.

Covers reading, the loss on completions only, chats and packs; and how a value is written as Python. The rest is ``recipe``'s.
"""

from __future__ import annotations

import glob
import inspect
import json
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files
from workbench.training.lengths import packs
from workbench.training.row_files import ending, is_list


def data_code(config: TrainConfig, files: Files) -> str:
    """The lines that make ``rows``."""
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
    lines = f'rows = load_dataset({as_source(loader)}, data_files={as_source(_places(config, files))}, split="train"{options})'
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
    *prompt, completion = (f"row.get({as_source(name)})" for name in config.columns)
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
    found = f"row.get({as_source(config.messages_column)}) or []"
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


def _converters(config: TrainConfig) -> str:
    return ", ".join(f"{as_source(column)}: str" for column in config.columns)


def as_source(value: Any) -> str:
    """A value as Python writes it, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(as_source, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_source(k)}: {as_source(v)}' for k, v in value.items())}}}"
    return repr(value)
