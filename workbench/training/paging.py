"""Who sees memory move, and why nobody does: the capability lines, the host's page faults, and whether any state is paged.

Covers which collector works and why another does not, and the rule that decides what is paged. A host page fault is never
called GPU paging, and a prefetch request (``optimizers``) is never called a migration; those are counted in ``cupti``. What
all of it comes to is in ``truth``.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.events import Event


@dataclass(frozen=True)
class Capability:
    """Whether a collector works, and why not."""

    works: bool
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a hello event carries it."""
        return {"works": self.works, "why": self.why}


def before_torch() -> Capability:
    """What can be said of anything on a GPU before torch is imported: nothing, unless there is no driver at all."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Capability(False, "no CUDA device: this machine has no CUDA driver (libcuda.so.1)")
    return Capability(False, "not known before the model is loaded")


def page_event(source: str, direction: str, moved: int | None, count: int, cause: str, start: int, end: int) -> Event:
    """What a collector saw move or fault between two moments (monotonic ns); ``moved`` in bytes, None where nothing moved."""
    return {
        "k": "page", "source": source, "direction": direction, "bytes": moved, "count": count, "cause": cause,
        "start": start, "end": end,
    }  # fmt: skip


class HostFaults:
    """The operating system's page faults on this process's host memory. Not GPU paging."""

    capability = Capability(True, "host page faults (OS), not GPU paging")

    def __init__(self, counters: Callable[[], dict[str, int | None]]) -> None:
        self._counters = counters
        self._at, self._last = time.monotonic_ns(), counters()

    def drain(self) -> list[Event]:
        """Minor and major faults since the last call."""
        since, before = self._at, self._last
        self._at, self._last = time.monotonic_ns(), self._counters()
        events = []
        for field, cause in (("minflt", "minor"), ("majflt", "major")):
            now, then = self._last.get(field), before.get(field)
            if now is not None and then is not None and now > then:
                events.append(page_event("host faults", "fault", None, now - then, cause, since, self._at))
        return events


def paged_state(config: TrainConfig, cuda: bool, matrices: Sequence[int]) -> Capability:
    """Whether any optimizer state of this run is paged, and if not, what would have to change; ``matrices``: their elements."""
    if not config.optim.startswith("paged_"):
        return Capability(False, f"the optimizer {config.optim} pages nothing")
    largest, bound = max(matrices, default=0), config.page_min_numel
    why = []
    if not cuda:
        why.append("no CUDA device: on a CPU bitsandbytes keeps all optimizer state in ordinary memory")
    if largest < bound:
        smallest = -(-bound * config.lora_r // largest) if largest else 0  # the matrix grows in proportion to the rank
        why.append(
            f"the {bound:,}-element rule: the largest adapter matrix has {largest:,} elements; the smallest lora_r that would "
            f"page is {smallest} (or lower page_min_numel)"
        )
    if why:
        return Capability(False, "; ".join(why))
    paged = sum(n >= bound for n in matrices)
    return Capability(True, f"{paged} of {len(matrices)} adapter matrices have paged state, by the {bound:,}-element rule")
