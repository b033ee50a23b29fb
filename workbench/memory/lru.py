"""A memory of pages, the least recently used leaving first: which pages move when a working set does not fit a budget.

Covers any list of moments in which extents of memory are taken, touched and freed, some of them managed (their pages may
move to the host) and the rest fixed. A simulation in pages and bytes, deterministic and without a clock; what a fine-tune
takes and touches, and what a bus charges, is in ``pager``.

How it differs from NVIDIA's driver (its open kernel module, uvm_pmm_gpu.c): that evicts chunks of 2 MiB in the order in which
they last received pages, for it does not see which pages are used, and it may bring neighbouring pages along.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """Memory that is taken and used together. A managed one fills whole pages."""

    category: str
    name: str
    bytes: int
    managed: bool = False

    def pages(self, page_size: int) -> int:
        """Pages of a managed extent; 0 for one that is fixed."""
        return -(-self.bytes // page_size) if self.managed else 0


@dataclass(frozen=True)
class Moment:
    """A moment: the extents that it takes (unless they are there already), touches in this order, and frees at its end.

    Extents are given by their index.
    """

    phase: str
    name: str
    takes: tuple[int, ...] = ()
    touches: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()


@dataclass(frozen=True)
class Demand:
    """What each moment needs, whatever the budget: arrays (moments,) in bytes."""

    fixed: Bytes
    """Fixed memory in use."""
    reserved: Bytes
    """The same with what an allocator keeps of what was freed."""
    managed: Bytes
    """Managed memory that exists, on either side."""


@dataclass(frozen=True)
class Movement:
    """The moments under a budget: arrays over the moments (fewer than asked for where memory ran out)."""

    resident: Bytes
    """(moments, extents): bytes on the device at each moment's end, before it frees anything; managed ones in whole pages."""
    host: Bytes
    """(moments,): managed bytes on the host."""
    h2d: Bytes
    """(moments,): bytes brought to the device. A page's first touch makes it there and moves nothing."""
    d2h: Bytes
    """(moments,): bytes evicted to the host. The device has the only copy, so that every evicted page is moved."""


def demand(extents: Sequence[Extent], moments: Sequence[Moment], page_size: int, keeps_freed: bool) -> Demand:
    """What each moment needs; with ``keeps_freed`` fixed memory that was once taken is not given back."""
    alive: set[int] = set()
    sizes = [e.pages(page_size) * page_size if e.managed else e.bytes for e in extents]
    totals = np.zeros((len(moments), 2), np.int64)  # fixed, managed
    now = [0, 0]
    for i, moment in enumerate(moments):
        for e in moment.takes:
            if e not in alive:
                alive.add(e)
                now[extents[e].managed] += sizes[e]
        totals[i] = now
        for e in moment.frees:
            if e in alive:
                alive.discard(e)
                now[extents[e].managed] -= sizes[e]
    fixed, managed = totals.T
    return Demand(fixed, np.maximum.accumulate(fixed) if keeps_freed else fixed, managed)


def move(
    extents: Sequence[Extent], moments: Sequence[Moment], budget: int, page_size: int, keeps_freed: bool = True
) -> Movement:
    """Goes through the moments with ``budget`` bytes on the device; ends early where fixed memory leaves no page to work in."""
    reserved = demand(extents, moments, page_size, keeps_freed).reserved.tolist()
    device = _Device([e.pages(page_size) for e in extents])
    fixed = [0] * len(extents)
    resident, host, h2d, d2h = [], [], [], []
    for moment, taken in zip(moments, reserved, strict=True):
        device.room = (budget - taken) // page_size
        if device.room < 0 or (not device.room and any(device.total[e] for e in moment.touches)):
            break
        for e in moment.takes:
            fixed[e] = 0 if extents[e].managed else extents[e].bytes
        device.brought = device.evicted = 0
        device.evict(device.used - device.room)
        for e in moment.touches:
            if device.total[e]:
                device.touch(e)
        resident.append([device.here.get(e, 0) * page_size + fixed[e] for e in range(len(extents))])
        host.append(device.away)
        h2d.append(device.brought)
        d2h.append(device.evicted)
        for e in moment.frees:
            fixed[e] = 0
            device.free(e)
    return Movement(
        np.array(resident, np.int64).reshape(len(resident), len(extents)),
        *(np.array(pages, np.int64) * page_size for pages in (host, h2d, d2h)),
    )


class _Device:
    """Exact least recently used replacement, page by page, kept as one number an extent.

    An extent is always touched whole, from its first page to its last, so that what is left of it on the device is always its
    last pages, next to each other in the order of use. Extents with pages here stand in that order, the oldest first.
    """

    def __init__(self, total: Sequence[int]) -> None:
        self.total = total
        self.here: OrderedDict[int, int] = OrderedDict()
        self.made: set[int] = set()
        self.room = self.used = self.away = self.brought = self.evicted = 0

    def evict(self, pages: int) -> None:
        """The oldest pages leave, as many as asked for or as there are."""
        while pages > 0 and self.here:
            e, n = next(iter(self.here.items()))
            gone = min(pages, n)
            pages -= gone
            self._leave(e, gone)

    def _leave(self, e: int, pages: int) -> None:
        self.here[e] -= pages
        if not self.here[e]:
            del self.here[e]
        self.used -= pages
        self.away += pages
        self.evicted += pages

    def touch(self, e: int) -> None:
        """Uses every page of an extent in order: what is missing comes, the oldest pages making room."""
        here = self.here.get(e, 0)
        missing = self.total[e] - here
        needed = missing - (self.room - self.used)
        while needed > 0 and self.here and (oldest := next(iter(self.here))) != e:
            gone = min(needed, self.here[oldest])
            self._leave(oldest, gone)
            needed -= gone
        if needed > 0 and here:
            # Its own pages are the oldest now: each leaves just before its turn, and has to come again.
            self._leave(e, here)
            missing = self.total[e]
        self.evict(needed)
        self.here.pop(e, None)
        self.here[e] = self.total[e]
        self.used += missing
        if e in self.made:
            self.brought += missing
            self.away -= missing
        self.made.add(e)
        self.evict(self.used - self.room)  # larger than the whole device, it drives out its own first pages

    def free(self, e: int) -> None:
        """The extent is gone, wherever its pages were."""
        if e in self.made:
            self.made.discard(e)
            here = self.here.pop(e, 0)
            self.used -= here
            self.away -= self.total[e] - here
