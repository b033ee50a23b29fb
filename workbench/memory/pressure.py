"""The largest budget on which a fine-tune would page: what a run without pressure, or without a GPU, would look like under it.

Covers the search for that budget; the simulation itself is ``pager``'s, and like it nothing here is a measurement.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.memory.gpus import GIB
from workbench.memory.pager import PagerSimulation, simulate_paging
from workbench.show import Shown, View
from workbench.sources import Source, open_model

_ROOM = 10_000 * GIB
"""A budget on which nothing pages."""
_PAGED = "paged_adamw_32bit"


@dataclass(frozen=True, repr=False)
class Pressure(Shown):
    """A simulated step on the largest budget on which something is evicted."""

    simulation: PagerSimulation
    every_state: bool
    """Whether all optimizer state was let page for it, because by bitsandbytes' rule none of this run's may."""

    @property
    def moves(self) -> list[tuple[float, int, int]]:
        """When in a step how much moves: the share of the step that is over, bytes to the GPU, bytes to the host."""
        found = self.simulation
        last = np.flatnonzero(found.step == found.step.max(initial=0))
        return [
            (float((i + 0.5) / len(last)), int(found.h2d[row]), int(found.d2h[row]))
            for i, row in enumerate(last)
            if found.h2d[row] or found.d2h[row]
        ]

    def _show_(self) -> View:
        who = "every state, though by its configuration none of them may" if self.every_state else "the states that may"
        shown = self.simulation._show_()
        title = f"{shown.title}, on the largest budget on which something is evicted"
        return dataclasses.replace(shown, title=title, facts={"pages": who, **shown.facts})


def under_pressure(src: Source | str | os.PathLike[str], cfg: Any) -> Pressure | None:
    """A fine-tune under just so much pressure that it pages; simulated.

    Where nothing of it may page, because each of its states is smaller than bitsandbytes' bound or its optimizer is not a paged
    one, the same with every state paged.

    Args:
        src: A source, or what ``open_model`` takes.
        cfg: The fine-tune, as a ``TrainConfig``.

    Returns:
        The simulation, or None where no state ever leaves.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.

    >>> pressure = wb.under_pressure("builtin", wb.TrainConfig())
    >>> pressure.every_state, pressure.simulation.summary[:10]
    (True, 'Simulated,')
    """
    src = open_model(src)
    for config in (cfg, dataclasses.replace(cfg, optim=_PAGED, page_min_numel=1)):
        found = _tightest(src, config)
        if found is not None:
            return Pressure(found, config is not cfg)
    return None


def _tightest(src: Source, cfg: Any) -> PagerSimulation | None:
    """By bisection over whole pages: the smaller the budget, the more is evicted."""
    probe = simulate_paging(src, cfg, _ROOM)
    page = probe.page_size
    low, high = 0, -(-(probe.enough - probe.least) // page)  # pages below what is enough
    best: PagerSimulation | None = None
    while low < high:
        middle = (low + high) // 2 + 1
        found = _evicting(src, cfg, probe.enough - middle * page)
        if found is None:
            low = middle
        else:
            best, high = found, middle - 1
    return best


def _evicting(src: Source, cfg: Any, budget: int) -> PagerSimulation | None:
    if budget < 1:
        return None
    try:
        found = simulate_paging(src, cfg, budget)
    except WorkbenchError:
        return None
    return found if not found.out_of_memory and len(found.evictions) and found.evictions[-1] else None
