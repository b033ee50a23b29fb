"""A chat as rows: its text through a template, and from where to where of it is learnt.

Plain Python: a cell that trains the same contains ``Turns`` and what it needs as they stand here. Where chats come from, and
which are no chats, is not its part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Chat = list[dict[str, Any]]
Span = tuple[int, int]

WORD = "wbprobe"
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
NO_THOUGHT = re.compile(r"<think>\s*</think>\s*")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class Turns:
    """Chats through one template.

    ``write(messages, opening, tools)`` gives the text of messages; with ``opening``, also how a reply begins. ``end`` is the
    token that some templates write once, behind the last turn; None: there is none.
    """

    def __init__(self, write: Callable[..., str], end: str | None) -> None:
        self.write, self.end = write, end
        self.tools: Any = None
        part = {"type": "text", "text": WORD, "witness": "witness"}  # a template that prints the list prints the witness
        self.takes_parts = self.shows({"role": "user", "content": [part]})
        self.takes_text = self.shows({"role": "user", "content": WORD})
        question = {"role": "user", "content": self.content("?")}
        answers = {name: {"role": "assistant", "content": self.content("?"), name: WORD} for name in THOUGHTS}
        self.field = next((name for name, answer in answers.items() if self.shows(question, answer)), None)
        self.seen: dict[str, bool] = {}

    def rows(self, chat: Chat, first: int, only: bool, thoughts: bool, tools: Any = None) -> list[tuple[str, list[Span]]]:
        """The rows of a chat, each with the characters that are learnt: what the assistant says from message ``first`` on.

        Templates of models that think write a turn otherwise once others follow. Such a turn is a row of its own, with what
        comes before it as the template gives it there; the others share one row. Without ``only`` the whole chat is one row and
        learnt. ``thoughts``: whether they are kept. An empty thought is never learnt.
        """
        self.tools = tools
        chat = [self.prepared(message, thoughts) for message in chat]
        whole = self.text(chat)
        if not only:
            edges = [0, *(edge for empty in NO_THOUGHT.finditer(whole) for edge in empty.span()), len(whole)]
            return [(whole, list(zip(edges[::2], edges[1::2], strict=True)))]
        alone: list[tuple[str, list[Span]]] = []
        together: list[Span] = []
        for i, message in enumerate(chat):
            if message["role"] == "assistant" and i >= first:
                upto, begin = self.answer(chat, i)
                stop = len(upto)
                if self.end and not whole.startswith(upto) and upto.endswith(self.end):
                    stop -= len(self.end)
                if whole.startswith(upto[:stop]):
                    together.append((begin, stop))
                else:
                    alone.append((upto, [(begin, len(upto))]))
        return [*alone, (whole, together)] if together or not alone else alone

    def answer(self, chat: Chat, i: int) -> tuple[str, int]:
        """The text up to the end of answer ``i``, and where in it the answer begins: behind the opening of a reply."""
        upto = self.text(chat[: i + 1])
        before, begin = self.opened(chat[:i], upto)
        if not upto.startswith(before[:begin]):
            raise ValueError(f"it does not write message {i + 1} behind the opening of a reply")
        thought = thought_of(chat[i])
        if thought and thought not in upto[begin:]:
            if not before.rstrip().endswith("<think>"):
                raise ValueError(f"it leaves out the thought of message {i + 1}")
            upto, begin = f"{before}{thought}\n</think>\n\n{upto[begin:].lstrip()}", len(before)  # as a reply goes on
        behind = len(upto) - len(upto[begin:].lstrip())
        for at in (upto.rfind("<think>", 0, begin), behind):  # an empty thought, which the opening may have begun
            if at >= 0 and (empty := NO_THOUGHT.match(upto, at)):
                begin = max(begin, empty.end())
        return upto, begin

    def opened(self, history: Chat, upto: str) -> tuple[str, int]:
        """The text before an answer with the opening of a reply, and how much of it is still there once that is answered."""
        if not history:  # the opening is found as it is after a question
            question = [{"role": "user", "content": self.content(WORD)}]
            opening = self.text(question, opening=True).removeprefix(self.text(question))
            at = upto.find(opening)
            if at < 0:
                raise ValueError("it does not write an answer without a question")
            return upto[: at + len(opening)], at + len(opening)
        before = self.text(history, opening=True)
        answered = self.text([*history, {"role": "assistant", "content": self.content(WORD)}])
        end = next((n for n, (one, other) in enumerate(zip(before, answered, strict=False)) if one != other), len(before))
        tag = before.rfind("<", 0, end)
        return before, tag if end < len(before) and tag > before.rfind(">", 0, end) else end  # no part of a token

    def prepared(self, message: dict[str, Any], thoughts: bool) -> dict[str, Any]:
        """A message as the template takes it: without nulls, content in its form, arguments of calls as values."""
        message = {name: value for name, value in message.items() if value is not None}
        if not self.sees(message["role"]):
            if message["role"] != "developer":
                raise ValueError(f"it writes nothing for the role {message['role']!r}")
            message["role"] = "system"
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = content if self.takes_parts else "".join(part["text"] for part in content)
        elif content is not None:
            message["content"] = self.content(str(content))
        if isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = [with_values(call) for call in message["tool_calls"]]
        return with_thought(message, self.field, thoughts) if message["role"] == "assistant" else message

    def content(self, text: str) -> Any:
        """A text as the template takes content: as it is or, where it goes through lists alone, as one part."""
        return text if self.takes_text or not self.takes_parts else [{"type": "text", "text": text}]

    def sees(self, role: str) -> bool:
        """Whether the template writes turns of a role at all, as far as can be found out."""
        if role not in self.seen:
            turn = {"role": role, "content": self.content(WORD)}
            question, answer = ({"role": other, "content": self.content("?")} for other in ("user", "assistant"))
            around = [[turn, question], [question, answer, turn]] if role not in ("user", "assistant") else []
            texts = [text for messages in around if (text := self.attempted(messages)) is not None]
            self.seen[role] = not texts or any(WORD in text for text in texts)
        return self.seen[role]

    def shows(self, *messages: dict[str, Any]) -> bool:
        """Whether the template writes the word in these messages, and not what it should not see."""
        text = self.attempted(list(messages))
        return text is not None and WORD in text and "witness" not in text

    def attempted(self, messages: Chat) -> str | None:
        """The text of messages that the template may not take; None where it does not."""
        try:
            return self.write(messages, False, None)
        except Exception:  # whatever a template raises
            return None

    def text(self, messages: Chat, opening: bool = False) -> str:
        """The text of messages, with the opening of a reply where that is asked for."""
        return self.write(messages, opening, self.tools)


def thought_of(message: dict[str, Any]) -> str:
    """What an assistant's message thinks, without white space around it."""
    content = message.get("content")
    inside = THOUGHT.match(content) if isinstance(content, str) else None
    return str(next((message[name] for name in THOUGHTS if message.get(name)), inside[1] if inside else "")).strip()


def with_thought(message: dict[str, Any], field: str | None, keep: bool) -> dict[str, Any]:
    """An assistant's message with its thought in this field, or before its answer where there is none; or without it."""
    thought = thought_of(message) if keep else ""
    rest = {name: value for name, value in message.items() if name not in THOUGHTS}
    content = rest.get("content")
    inside = THOUGHT.match(content) if isinstance(content, str) else None
    if thought and inside and not field:
        return rest
    if inside and isinstance(content, str):
        rest["content"] = content[inside.end() :]
    if thought and field:
        rest[field] = thought
    elif thought:
        rest["content"] = f"<think>\n{thought}\n</think>\n\n{rest.get('content', '')}"
    return rest


def with_values(call: Any) -> Any:
    """A call of a tool with its arguments as an object, where they are the JSON of one."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    if not isinstance(arguments, dict):
        return call
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed
