"""The events of a run on a GPU whose state pages. Invented: no GPU wrote them. They have the shape of what a worker writes."""

from __future__ import annotations

import math
from typing import Any

from workbench.training.events import Event

GIB, MIB, SECOND = 2**30, 2**20, 10**9
TOTAL = int(14.7 * GIB)
MANAGED, EVICTED = int(1.25 * GIB), int(0.9 * GIB)
HELD = {
    "4-bit weights": int(4.2 * GIB), "absmax scales": int(0.1 * GIB), "adapters": int(0.62 * GIB),
    "gradients": int(0.62 * GIB), "optimizer state, paged": MANAGED,
}  # fmt: skip


SKIPPED = (1, 2, 9)
"""The steps whose gradients overflow in float16."""


def gpu_events(steps: int = 30, of: int = 60, float16: bool = False) -> list[Event]:
    """A run of some 4 seconds a step, every fourth of which has a long row that fills memory and evicts state."""
    written: list[Event] = []

    def at(when: float, k: str, /, **fields: Any) -> None:
        written.append({"k": k, "t": int(when * SECOND), "seq": len(written), "attempt": 1, **fields})

    def phase(name: str, begin: float, end: float | None) -> None:
        at(begin, "phase", name=name, edge="begin")
        if end is not None:
            at(end, "phase", name=name, edge="end")

    can = {"works": True, "why": ""}
    facts = {"parameters": 448, "eligible": 448, "eligible_bytes": MANAGED, "largest": 262_144, "cuda": 1}
    capabilities = {"cupti": can, "paged optimizer state": can | {"facts": facts}, "prefetch requests": can, "nvml": can}
    at(0, "hello", device="An invented GPU", capabilities=capabilities, versions={"torch": "0"})
    for name, begin, end in (("import", 0, 6), ("load", 6, 20), ("quantize", 20, 26), ("attach", 26, 28), ("dataset", 28, 30)):
        phase(name, begin, end)
    at(6, "memory", moment="libraries", rss=3 * GIB)
    at(7, "forecast", device="cuda", method="qlora", shape=[4, 2048], rows=[{"category": "weights", "bytes": int(15.8 * GIB)}])
    at(26, "memory", moment="load", held={name: HELD[name] for name in ("4-bit weights", "absmax scales")})
    at(28, "memory", moment="attach", held={name: HELD[name] for name in ("4-bit weights", "absmax scales", "adapters")})
    at(29, "dataset", split="train", steps=of, rows=400)
    phase("evaluate", 30, 36)
    at(35.9, "eval", n=0, loss=1.55)
    phase("train", 36, None)
    end, ends = 36.0, []
    for n in range(1, steps + 1):
        long = n % 4 == 0
        begin, end = end, end + (5.5 if long else 3.5)
        ends.append((begin, end, long))
        at(end - 0.4, "prefetch_req", name="optimizer", bytes=MANAGED, count=448)
        if n == 1:
            batch = {"rows": 4, "longest": 700, "padded": 2000, "rss": 3 * GIB, "saved": {}, "recomputed": 0}
            at(end - 0.5, "memory", moment="step", n=1, held=HELD, **batch)
        if long:
            for direction, cause, seen in (("d2h", "eviction", begin + 2.1), ("h2d", "prefetch", end - 0.3)):
                when = {"start": int((seen - 0.1) * SECOND), "end": int(seen * SECOND)}
                at(seen + 0.1, "page", source="cupti", direction=direction, cause=cause, bytes=EVICTED, count=460, **when)
        loss = 1.2 + 0.35 * math.exp(-n / 20) + 0.08 * math.sin(n * 2.1)
        batch = {"tokens": 1800, "longest": 2048} if long else {"tokens": 1200, "longest": 700}
        health: dict[str, Any] = {"grad_norm": 0.6}
        if float16:
            skips, skipped = sum(n >= each for each in SKIPPED), n in SKIPPED
            health = {"grad_norm": None if skipped else 0.6, "scale": 2.0 ** (16 - skips), "skipped": skipped}
        at(end, "step", n=n, loss=loss, lr=2e-4, seconds=end - begin, padded=2000, peak=11 * GIB, **health, **batch)
    for i in range(int(end * 8)):
        at(i / 8, "sample", source="worker", rss=int(3 * GIB * min(i / 48, 1)), minflt=0, majflt=0, **_memory(i / 8, ends))
    return sorted(written, key=lambda event: event["t"])


def _memory(t: float, ends: list[tuple[float, float, bool]]) -> dict[str, int]:
    """A GPU's counters at a moment: a ramp while the model is loaded, then a hill a step, a high one where a row is long."""
    if t < 6:
        return {}
    walked = sum(size for name, size in HELD.items() if "paged" not in name)
    held = walked if t > 39 else int(4.9 * GIB) if t > 28 else int(min(t - 6, 20) / 20 * 4.3 * GIB)
    begin, end, long = next((step for step in ends if step[0] <= t < step[1]), (t, t + 1, False))
    live = int(math.sin(math.pi * (t - begin) / (end - begin)) * (7.2 if long else 2.6) * GIB)
    managed = MANAGED if t > 39 else 0
    resident = managed - (EVICTED if long and begin + 2.1 < t < end - 0.3 else 0)
    reserved = int((held + live) * 1.06)
    return {
        "allocated": held + live, "allocated_peak": held + live, "reserved": reserved, "inactive_split": 0, "retries": 0,
        "ooms": 0, "nvml_used": min(reserved + int(0.6 * GIB) + resident, TOTAL), "nvml_total": TOTAL, "managed": managed,
    }  # fmt: skip
