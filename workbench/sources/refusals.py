"""Why a model on the Hub could not be read, where a caller may want to tell one reason from another.

Every other fault is a plain ``ModelError``. Needs no huggingface_hub.
"""

from __future__ import annotations

from workbench.errors import ModelError


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
