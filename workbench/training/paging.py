"""What sees memory move, and why others do not: the capability lines, the host's page faults, and whether any state is paged.

Covers which collector works and why another does not, and the rule that decides what is paged. A host page fault is never
called GPU paging, and a prefetch request (``optimizers``) is never called a migration; those are counted in ``cupti``. The
sums are in ``truth``.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.events import Event


@dataclass(frozen=True)
class Capability:
    """Whether a collector works, and why not."""

    works: bool
    why: str = ""
    facts: Mapping[str, int] = field(default_factory=dict)
    """The numbers behind it, for readers of the event."""

    def to_dict(self) -> dict[str, Any]:
        """As a hello event carries it."""
        return {"works": self.works, "why": self.why, **({"facts": dict(self.facts)} if self.facts else {})}


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
        for counter, cause in (("minflt", "minor"), ("majflt", "major")):
            now, then = self._last.get(counter), before.get(counter)
            if now is not None and then is not None and now > then:
                events.append(page_event("host faults", "fault", None, now - then, cause, since, self._at))
        return events


def smallest_rank(config: TrainConfig, largest: int) -> int | None:
    """The smallest ``lora_r`` at which a state would page, if the largest matrix has so many elements at the rank given.

    An adapter's matrices grow in proportion to the rank. None where there is no adapter.
    """
    if config.method == "full" or not largest:
        return None
    return -(-config.page_min_numel * config.lora_r // largest)


def paging_facts(config: TrainConfig, cuda: bool | None, sizes: Sequence[int]) -> dict[str, int]:
    """What the rule makes of parameters of these sizes (elements): parameters, eligible, eligible_bytes, largest, cuda."""
    from workbench.memory.footprint import Plan, optimizer_state
    from workbench.memory.ledger import PAGED

    plan = Plan.of(config, "cuda")
    states = optimizer_state({str(i): n for i, n in enumerate(sizes)}, plan)
    eligible = [piece.bytes for piece in states if piece.category == PAGED]
    known = {} if cuda is None else {"cuda": int(cuda)}
    return {
        "parameters": len(sizes), "eligible": len(eligible), "eligible_bytes": sum(eligible), "largest": max(sizes, default=0),
        **known,
    }  # fmt: skip


def paged_state(config: TrainConfig, cuda: bool, matrices: Sequence[int]) -> Capability:
    """Whether any optimizer state of this run is paged, and if not, what would have to change; ``matrices``: their elements."""
    facts = paging_facts(config, cuda, matrices)
    if not config.optim.startswith("paged_"):
        return Capability(False, f"the optimizer {config.optim} pages nothing", facts)
    what, bound = "matrix" if config.method == "full" else "adapter matrix", config.page_min_numel
    why = []
    if not cuda:
        why.append("no CUDA device: on a CPU bitsandbytes keeps all optimizer state in ordinary memory")
    if not facts["eligible"]:
        rank = smallest_rank(config, facts["largest"])
        remedy = f"the smallest lora_r that would page is {rank} (or lower page_min_numel)" if rank else "lower page_min_numel"
        why.append(f"the {bound:,}-element rule: the largest {what} has {facts['largest']:,} elements; {remedy}")
    if why:
        return Capability(False, "; ".join(why), facts)
    many = f"{facts['eligible']} of {len(matrices)} {what.removesuffix('matrix')}matrices have paged state"
    return Capability(True, f"{many}, by the {bound:,}-element rule", facts)
