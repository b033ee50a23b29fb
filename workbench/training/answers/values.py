"""Prompts and answers as values: how an answer is made, one model's answer as it grows, and the answers side by side.

Covers the checks of what a caller asks, a table in a terminal and in a notebook. Imports no torch.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError
from workbench.given import described, is_a, is_number, is_whole, several
from workbench.text import counted, printable

if TYPE_CHECKING:
    import pandas as pd

MOST_SEED = 2**32 - 1
_LINE, _SHOWN = 90, 4
_CELL = "text-align: left; vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere"


class Voice(StrEnum):
    """Which model answers."""

    BASE = "base"
    """The base as the run held it: in 4 bits, but for method ``lora``."""
    ADAPTER = "adapter"
    """The same weights with the run's adapter."""
    ORIGINAL = "original"
    """The base's own 16-bit weights, where the run held them in 4 bits."""


@dataclass(frozen=True)
class Sampling:
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
        if not is_whole(self.seed, 0) or self.seed > MOST_SEED:
            raise _wrong("seed", self.seed, f"Give a whole number from 0 to {MOST_SEED}.")


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
class Answer:
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

    def __repr__(self) -> str:
        return f"{self.voice}, {self.figures}: {_line(self.text)}"

    def _repr_html_(self) -> str:
        return f'<div style="{_CELL}">{html.escape(self.text)}{_small(f"{self.voice} · {self.figures}")}</div>'


@dataclass(frozen=True)
class Loading:
    """A model is being loaded: it will answer next."""

    voice: Voice


@dataclass(frozen=True, repr=False)
class Tried:
    """One prompt and what came of it; ``tried["adapter"]`` is one model's answer."""

    prompt: str
    answers: Mapping[Voice, Answer]
    """In the order in which the models answered."""
    without: str = ""
    """Why the 16-bit base did not answer; "" where it did, or was not asked."""

    def __getitem__(self, voice: str) -> Answer:
        return self.answers[Voice(voice)]

    def __repr__(self) -> str:
        return "\n".join(_lines(self, {voice: str(voice) for voice in self.answers}))

    def _repr_html_(self) -> str:
        return _table((self,), {voice: str(voice) for voice in self.answers}, self.without)


@dataclass(frozen=True, repr=False)
class Answers:
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

    def __repr__(self) -> str:
        how = "greedy"
        if self.sampling.temperature:
            how = f"temperature {self.sampling.temperature:g}, seed {self.sampling.seed}"
        head = (
            f"Answers to {counted(len(self.rows), 'prompt')}: {how}, at most {counted(self.sampling.max_new_tokens, 'token')}"
        )
        shown = [line for row in self.rows[:_SHOWN] for line in _lines(row, self.titles)]
        return "\n".join(filter(None, [head, *shown, self._more, self.without]))

    def _repr_html_(self) -> str:
        return _table(self.rows[:_SHOWN], self.titles, " ".join(filter(None, [self._more, self.without])))

    @property
    def _more(self) -> str:
        return f"{counted(len(self.rows) - _SHOWN, 'more prompt')}: to_frame() has all." if len(self.rows) > _SHOWN else ""


def titles(base: str) -> dict[Voice, str]:
    """What the models are called; ``base`` as in ``Answers``."""
    return {Voice.BASE: base, Voice.ADAPTER: "with the adapter", Voice.ORIGINAL: "16-bit base"}


def _lines(row: Tried, titles: Mapping[Voice, str]) -> list[str]:
    """A prompt and its answers, a line each."""
    width = max(map(len, titles.values()), default=0)
    answers = [(title, row.answers[voice]) for voice, title in titles.items() if voice in row.answers]
    return [f"> {_line(row.prompt)}", *(f"  {title:<{width}}  {_line(answer.text)}" for title, answer in answers)]


def _line(text: str) -> str:
    """A text on one line of a terminal."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= _LINE else f"{flat[: _LINE - 1]}…"


def _table(rows: Iterable[Tried], titles: Mapping[Voice, str], note: str) -> str:
    """Prompts and answers in an HTML table that takes the page's colours."""

    def cell(tag: str, text: str, small: str = "") -> str:
        return f'<{tag} style="{_CELL}">{html.escape(text)}{_small(small)}</{tag}>'

    def cells(row: Tried) -> str:
        answers = [row.answers.get(voice) for voice in titles]
        return cell("td", row.prompt) + "".join(cell("td", a.text, a.figures) if a else cell("td", "") for a in answers)

    head = "".join(cell("th", title) for title in ("prompt", *titles.values()))
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (
        f"<p>{html.escape(note)}</p>" if note else ""
    )


def _small(text: str) -> str:
    return f"<br><small>{html.escape(text)}</small>" if text else ""
