"""How a field of a configuration is declared: what it may be, and how a form shows it, beside its name, type and default.

Covers the declaration and what follows from one field's alone. Which fields exclude each other is in ``checks``. Knows no
configuration and holds no widgets.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeVar

METHODS = ("qlora", "lora", "full")
ADAPTED, QUANTIZED = ("qlora", "lora"), ("qlora",)
"""The methods that train adapters, and those whose base is in 4 bits."""

Kind = Literal["whole", "real", "flag", "choice", "text", "lines", "names", "patterns", "texts"]
_T = TypeVar("_T")
_WANTED = {
    "flag": "True or False",
    "names": '"all-linear" or a tuple of module names',
    "patterns": "a tuple of module names or regular expressions",
    "texts": "None or a tuple of texts that are not empty",
}


class Group(StrEnum):
    """Fields that a form shows together, under this title and in this order."""

    USUAL = ""
    DATA = "Data"
    QUANTIZATION = "Quantization of the base"
    ADAPTERS = "Adapters"
    OPTIMIZER = "Optimizer and schedule"
    MEMORY = "Memory"
    CHECKPOINTS = "Checkpoints and evaluation"
    GPUS = "Several GPUs (not yet run on any)"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods for which the group means something."""
        return {Group.QUANTIZATION: QUANTIZED, Group.ADAPTERS: ADAPTED}.get(self, METHODS)


@dataclass(frozen=True)
class Setting:
    """What is declared of one field."""

    default: Any
    label: str
    """Its name in a form, with its unit in brackets."""
    kind: Kind
    """A whole or real number, True or False, one of ``choices``, a text that is not empty (``lines``: of several lines, whose
    ends count), or a tuple: of names, of regular expressions (or none), of texts (or none)."""
    group: Group
    place: int = 0
    """In a form a group's fields stand by place, and those of one place as they are declared."""
    least: float = -math.inf
    """The smallest number."""
    above: float = -math.inf
    """What a number is larger than."""
    below: float = math.inf
    """What a number is smaller than."""
    choices: tuple[Any, ...] | Mapping[Any, str] = ()
    """What may be chosen; as a mapping with what a form calls it, where that is not the value."""
    wanted: str = ""
    """What a text must be, where not any name."""
    only: tuple[str, ...] = ()
    """The methods for which it means something; empty: its group's."""
    refused: bool = False
    """Whether the other methods refuse any other value than the default."""
    rows: bool = False
    """Whether it says which rows are learnt and measured, and what of them, though it is in another group than theirs."""
    also: str = ""
    """What peft, TRL and others call it, names with spaces between: for those who give it by one of them."""
    hint: str = ""
    """What an empty control shows."""
    wide: bool = False
    """Whether its control takes two columns."""
    not_shown: str = ""
    """Why a form does not show it; empty: it does."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods for which it means something."""
        return self.only or self.group.methods

    @property
    def of_rows(self) -> bool:
        """Whether it says which rows are learnt and measured, and what of them."""
        return self.rows or self.group == Group.DATA

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Each choice as a form has it: its title and its value."""
        titles = self.choices if isinstance(self.choices, Mapping) else {choice: str(choice) for choice in self.choices}
        return tuple((title, choice) for choice, title in titles.items())

    @property
    def must_be(self) -> str:
        """What a value must be, to follow "it must be"."""
        if self.kind in ("whole", "real"):
            low = f"above {self.above:g}" if math.isfinite(self.above) else f"{self.least:g} or more"
            high = f" and below {self.below:g}" if math.isfinite(self.below) else ""
            return f"a {'whole ' * (self.kind == 'whole')}number, {low}{high}"
        if self.kind == "choice":
            return "one of " + ", ".join(map(repr, self.choices))
        return self.wanted or _WANTED.get(self.kind) or ("None or a name" if self.default is None else "a name")

    def allows(self, value: Any) -> bool:
        """Whether a value is right as far as this field alone decides; the default always is."""
        if type(value) is type(self.default) and value == self.default:
            return True
        if self.kind in ("whole", "real"):
            number = isinstance(value, int if self.kind == "whole" else int | float) and not isinstance(value, bool)
            return number and abs(value) <= sys.float_info.max and self.least <= value < self.below and value > self.above
        if self.kind == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.kind in ("flag", "text", "lines"):
            return isinstance(value, bool) if self.kind == "flag" else isinstance(value, str) and value != ""
        texts = isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)
        return texts and (value != () or self.kind != "names") and (self.kind != "patterns" or _are_patterns(value))

    def as_meant(self, value: Any) -> Any:
        """A value as the configuration holds it: a choice in its own case, a list as a tuple; any other as it is."""
        if self.kind == "choice" and isinstance(value, str):  # "NF4" is nf4, as everywhere
            return next((choice for choice in self.choices if str(choice).casefold() == value.casefold()), value)
        return tuple(value) if self.kind in ("names", "patterns", "texts") and isinstance(value, list) else value


def setting(default: _T, label: str, kind: Kind, group: Group, **more: Any) -> _T:
    """A dataclass's field with a default and its declaration: to be written where the default alone would stand."""
    declared = Setting(default, label, kind, group, **more)
    return dataclasses.field(default=default, metadata={"setting": declared})


def settings_of(config: Any) -> dict[str, Setting]:
    """What is declared of each field of a dataclass or a value of it, by the field's name."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(config)}


def _are_patterns(texts: tuple[str, ...]) -> bool:
    try:
        return all(re.compile(text) for text in texts)
    except re.error:
        return False
