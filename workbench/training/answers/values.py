"""Prompts and answers as values: how an answer is made, one model's answer as it grows, and the answers side by side.

Covers the checks of what a caller asks, a table in a terminal and in a notebook. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError
from workbench.given import described, is_a, is_number, is_whole, several
from workbench.show import Line, Record, Shown, View
from workbench.text import counted

if TYPE_CHECKING:
    import pandas as pd

_MOST_SEED = 2**63 - 1
_CELL = 600
"""Characters of an answer that a table in a notebook shows; ``to_frame`` has all."""


class Voice(StrEnum):
    """Which model answers."""

    BASE = "base"
    """The base as the run held it: in 4 bits, but for method ``lora``."""
    ADAPTER = "adapter"
    """The same weights with the run's adapter."""
    ORIGINAL = "original"
    """The base's own 16-bit weights, where the run held them in 4 bits."""


@dataclass(frozen=True, repr=False)
class Sampling(Record):
    """How answers are made. Raises ``DataError`` for values that mean nothing."""

    max_new_tokens: int = 64
    """Tokens that an answer has at most."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above it, tokens are sampled, the more evenly the higher it is."""
    seed: int = 0
    """Of the sampling; every model begins with the same one."""

    def __post_init__(self) -> None:
        if not is_whole(self.max_new_tokens, 1):
            raise _wrong("max_new_tokens", self.max_new_tokens, "Give a whole number of tokens, 1 or more.")
        if not is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _wrong("temperature", self.temperature, "Give 0 for the likeliest answer, or a number above it.")
        if not is_whole(self.seed, 0) or self.seed > _MOST_SEED:
            raise _wrong("seed", self.seed, f"Give a whole number from 0 to {_MOST_SEED}.")

    @property
    def summary(self) -> str:
        """All of it in words."""
        how = f"temperature {self.temperature:g}, seed {self.seed}" if self.temperature else "greedy"
        return f"{how}, at most {counted(self.max_new_tokens, 'token')}"


def _wrong(field: str, value: object, remedy: str) -> DataError:
    return DataError(f"{field} is {described(value)}.", where="try_out", remedy=remedy)


def as_prompts(given: Any) -> tuple[str, ...]:
    """One prompt or several; ``DataError`` for what is no text, or none that can be encoded."""
    prompts = several(given)
    remedy = "Give a text, or a list of texts."
    if not prompts:
        raise DataError("there is no prompt.", where="try_out", remedy=remedy)
    for prompt in prompts:
        if not is_a(prompt, str):
            raise DataError(f"{described(prompt)} is no prompt.", where="try_out", remedy=remedy)
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            what = f"a prompt is no text that can be encoded ({error})."
            raise DataError(what, where="try_out", remedy="Give whole characters.") from error
    return prompts


@dataclass(frozen=True, repr=False)
class Answer(Record):
    """What one model says to a prompt. Measured: seconds and tokens."""

    voice: Voice
    text: str
    """Plain text of the model's: a view must escape it."""
    tokens: int
    """Generated so far, an end token among them."""
    seconds: float
    """Since this model began to answer."""
    complete: bool = True
    """False while it grows."""
    ended: bool = False
    """Whether the model came to an end by itself, rather than to ``max_new_tokens``."""

    @property
    def figures(self) -> str:
        """Tokens and seconds, in words."""
        return f"{counted(self.tokens, 'token')} · {self.seconds:.1f} s"

    def _line_(self) -> Line:
        figures = {"tokens": f"{self.tokens:,}", "seconds": f"{self.seconds:.1f}"}
        return {"model": str(self.voice), "answer": _flat(self.text), **figures}


@dataclass(frozen=True)
class Loading:
    """A model is being loaded: it will answer next."""

    voice: Voice


@dataclass(frozen=True, repr=False)
class Tried(Shown):
    """One prompt and what came of it; ``tried["adapter"]`` is one model's answer."""

    prompt: str
    answers: Mapping[Voice, Answer]
    """In the order in which the models answered."""
    without: str = ""
    """Why the 16-bit base did not answer; "" where it did, or was not asked."""

    def __getitem__(self, voice: str) -> Answer:
        return self.answers[Voice(voice)]

    def _show_(self) -> View:
        answers = {str(voice): _measured(answer) for voice, answer in self.answers.items()}
        return View("One prompt and its answers", {"prompt": _flat(self.prompt), **answers}, note=self.without)


@dataclass(frozen=True, repr=False)
class Answers(Shown):
    """Every prompt with the answers of the base and of the adapter. Printed, it is a table."""

    rows: tuple[Tried, ...]
    base: str
    """What the base is called: ``4-bit base``, or ``base`` where the run did not hold it in 4 bits."""
    sampling: Sampling

    def __getitem__(self, row: int) -> Tried:
        return self.rows[row]

    @property
    def titles(self) -> Mapping[Voice, str]:
        """The models that answered, and what they are called."""
        there = {voice for row in self.rows for voice in row.answers}
        return {voice: title for voice, title in titles(self.base).items() if voice in there}

    @property
    def without(self) -> str:
        """Why the 16-bit base did not answer; "" where it did, or was not asked."""
        return next((row.without for row in self.rows if row.without), "")

    def to_frame(self) -> pd.DataFrame:
        """One line a prompt and model: prompt, voice, text, tokens, seconds, ended."""
        import pandas as pd

        found = ((row.prompt, a) for row in self.rows for a in row.answers.values())
        lines = [(prompt, str(a.voice), a.text, a.tokens, a.seconds, a.ended) for prompt, a in found]
        return pd.DataFrame(lines, columns=["prompt", "voice", "text", "tokens", "seconds", "ended"])

    @property
    def _title(self) -> str:
        return f"Answers to {counted(len(self.rows), 'prompt')}: {self.sampling.summary}"

    def _show_(self) -> View:
        lines = []
        for row in self.rows:
            there = [(title, row.answers[voice]) for voice, title in self.titles.items() if voice in row.answers]
            for n, (title, answer) in enumerate(there):
                lines.append({"prompt": "" if n else _flat(row.prompt), **answer._line_(), "model": title})
        return View(self._title, lines=lines, note=self.without)

    def _repr_html_(self) -> str:
        """The models side by side."""
        lines = []
        for row in self.rows:
            there = {title: row.answers.get(voice) for voice, title in self.titles.items()}
            lines.append({"prompt": _flat(row.prompt)} | {title: _measured(a) if a else "" for title, a in there.items()})
        return View(self._title, lines=lines, note=self.without, cell=_CELL).html


def titles(base: str) -> dict[Voice, str]:
    """What the models are called; ``base`` as in ``Answers``."""
    return {Voice.BASE: base, Voice.ADAPTER: "with the adapter", Voice.ORIGINAL: "16-bit base"}


def _measured(answer: Answer) -> str:
    return f"{_flat(answer.text)} ({answer.figures})"


def _flat(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())
