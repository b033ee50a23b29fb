"""What came before a run's first step, and what was added after its last: the runs behind its first adapter, its extensions.

Kept in ``lineage.json`` in the run's folder, for its card; a run without that file began from nothing and was never extended.
Holds no paths. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TypeVar

from workbench.errors import RunError
from workbench.given import described
from workbench.training.folder import write_json

_FILE = "lineage.json"


@dataclass(frozen=True)
class Ancestor:
    """One adapter that was gone on from, and the run that trained it where it is known."""

    name: str
    """The run's, or the adapter's folder's."""
    sha256: str
    """Of the adapter's weights."""
    base: str
    steps: int | None = None
    dataset: str = ""
    method: str = ""
    learning_rate: float | None = None
    held_out: float | None = None
    """The last loss that was measured, in nats a token."""
    begun: str = ""
    """How its weights began where that is known, as ``init_lora_weights`` has it."""


@dataclass(frozen=True)
class Extension:
    """Steps added to a run that was finished."""

    after: int
    """The steps that it had."""
    to: int
    """The steps that it was given."""


@dataclass(frozen=True)
class Lineage:
    """All of a run, oldest first."""

    before: tuple[Ancestor, ...] = ()
    extended: tuple[Extension, ...] = ()

    @property
    def extended_after(self) -> int:
        """The steps after which the run was last extended; 0 where it never was."""
        return self.extended[-1].after if self.extended else 0

    def write(self, run: Path) -> None:
        """Keeps it in the run's folder. OSError where that cannot be written."""
        write_json(run / _FILE, dataclasses.asdict(self))


_Part = TypeVar("_Part", Ancestor, Extension)
_KINDS: Mapping[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "int | None": (int, NoneType), "float | None": (int, float, NoneType),
}  # fmt: skip


def _checked(part: _Part) -> _Part:
    """The part, if each value is of its field's type: the file may be another's, by way of its adapter."""
    for field in dataclasses.fields(part):
        if type(value := getattr(part, field.name)) not in _KINDS[str(field.type)]:
            raise TypeError(f"{field.name} is {described(value)}")
    return part


def read(run: Path) -> Lineage:
    """That of the run in a folder. RunError where the file is there and cannot be read."""
    try:
        held = json.loads((run / _FILE).read_text("utf-8"))
        before = tuple(_checked(Ancestor(**one)) for one in held["before"])
        return Lineage(before, tuple(_checked(Extension(**one)) for one in held["extended"]))
    except FileNotFoundError:
        return Lineage()
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "Remove the file: the run's card then says nothing of what came before."
        raise RunError(f"it cannot be read ({error}).", where=str(run / _FILE), remedy=remedy) from error
