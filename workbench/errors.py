"""The errors a user can meet: each says what was wrong, where, and what to do.

Covers every exception that public functions raise on bad input. Does not cover programming errors, which stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class WorkbenchError(Exception):
    """Bad input or a failed operation, put so that the reader can act on it.

    All three arguments are plain text; a view must escape them before they become HTML.

    Args:
        what: What was wrong.
        where: A file, a field, a tensor.
        remedy: What to do.

    >>> str(wb.WorkbenchError('There is no such file.', where='a.json', remedy='Name another.'))
    'a.json: There is no such file. Name another.'
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message} {self.remedy}" if self.remedy else message


class ModelError(WorkbenchError):
    """A model or one of its files cannot be opened or read."""


class FormatError(WorkbenchError):
    """An unknown format, or a quantization setting that the format does not have."""


class DataError(WorkbenchError):
    """A dataset that cannot be read or lacks what was asked of it.

    Args:
        what: As in ``WorkbenchError``.
        where: As in ``WorkbenchError``.
        remedy: As in ``WorkbenchError``.
        field: That of a ``TrainConfig`` to change, if any.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", field: str = "") -> None:
        self.field = field
        super().__init__(what, where=where, remedy=remedy)


class RunError(WorkbenchError):
    """A training run that cannot be started, found or steered."""


class ConfigError(WorkbenchError):
    """One or more wrong fields, all of them at once.

    Args:
        faults: What was wrong, one by one; the error keeps them as ``faults``.
        where: As in ``WorkbenchError``.
        remedy: As in ``WorkbenchError``.
    """

    def __init__(self, faults: Sequence[str], *, where: str = "", remedy: str = "") -> None:
        self.faults = tuple(faults)
        super().__init__(" ".join(self.faults), where=where, remedy=remedy)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]], dict[str, object]]:
        return type(self), (self.faults,), self.__dict__


class Unreachable(ModelError):
    """The Hub cannot be asked: offline mode, or no network. What is on this machine may still be read."""


class NotListed(ModelError):
    """The Hub knows no such model, or does not show it to this reader."""


class Gated(ModelError):
    """The model's owner asks readers to accept terms first."""


class WholeFileOnly(ModelError):
    """A server that sends whole files only. ``nbytes``: how large the one is that was asked for."""

    def __init__(self, what: str, nbytes: int = 0, *, where: str = "", remedy: str = "") -> None:
        self.nbytes = nbytes
        super().__init__(what, where=where, remedy=remedy)


def to_fields(error: WorkbenchError) -> dict[str, Any]:
    """What another process needs to raise the error again: its nearest kind in this file, and its three texts."""
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == __name__)
    return {"kind": kind, "what": error.what, "where": error.where, "remedy": error.remedy}


def from_fields(kind: str, what: str, where: str, remedy: str) -> WorkbenchError:
    """The error of ``to_fields``; the faults of a ``ConfigError`` come as one."""
    cls = globals()[kind]
    error: WorkbenchError = cls([what] if issubclass(cls, ConfigError) else what, where=where, remedy=remedy)
    return error
