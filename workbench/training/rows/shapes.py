"""The shape of a dataset's rows: which columns they have, and how those become text.

Covers recognising it from columns and first rows, and what a configuration sets of it. Reading is ``dataset_files``' part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import DataError
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files, first_rows
from workbench.training.row_kinds import CHATS, ROW_SHAPES, template_fields

_OF_CHATS = ("messages", "conversations", "conversation")
_ANSWERS = ("output", "answer", "completion", "response", "answers", "label")
_PAIRS = {"preference": "preference-chats", "prompt": "prompt-chats"}


@dataclass(frozen=True)
class Shape:
    """How rows become text."""

    kind: str
    """One of ``ROW_SHAPES``, and not ``"auto"``."""
    columns: tuple[str, ...]
    """What is read of a row, by position: (text), (prompt, completion), (messages), (instruction, output), (the template's …,
    completion), (chosen, rejected)."""
    besides: tuple[str, ...] = ()
    """Columns that are read where there are such."""

    @property
    def title(self) -> str:
        """In words."""
        return ROW_SHAPES[self.kind]

    @property
    def chats(self) -> bool:
        """Whether rows go through the chat template."""
        return self.kind in CHATS


def shape_of(config: TrainConfig, files: Files) -> Shape:
    """The shape of the rows in ``files``: as the configuration says, else as columns and first rows show.

    Raises ``DataError`` where they show none, with what to set.
    """
    kind = config.shape
    if kind is None or (kind == "prompt" and config.row_shape == "auto" and config.dataset != "builtin"):
        rows = first_rows(files)
        names = list(dict.fromkeys(name for row in rows for name in row))
        seen = {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in names}
        if kind is None:
            return _recognised(config, seen, files.where)
        if isinstance(seen.get(config.columns[0]), list):
            kind = "prompt-chats"
    return _set(config, kind, files)


def settled(config: TrainConfig, shape: Shape) -> TrainConfig:
    """The configuration with the shape in it, so that nothing is left to be recognised."""
    names: dict[str, Any] = {}
    if shape.kind == "text":
        names = {"text_column": shape.columns[0]}
    elif shape.kind in ("prompt", "prompt-chats"):
        names = dict(zip(("prompt_column", "completion_column"), shape.columns, strict=True))
    elif shape.kind in ("messages", "sharegpt"):
        names = {"messages_column": shape.columns[0]}
    elif shape.kind == "template":
        names = {"completion_column": shape.columns[-1]}
    return dataclasses.replace(config, row_shape=shape.kind, **names) if config.dataset != "builtin" else config


def _set(config: TrainConfig, kind: str, files: Files) -> Shape:
    """The shape of a kind that is set, with its usual columns where none are named."""
    match kind:
        case "alpaca":
            return Shape(kind, ("instruction", "output"), ("input",))
        case "preference" | "preference-chats":
            return Shape(kind, ("chosen", "rejected"), ("prompt",))
        case "template":
            names = template_fields(config.prompt_template or "")
            answer = config.completion_column or _answer(_names(files), names, files.where)
            return Shape(kind, (*names, answer))
        case "messages" | "sharegpt":
            return Shape(kind, config.columns, ("tools", "system"))
        case "prompt-chats":
            return Shape(kind, config.columns, ("tools",))
    return Shape(kind, config.columns)


def _recognised(config: TrainConfig, seen: Mapping[str, Any], where: str) -> Shape:
    """By columns, and a value of each."""
    chats = [name for name in (*_OF_CHATS, *seen) if name in seen and _form(seen[name])]
    chats = [name for name in chats if name not in ("prompt", "completion", "chosen", "rejected")]
    if chats:
        kind = "messages" if _form(seen[chats[0]]) == "role" else "sharegpt"
        return Shape(kind, (chats[0],), ("tools", "system"))
    for kind, wanted in (("preference", ("chosen", "rejected")), ("prompt", ("prompt", "completion"))):
        if all(name in seen for name in wanted):
            listed = isinstance(seen[wanted[0]], list)
            besides = (("prompt",) if kind == "preference" else ()) + (("tools",) if listed else ())
            return Shape(_PAIRS[kind] if listed else kind, wanted, besides)
    if "instruction" in seen and "output" in seen:
        return Shape("alpaca", ("instruction", "output"), ("input",))
    if "text" in seen:
        return Shape("text", ("text",))
    raise _unknown(list(seen), where)


def _form(value: Any) -> str:
    """``"role"`` or ``"from"`` for a chat, by what its turns call who speaks; "" for anything else."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return ""
    return next((name for name in ("role", "from") if name in value[0]), "")


def _unknown(names: Sequence[str], where: str) -> DataError:
    answer = next((name for name in _ANSWERS if name in names), None)
    remedy = "Set row_shape, or the fields that name columns."
    if answer and (others := [name for name in names if name != answer and name in ("question", "context", "query", "input")]):
        lines = "".join(f"{name.capitalize()}: {{{name}}}\n" for name in sorted(others))
        template = f"{lines}{answer.capitalize()}: "
        remedy = f"Set prompt_template, as {template!r}, which {answer!r} completes; or row_shape."
    what = f"the shape of its rows is not recognised by the columns {', '.join(map(repr, names)) or '(none)'}."
    return DataError(what, where=where, remedy=remedy, field="row_shape")


def _names(files: Files) -> list[str]:
    return list(dict.fromkeys(name for row in first_rows(files) for name in row))


def _answer(names: Sequence[str], fields: Sequence[str], where: str) -> str:
    """The column that completes a template, by its usual names."""
    for name in _ANSWERS:
        if name in names and name not in fields:
            return name
    what = f"the column that completes the template is not known; there are {', '.join(map(repr, names))}."
    raise DataError(what, where=where, remedy="Set completion_column.", field="completion_column")
