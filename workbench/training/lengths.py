"""Rows of different lengths in batches: how much of a batch is padding, and rows end to end instead.

Covers the shares of padding by way of batching, and which rows make a pack. Orders and batches are the worker's part. Holds no
text and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.show import Line, Record
from workbench.text import percent

_MEGABATCHES = 50
"""Batches that transformers' ``LengthGroupedSampler`` sorts together, at most; never more than a quarter of all."""


@dataclass(frozen=True, repr=False)
class Padding(Record):
    """Shares of the tokens computed that are padding, estimated for one pass over the rows."""

    random: float
    """In batches of rows at random."""
    grouped: float
    """In batches of rows of like lengths."""
    packed: float
    """In batches of packs."""

    def of(self, config: object) -> float:
        """The share in a run of this configuration."""
        if getattr(config, "packing", False):
            return self.packed
        return self.grouped if getattr(config, "group_by_length", False) else self.random

    def summary(self, config: object) -> str:
        """How much of a batch is padding in a run of this configuration, and how much it would be otherwise, in a sentence."""
        said = ", ".join(f"{share} {how}" for how, share in self._line_().items())
        return f"Of a batch {percent(self.of(config), 0)} is padding, as estimated for these rows ({said})."

    def _line_(self) -> Line:
        return {"at random": percent(self.random, 0), "grouped": percent(self.grouped, 0), "packed": percent(self.packed, 0)}


def padding(lengths: Sequence[int], rows: int, most: int) -> Padding:
    """Of rows with these lengths in tokens, ``rows`` a batch, and packs of ``most`` tokens at most."""
    mixed = np.random.default_rng(0).permutation(np.asarray(lengths, np.int64))
    together = rows * min(max(len(mixed) // (4 * rows), 1), _MEGABATCHES)
    pieces = [np.sort(mixed[at : at + together])[::-1] for at in range(0, len(mixed), together)]
    whole = np.array([sum(lengths[i] for i in pack) for pack in packs(list(lengths), most)], np.int64)
    grouped = np.concatenate(pieces) if pieces else mixed
    return Padding(_share(mixed, rows), _share(grouped, rows), _share(np.sort(whole)[::-1], rows))


def _share(lengths: NDArray[np.int64], rows: int) -> float:
    """Of batches that are padded each to its longest row."""
    if not lengths.size:
        return 0.0
    starts = np.arange(0, len(lengths), rows)
    counts = np.diff(starts, append=len(lengths))
    return 1 - float(lengths.sum() / (np.maximum.reduceat(lengths, starts) * counts).sum())


def packs(lengths: list[int], most: int) -> list[list[int]]:
    """Which rows lie end to end in packs of at most this many tokens: the longest first, each where it fits closest."""
    made: list[list[int]] = []
    by_room: dict[int, list[list[int]]] = {}
    rooms = 0  # bit n is set where a pack has room for n tokens
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = rooms >> lengths[row]
        if fitting:
            room = lengths[row] + (fitting & -fitting).bit_length() - 1
            pack = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = most, []
            made.append(pack)
        pack.append(row)
        room -= lengths[row]
        by_room.setdefault(room, []).append(pack)
        rooms |= 1 << room
    return made
