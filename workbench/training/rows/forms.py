"""Rows in columns as a prompt and its completion: Alpaca's, those of a template, preference pairs; and turns as messages.

Plain functions: a cell that trains the same contains those it needs as they stand here. Which of them a row goes through is
``shapes``' part, chats as text are ``turns``'.
"""

from __future__ import annotations

import json
from typing import Any

ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "ipython", "function_response", "tool_response", "tool_result"),
    "system": ("system",),
    "developer": ("developer",),
}
"""What ShareGPT's files call the roles."""


def alpaca(instruction: str, given: str) -> str:
    """The prompt of an Alpaca row, with its input or, where that is empty, without.

    The two wordings are those of Stanford Alpaca, as the Hub's tatsu-lab/alpaca has them in its column ``text``.
    """
    if given.strip():
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response:\n"
    )


def chosen_text(prompt: str, chosen: str, rejected: str) -> tuple[str, str]:
    """Prompt and completion of a preference pair; without a prompt, it is what both answers begin with, in whole words."""
    if prompt:
        both = chosen.startswith(prompt) and rejected.startswith(prompt)
        return prompt, chosen[len(prompt) :] if both else chosen
    end = shared(chosen, rejected)
    while end and not chosen[end - 1].isspace():
        end -= 1
    end = len(chosen[:end].rstrip())
    return chosen[:end], chosen[end:]


def chosen_chat(prompt: Any, chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], int]:
    """The chat of a preference pair, and how many of its messages are its prompt.

    Where the answers have the question in them, the prompt is what both begin with.
    """
    question = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else list(prompt or [])
    if not question or (chosen and chosen[0]["role"] != "assistant"):
        return chosen, shared(chosen, rejected)
    return question + chosen, len(question)


def with_system(messages: list[Any], system: Any) -> list[Any]:
    """Messages with what stands in a column for the system in front, where they do not begin with such a turn."""
    if not messages or not isinstance(system, str) or not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def shared(one: Any, other: Any) -> int:
    """How much two texts, or two lists, have in common at their beginning."""
    both = zip(one, other, strict=False)
    return next((i for i, (mine, its) in enumerate(both) if mine != its), min(len(one), len(other)))


def is_chat(turns: Any) -> bool:
    """Whether it is a list of turns that say who speaks: messages, or ShareGPT's."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return False
    return all("from" in turn or isinstance(turn.get("role"), str) for turn in turns)


def as_messages(turns: list[Any]) -> list[dict[str, Any]]:
    """Turns of ShareGPT's form, {"from", "value"}, as messages; messages as they are."""
    known = {name: role for role, names in ROLES.items() for name in names}
    messages = []
    for turn in turns:
        if "from" not in turn:
            messages.append(turn)
            continue
        name, content = str(turn["from"]).lower(), turn.get("value")
        if name not in known:
            raise ValueError(f"a turn is from {name!r}; known are {', '.join(known)}")
        message = {"role": known[name], "content": content}
        if name in ("function_call", "tool_call"):
            message = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": json.loads(content)}],
            }
        messages.append(message)
    return messages
