"""What the model field offers while a reader types: opened before, folders, the Hub's search, models for a free GPU.

Looks on this machine at once and on the Hub when the typing rests, both off the kernel's thread; an answer that comes too late
is dropped. Where the Hub cannot be asked it says why, and offers the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from widgets.background import recents
from widgets.background.tasks import Latest
from workbench.errors import ModelError, Unreachable
from workbench.memory.shortlist import GPU, ROWS, TOKENS, Candidate, shortlist
from workbench.sources.search import LEAST, HubModel, search_folders, search_hub
from workbench.text import memory_size

REST = 0.3
"""Seconds without a keystroke after which the Hub is asked."""
_HUB_TEXT = re.compile(r"[\w-][\w.-]*(?:/[\w.-]*)?", re.ASCII)
_FITS = f"Forecast to fit a free GPU ({GPU}; QLoRA, {ROWS} row of {TOKENS} tokens)"


@dataclass(frozen=True)
class Suggestion:
    """One line of the list."""

    value: str
    """What the field contains once it is chosen."""
    note: str = ""
    """What it is, in a few words."""
    group: str = ""
    """The heading that it stands under, together with its neighbours of the same group."""
    final: bool = True
    """Whether choosing it is the end: False for a folder on the way to others."""


class Suggestions:
    """Answers what is typed: ``offer(suggestions, status)`` is called, under ``UI``, whenever there is something to say.

    ``status`` is a line for below the list: what is being looked for, or why there are none. Nothing is looked for before the
    first ``typed``. ``present()`` is the open model's name, which is not searched for.
    """

    def __init__(
        self,
        offer: Callable[[Sequence[Suggestion], str], None],
        present: Callable[[], str],
        executor: Executor | None = None,
    ) -> None:
        self._give, self._present = offer, present
        self._status = ""
        self._here: list[Suggestion] = []
        self._there: list[Suggestion] = []
        self._machine = Latest(executor, apply=self._found_here)
        self._hub = Latest(executor, apply=self._found_there, failed=self._no_answer, debounce=REST)

    def close(self) -> None:
        """End both threads; closing twice is harmless."""
        self._machine.close()
        self._hub.close()

    def typed(self, text: str) -> None:
        """The field holds this text now."""
        wanted = "" if text.strip() == self._present() else text.strip()
        self._there = [suggestion for suggestion in self._there if wanted and wanted.lower() in suggestion.value.lower()]
        self._machine.submit(_on_this_machine, wanted)
        if len(wanted) >= LEAST and _HUB_TEXT.fullmatch(wanted):
            self._offer("Searching the Hub …")
            self._hub.submit(_on_the_hub, wanted)
        else:
            self._hub.cancel()
            self._offer("")

    def _found_here(self, found: list[Suggestion]) -> None:
        self._here = found
        self._offer(self._status)

    def _found_there(self, found: list[Suggestion]) -> None:
        self._there = found
        self._offer("" if found else "The Hub knows no model with safetensors of this name.")

    def _no_answer(self, error: Exception) -> None:
        if isinstance(error, Unreachable):
            self._offer("The Hub cannot be reached, or offline mode is on: no suggestions from there.")
        else:
            self._offer(f"No suggestions from the Hub: {error.what if isinstance(error, ModelError) else error}")

    def _offer(self, status: str) -> None:
        self._status = status
        known = {suggestion.value for suggestion in self._here}
        fits = [s for s in self._here if s.group == _FITS]
        there = [s for s in self._there if s.value not in known]
        self._give([*(s for s in self._here if s.group != _FITS), *there, *fits], status)


def _on_this_machine(text: str) -> list[Suggestion]:
    lower = text.lower()
    before = [Suggestion(name, "", "Opened before") for name in recents.recent() if lower in name.lower() and name != "builtin"]
    builtin = [Suggestion("builtin", "a small trained model", "Comes with the workbench")] if lower in "builtin" else []
    named = {suggestion.value for suggestion in before}
    folders = [
        Suggestion(found.path, "a model" if found.holds_model else "", "Folders", found.holds_model)
        for found in search_folders(text)
        if found.path not in named
    ]
    fits = [
        Suggestion(model.name, _size(model), _FITS)
        for model in shortlist()
        if lower in model.name.lower() and model.name not in named
    ]
    return [*before, *builtin, *folders, *fits]


def _on_the_hub(text: str) -> list[Suggestion]:
    return [Suggestion(found.name, _fame(found), "On the Hub") for found in search_hub(text)]


def _size(model: Candidate) -> str:
    size = f"{model.parameters / 1e9:.2g} B parameters, {memory_size(model.training)} of GPU memory"
    return f"{size}, gated" if model.gated else size


def _fame(found: HubModel) -> str:
    known = f"{_count(found.downloads)} downloads a month" if found.downloads else ""
    return ", ".join(filter(None, (known, "gated" if found.gated else "")))


def _count(number: int) -> str:
    for unit, size in ((" M", 1e6), (" k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
