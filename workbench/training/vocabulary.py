"""Token ids against the embedding: a tokenizer's, from its files and a checkpoint's headers, before anything is loaded.

Covers the ids that every run meets: the vocabulary itself, the tokens that pad, end and begin a row, and those of a chat
template. A vocabulary that is padded, with more rows than tokens, is fine; and so are added tokens that no row has, as a
text model's for images: whether a row has one is seen where the rows are tokenized. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.sources.base import Source
from workbench.sources.header import shown
from workbench.sources.rule import is_input_embedding

_REMEDY = (
    "save the tokenizer that belongs to the model, or the model with an embedding that is large enough "
    "(resize_token_embeddings)."
)


def vocabulary_fault(source: Source, chats: bool = False) -> str | None:
    """Which token's id lies beyond the embedding's rows; None where none does, or the files do not say.

    ``chats``: whether rows are chats, which bring the tokens that the template writes.
    """
    rows = max((t.shape[0] for t in source.tensors() if len(t.shape) == 2 and is_input_embedding(t.name)), default=0)
    if not rows or source.path is None:
        return None
    there = f"and the model's embedding has {rows:,} rows"
    pad = source.config.get("pad_token_id")
    if type(pad) is int and pad >= rows:
        return f"config.json's pad_token_id is {pad:,}, {there}: correct it, or {_REMEDY}"
    known = json_object(source.path / "tokenizer.json")
    special = json_object(source.path / "special_tokens_map.json") | json_object(source.path / "tokenizer_config.json")
    added = {str(t.get("content")): t["id"] for t in known.get("added_tokens") or [] if type(t.get("id")) is int}
    own = _ids(known.get("model"))
    if (most := max((i for token, i in own.items() if token not in added), default=0)) >= rows:
        return f"its tokenizer has tokens up to id {most:,}, {there}: {_REMEDY}"
    ids = own | added
    for role in ("pad_token", "eos_token", "bos_token"):
        token = special.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and ids.get(token, 0) >= rows:
            return f"its tokenizer's {role}, {shown(token)}, has id {ids[token]:,}, {there}: {_REMEDY}"
    templates = chat_templates(source.path, special.get("chat_template")).values() if chats else ()
    for token, i in added.items():
        if i >= rows and any(token in template for template in templates):
            return f"the token {shown(token)} of its chat template has id {i:,}, {there}: {_REMEDY}"
    return None


def _ids(model: Any) -> dict[str, int]:
    """Token → id of a tokenizer's model: a table, or for Unigram a list of (token, score)."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        return {str(pair[0]): i for i, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    return {token: i for token, i in vocabulary.items() if type(i) is int} if isinstance(vocabulary, dict) else {}


def chat_templates(folder: Path, configured: Any) -> dict[str, str]:
    """The chat templates by name, as transformers finds them: in files of their own, else in the tokenizer's configuration."""
    found = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    if (path := folder / "chat_template.jinja").is_file():
        found["default"] = path
    if found:
        return {name: path.read_text("utf-8", "replace") for name, path in found.items()}
    if isinstance(configured, list):
        return {str(one.get("name")): str(one.get("template")) for one in configured if isinstance(one, dict)}
    return {} if configured is None else {"default": str(configured)}


def json_object(file: Path) -> dict[str, Any]:
    """The object in a file; {} where there is none: faults in a tokenizer's files are raised where it is opened."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
