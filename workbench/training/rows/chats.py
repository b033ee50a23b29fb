"""Chats through a tokenizer's template: which values are chats, and those that a template does not take.

Covers what a chat may hold; its rows and what is learnt of them are ``rows.turns``' part, where chats are read from
``dataset_files``', their tokens ``rows.tokens``'. A template runs in transformers' sandbox.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Any

from workbench.errors import DataError
from workbench.training.rows.forms import as_messages, is_chat
from workbench.training.rows.turns import Span, Turns


class Refused(DataError):
    """A chat that the template does not take; the other chats can still be learnt."""


class Template:
    """A tokenizer's chat template. ``thoughts``: whether the assistant's thoughts are kept."""

    def __init__(self, tokenizer: Any, thoughts: bool = True) -> None:
        self._tokenizer, self._thoughts = tokenizer, thoughts

    def rows(
        self, messages: Any, completion_only: bool, where: str, first: int = 0, tools: Any = None
    ) -> list[tuple[str, list[Span]]]:
        """The chat's rows, each with the characters that are learnt of it (``Turns.rows``); [] for a chat without turns.

        ``first``: the message from which on the assistant is learnt. Raises ``DataError`` for what is no chat; ``Refused`` if
        the template does not take it, or does not show where an answer begins.
        """
        if not (chat := as_chat(messages or [], where)):
            return []
        if not self._tokenizer.chat_template:
            raise _without_template(where)
        for message in chat:
            _check(message, where)
        try:
            return self._turns.rows(chat, first, completion_only, self._thoughts, as_tools(tools))
        except Exception as error:  # whatever a template raises about a chat it does not take
            what = f"the model's chat template does not take this chat ({error})."
            remedy = 'Check its roles and their order; thoughts="drop" leaves thoughts out.'
            raise Refused(what, where=where, remedy=remedy) from error

    def question(self, prompt: str, where: str) -> str:
        """The text of a chat that begins with the prompt, up to the opening of the reply. Raises ``DataError`` as ``rows``."""
        if not self._tokenizer.chat_template:
            raise _without_template(where)
        try:
            return self._turns.text([{"role": "user", "content": self._turns.content(prompt)}], opening=True)
        except Exception as error:  # whatever a template raises
            what = f"the model's chat template does not take it ({error})."
            raise Refused(what, where=where, remedy="Write another.") from error

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self._write, self._tokenizer.eos_token)

    def _write(self, chat: Any, opening: bool, tools: Any) -> str:
        return str(self._tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=opening))


def as_chat(messages: Any, where: str) -> list[dict[str, Any]]:
    """A list of messages, ShareGPT's turns as such. ``DataError`` for anything else, ``Refused`` for an unknown speaker."""
    if not is_chat(messages):
        raise _no_chat(where)
    try:
        return as_messages(messages)
    except (TypeError, ValueError) as error:
        raise Refused(f"the chat is not understood: {error}.", where=where, remedy="Rename it, or leave it out.") from error


def as_tools(tools: Any) -> Any:
    """A row's tools as the template takes them: a list, also where it is written as JSON; None for none."""
    return (json.loads(tools) if isinstance(tools, str) else tools) or None


def _check(message: dict[str, Any], where: str) -> None:
    """Raises ``DataError`` for what a message cannot hold."""
    if (fault := _no_json(message)) is not None:
        remedy = "Save it as text, as it is to be learnt."
        raise DataError(f"the chat holds {fault}, which is neither text nor a number.", where=where, remedy=remedy)
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                remedy = "Leave out such chats, or such parts: only {'type': 'text', 'text'} is trained here."
                raise DataError(f"the chat has a part of the kind {kind!r}.", where=where, remedy=remedy)
    elif content is not None and (isinstance(content, bool) or not isinstance(content, str | int | float)):
        remedy = "Give content as text, or as a list of {'type': 'text', 'text'}."
        raise DataError(f"a message's content is no text but {content!r:.40}.", where=where, remedy=remedy)


def _no_chat(where: str) -> DataError:
    remedy = "A chat is a list of {'role', 'content'}, or of {'from', 'value'}: choose a column of such."
    return DataError("it is no chat.", where=where, remedy=remedy, field="row_shape")


def _without_template(where: str) -> DataError:
    remedy = "Choose a model that was tuned for chats, or another row_shape."
    return DataError("the model's tokenizer has no chat template.", where=where, remedy=remedy, field="row_shape")


def _no_json(value: Any) -> str | None:
    """What inside a value JSON cannot hold, in words; None where JSON can hold all of it."""
    if isinstance(value, dict):
        return next((fault for inner in value.values() if (fault := _no_json(inner))), None)
    if isinstance(value, list):
        return next((fault for inner in value if (fault := _no_json(inner))), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"the number {value}"
    return None if value is None or isinstance(value, str | int) else f"a {type(value).__name__}"
