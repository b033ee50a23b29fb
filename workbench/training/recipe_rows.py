"""The part of a run's cell that makes rows of tokens of a dataset's files: as the run makes them, and packs of them.

Covers reading, rows of every shape, the loss on completions only, packs, and how a value is written as Python. The rest is
``recipe``'s part.
"""

from __future__ import annotations

import glob
import inspect
import json
from collections.abc import Callable
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files
from workbench.training.lengths import packs
from workbench.training.row_files import ending, header, is_list
from workbench.training.rows import turns
from workbench.training.rows.forms import ROLES, alpaca, as_messages, chosen_chat, chosen_text, is_chat, shared, with_system
from workbench.training.rows.shapes import Shape


def data_code(config: TrainConfig, files: Files, shape: Shape) -> str:
    """The lines that make ``rows``."""
    packed = f"\n\n{inspect.getsource(packs)}{_PACKED.format(most=config.max_length)}" * config.packing
    return f"""
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.padding_side = "right"
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
{_made_of(files, shape)}

{_chats(config, files, shape) if shape.chats else _passages(config, shape)}


{_rows(config, files, shape)}
rows = [made for row in rows for made in encode(row) if any(label != -100 for label in made["labels"])]
{packed}"""


def _made_of(files: Files, shape: Shape) -> str:
    """The functions that a row goes through, as the run's own code has them."""
    sources = [inspect.getsource(function) for function in _FUNCTIONS.get(shape.kind, ())]
    if shape.chats:
        _, mark, plain = inspect.getsource(turns).partition("Chat = ")
        roles = "".join(f"    {as_source(role)}: {as_source(names)},\n" for role, names in ROLES.items())
        sources += [
            f"ROLES = {{\n{roles}}}\n",
            inspect.getsource(is_chat),
            inspect.getsource(as_messages),
            mark + plain,
            _WRITE,
        ]
    if shape.chats and files.loader in ("parquet", "arrow"):
        sources.append(_WITHOUT_NULLS)
    return "".join(f"\n\n{source.strip()}\n" for source in sources)


_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "alpaca": (alpaca,), "messages": (with_system,), "sharegpt": (with_system,), "preference": (chosen_text, shared),
    "preference-chats": (chosen_chat, shared),
}  # fmt: skip


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


def _rows(config: TrainConfig, files: Files, shape: Shape) -> str:
    """How the rows are read: JSON by lines or as a list, as its loader would infer dates and numbers."""
    loader, options = files.loader, ""
    if loader == "csv":
        separated = ', sep="\\t"' if ending(files.paths[0]) == ".tsv" else ""
        options = f"{separated}, keep_default_na=False, converters={{{_converters(files, shape)}}}"
    if loader in ("json", "text"):
        loader, options = "text", ', encoding="utf-8-sig"'
    first = f"[:{config.max_train_rows}]" if config.max_train_rows else ""
    split = "train" if files.loader == "json" else f"train{first}"
    listed = files.loader == "json" and is_list(files.paths[0])
    if listed:
        options += ', sample_by="document"'
    lines = (
        f'rows = load_dataset({as_source(loader)}, data_files={as_source(_places(config, files))}, split="{split}"{options})'
    )
    if files.loader != "json":
        return lines
    written = "" if shape.chats else ", parse_int=str, parse_float=str"  # numbers as they are written
    if listed:
        return f'{lines}\nrows = [row for file in rows for row in json.loads(file["text"]{written})]{first}'
    return f'{lines}\nrows = [json.loads(row["text"]{written}) for row in rows if row["text"].strip()]{first}'


def _places(config: TrainConfig, files: Files) -> list[str]:
    if files.revision is None:
        return [glob.escape(str(path)) for path in files.paths]
    inside = [path.parts[path.parts.index(files.revision) + 1 :] for path in files.paths]
    return [f"hf://datasets/{config.dataset}@{files.revision}/{'/'.join(parts)}" for parts in inside]


def _passages(config: TrainConfig, shape: Shape) -> str:
    said = {name: f"said(row, {as_source(name)})" for name in (*shape.columns, *shape.besides)}
    match shape.kind:
        case "alpaca":
            both = f"alpaca({said['instruction']}, {said['input']}), {said['output']}"
        case "preference":
            both = f"chosen_text({said['prompt']}, {said['chosen']}, {said['rejected']})"
        case "template":
            *given, answer = shape.columns
            values = ", ".join(f"{as_source(name)}: {said[name]}" for name in given)
            both = f"{as_source(config.prompt_template)}.format_map({{{values}}}), {said[answer]}"
        case _:
            *prompt, completion = (said[name] for name in shape.columns)
            both = f"{prompt[0] if prompt else as_source('')}, {completion}"
    only = config.completion_only_loss
    return f"""
def said(row, name):
    \"\"\"What a column has in a row, as text.\"\"\"
    value = row.get(name)
    return "" if value is None else str(value)


def encode(row):
    \"\"\"A row's tokens; labels are -100 where no loss is taken.\"\"\"
    prompt, text = {both}
    encoded = tokenizer(prompt + text, return_offsets_mapping=True)
    ids, bears_loss = encoded["input_ids"], bool({"text" if only else "(prompt + text)"}.strip())
    learnt = [bears_loss and end > {"max(start, len(prompt))" if only else "start"} for start, end in encoded["offset_mapping"]]
    if tokenizer.eos_token_id is not None and (prompt + text).strip():
        if ids[-1] != tokenizer.eos_token_id:
            ids, learnt = ids + [tokenizer.eos_token_id], learnt + [bears_loss]
        learnt[-1] = bears_loss
    labels = [token if bears else -100 for token, bears in zip(ids, learnt)]
    labels[:1] = [-100]  # the first token is predicted from nothing
    return [{{"input_ids": ids[:{config.max_length}], "labels": labels[:{config.max_length}]}}]
""".strip()


_WRITE = """
def write(messages, opening, tools):
    \"\"\"The text of messages, with the opening of a reply where that is asked for.\"\"\"
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=opening)


turns = Turns(write, tokenizer.eos_token)
"""
_WITHOUT_NULLS = """
def without_nulls(value):
    \"\"\"Without the fields that a columnar file adds to rows that lack them.\"\"\"
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
"""


def _chats(config: TrainConfig, files: Files, shape: Shape) -> str:
    columnar = files.loader in ("parquet", "arrow")
    said = {
        name: f"without_nulls(row.get({as_source(name)}))" if columnar else f"row.get({as_source(name)})"
        for name in (*shape.columns, *shape.besides)
    }
    match shape.kind:
        case "preference-chats":
            given = ["prompt", "chosen", "rejected"]
            chat = "chosen_chat(prompt, as_messages(chosen), as_messages(rejected))"
        case "prompt-chats":
            given, chat = ["prompt", "completion"], "prompt + completion, len(prompt)"
        case _:
            given, chat = ["messages"], f"with_system(as_messages(messages), row.get({as_source('system')})), 0"
    columns = given if shape.kind == "preference-chats" else shape.columns
    values = ", ".join(f"{said[name]} or []" for name in columns)
    asked = "[] if isinstance(prompt, str) else prompt"  # a pair's question may be plain text
    checked = ", ".join(asked if name == "prompt" and shape.kind == "preference-chats" else name for name in given)
    tools = said.get("tools", "None")
    how = f"first, {config.completion_only_loss}, {config.thoughts == 'keep'}, tools or None"
    return f"""
def encode(row):
    \"\"\"The tokens of a chat, of turns that are rows of their own first; labels are -100 where no loss is taken.\"\"\"
    {", ".join(given)} = {values}
    if not all(is_chat(turns) for turns in [{checked}]):
        raise ValueError(f"This row is no chat: {{row}}")
    try:
        chat, first = {chat}
        tools = {tools}
        tools = json.loads(tools) if isinstance(tools, str) else tools
        made = turns.rows(as_messages(chat), {how}) if chat else []
    except Exception:  # a chat that is not understood, or that the template does not take, is left out
        return []
    found = []
    for text, spans in made:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        learnt = [any(a < stop and b > max(a, start) for start, stop in spans) for a, b in encoded["offset_mapping"]]
        labels = [token if bears else -100 for token, bears in zip(ids, learnt)]
        labels[:1] = [-100]  # the first token is predicted from nothing
        found.append({{"input_ids": ids[:{config.max_length}], "labels": labels[:{config.max_length}]}})
    return found
""".strip()


def _converters(files: Files, shape: Shape) -> str:
    there = header(files.paths[0]) or ()
    return ", ".join(f"{as_source(name)}: str" for name in (*shape.columns, *shape.besides) if name in there)


def as_source(value: Any) -> str:
    """A value as Python writes it, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(as_source, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(as_source, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_source(k)}: {as_source(v)}' for k, v in value.items())}}}"
    return repr(value)
