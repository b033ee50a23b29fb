"""A chat as text, through the tokenizer's template, and which parts of it are the assistant's.

Covers what a chat may hold, content in parts, where each answer begins and ends, and chats that a template does not take. Where
chats are read from is ``dataset_files``' part, their tokens ``data``'s. A template runs in transformers' sandbox.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from workbench.errors import DataError

Span = tuple[int, int]
Chat = list[dict[str, Any]]

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")
_PROBE, _WITNESS = "wbprobe", "wbwitness"


class Refused(DataError):
    """A chat that the template does not take; the other chats can still be learnt."""


class Template:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, messages: Any, completion_only: bool, where: str) -> tuple[str, tuple[Span, ...]] | None:
        """The chat's text, and the characters that are learnt: the assistant's, or all; None for a chat without turns.

        An answer is what the template adds to the turns before it and the opening of a reply, but for an empty thought, which
        templates write where a message has none. Raises ``DataError`` for what is no chat, and where answers
        cannot be found; ``Refused`` where the template raises.
        """
        if not messages:
            return None
        if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
            remedy = "A chat is a list of {'role', 'content'}; choose such a messages_column."
            raise DataError("it is no chat.", where=where, remedy=remedy)
        if not self._tokenizer.chat_template:
            raise _without_template(where)
        chat = [self._message(message, where) for message in messages]
        text = self._written(chat, where)
        return text, tuple(self._answers(chat, text, where)) if completion_only else ((0, len(text)),)

    def question(self, prompt: str, where: str) -> str:
        """The text of a chat that begins with the prompt, up to the opening of the reply. Raises ``DataError`` as ``text``."""
        if not self._tokenizer.chat_template:
            raise _without_template(where)
        return self._written([{"role": "user", "content": self._content(prompt)}], where, opening=True)

    def _written(self, chat: Chat, where: str, opening: bool = False) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opening))
        except Exception as error:  # whatever a template raises about a chat it does not take
            what = f"the model's chat template does not take this chat ({error})."
            raise Refused(what, where=where, remedy="Check its roles and their order.") from error

    def _answers(self, chat: Chat, text: str, where: str) -> Iterator[Span]:
        for i, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            upto = self._written(chat[: i + 1], where)
            before = self._written(chat[:i], where, opening=True) if i else self._first_opening(upto, where)
            if before is None or not upto.startswith(before) or not text.startswith(upto):
                raise DataError(
                    "the model's chat template writes a turn otherwise once others follow, or once it is answered (often: it "
                    f"drops or adds thoughts), so which part of message {i + 1} is the answer is not known.",
                    where=where,
                    remedy="Set completion_only_loss=False, which learns whole chats as the template writes them, or give "
                    "chats with one answer each, at their end.",
                )
            start = len(before)
            if "</think>" not in str(message) and (thought := _EMPTY_THOUGHT.match(upto, start)):
                start = thought.end()
            yield start, len(upto)

    def _first_opening(self, upto: str, where: str) -> str | None:
        """What comes before an answer without a question: up to the opening of a reply, found as it is after a question."""
        question = [{"role": "user", "content": self._content(_PROBE)}]
        opening = self._written(question, where, opening=True).removeprefix(self._written(question, where))
        at = upto.find(opening)
        return upto[: at + len(opening)] if at >= 0 else None

    def _message(self, message: dict[str, Any], where: str) -> dict[str, Any]:
        if (fault := _no_json(message)) is not None:
            remedy = "Save it as text, as it is to be learnt."
            raise DataError(f"the chat holds {fault}, which is neither text nor a number.", where=where, remedy=remedy)
        message = {name: value for name, value in message.items() if value is not None}
        if (content := message.get("content")) is None:
            return message
        if isinstance(content, int | float) and not isinstance(content, bool):
            content = str(content)
        if isinstance(content, list):
            content = self._parts(content, where)
        elif isinstance(content, str):
            content = self._content(content)
        else:
            remedy = "Give content as text, or as a list of {'type': 'text', 'text'}."
            raise DataError(f"a message's content is no text but {content!r:.40}.", where=where, remedy=remedy)
        return message | {"content": content}

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return text if self._takes_text or not self._takes_parts else [{"type": "text", "text": text}]

    def _parts(self, parts: list[Any], where: str) -> str | list[Any]:
        """Parts of text: as they are for a template that goes through them, else one after the other."""
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                remedy = "Leave out such chats, or such parts: only {'type': 'text', 'text'} is trained here."
                raise DataError(f"the chat has a part of the kind {kind!r}.", where=where, remedy=remedy)
        return parts if self._takes_parts else "".join(part["text"] for part in parts)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template goes through content that is a list, rather than print it as it is."""
        return self._shows([{"type": "text", "text": _PROBE, _WITNESS: _WITNESS}])

    @cached_property
    def _takes_text(self) -> bool:
        return self._shows(_PROBE)

    def _shows(self, content: Any) -> bool:
        try:
            shown = self._written([{"role": "user", "content": content}], "")
        except Refused:
            return False
        return _PROBE in shown and _WITNESS not in shown


def _without_template(where: str) -> DataError:
    remedy = "Choose a model that was tuned for chats, or a text column."
    return DataError("the model's tokenizer has no chat template.", where=where, remedy=remedy)


def _no_json(value: Any) -> str | None:
    """What inside a value JSON cannot hold, in words; None where JSON can hold all of it."""
    if isinstance(value, dict):
        return next((fault for inner in value.values() if (fault := _no_json(inner))), None)
    if isinstance(value, list):
        return next((fault for inner in value if (fault := _no_json(inner))), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else f"the number {value}"
    return None if value is None or isinstance(value, str | int) else f"a {type(value).__name__}"
