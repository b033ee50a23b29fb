"""The shapes that a dataset's rows may have, by name; and which columns a template of the user's own takes.

Covers what fields alone decide. Recognising a shape and making text of it is the part of ``rows``.
"""

from __future__ import annotations

import string
from typing import Any

ROW_SHAPES = {
    "auto": "as its columns show", "text": "text", "prompt": "prompt and completion", "messages": "chat messages",
    "sharegpt": "ShareGPT conversations", "alpaca": "Alpaca instructions", "template": "columns by a template",
    "preference": "preference pairs (chosen is learnt)", "prompt-chats": "prompt and completion, both chats",
    "preference-chats": "preference pairs of chats (chosen is learnt)",
}  # fmt: skip
CHATS = ("messages", "sharegpt", "prompt-chats", "preference-chats")
"""Shapes that go through the chat template."""
COLUMNS = {
    "auto": ("text_column", "prompt_column", "completion_column", "messages_column", "prompt_template"),
    "text": ("text_column",),
    "prompt": ("prompt_column", "completion_column"), "prompt-chats": ("prompt_column", "completion_column"),
    "messages": ("messages_column",), "sharegpt": ("messages_column",), "template": ("prompt_template", "completion_column"),
}  # fmt: skip
"""Fields that name columns, by the shape for which they mean something."""


def template_fields(template: str) -> tuple[str, ...]:
    r"""The columns that a template of a prompt names, each once.

    ``ValueError`` for anything but plain {column}: no numbers, attributes, items, conversions or formats.

    >>> from workbench.training.row_kinds import template_fields
    >>> template_fields("Question: {question}\nAnswer: ")
    ('question',)
    """
    names: dict[str, None] = {}
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdigit() or any(mark in name for mark in ".[]{}") or spec or conversion:
            raise ValueError(f"{{{name}}} is no plain {{column}}")
        names[name] = None
    if not names:
        raise ValueError("it names no {column}")
    return tuple(names)


def shape_named(config: Any, implied: bool = False) -> str | None:
    """The shape that a configuration's fields say: None where the file decides.

    ``implied``: the one that follows from the columns it names, or from the builtin dataset, whatever its ``row_shape`` is.
    """
    if config.row_shape != "auto" and not implied:
        return str(config.row_shape)
    for shape, field in (("messages", "messages_column"), ("text", "text_column"), ("template", "prompt_template")):
        if getattr(config, field) is not None:
            return shape
    return "prompt" if config.prompt_column is not None or config.dataset == "builtin" else None


def as_now(fields: dict[str, Any]) -> dict[str, Any]:
    """A configuration's fields, also as they were written before shapes were recognised: unnamed, a text was learnt."""
    before = "row_shape" not in fields and "messages_column" in fields
    named = fields.get("dataset") == "builtin" or any(fields.get(name) for name in COLUMNS["auto"])
    return fields | {"text_column": "text"} if before and not named else fields


def columns_named(config: Any) -> tuple[str, ...]:
    """The columns that a configuration's fields say: the prompt's, and then what is learnt; () where the file decides."""
    match shape_named(config):
        case None:
            return ()
        case "text":
            return (config.text_column or "text",)
        case "messages" | "sharegpt" as shape:
            return (config.messages_column or ("messages" if shape == "messages" else "conversations"),)
        case "alpaca":
            return ("instruction", "input", "output")
        case "template":
            return (*template_fields(config.prompt_template), *filter(None, [config.completion_column]))
        case "preference" | "preference-chats":
            return ("prompt", "chosen")
    return (config.prompt_column or "prompt", config.completion_column or "completion")
