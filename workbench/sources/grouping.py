"""Neighbours together as long as they fit: the one way in which tensors are cut into tasks and files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Sized(Protocol):
    """What has a size in bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


T = TypeVar("T", bound=Sized)


def by_bytes(items: Iterable[T], limit: int) -> Iterator[list[T]]:
    """Neighbouring items of at most ``limit`` bytes together, or one item of more."""
    group: list[T] = []
    nbytes = 0
    for item in items:
        if group and nbytes + item.nbytes > limit:
            yield group
            group, nbytes = [], 0
        group.append(item)
        nbytes += item.nbytes
    if group:
        yield group
