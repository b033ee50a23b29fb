"""Who sees memory move, and why nobody does: collectors of paging events, each under its own name.

Covers CUPTI's unified-memory counters through the libcupti that torch has loaded [not yet run on a GPU], the host's page
faults, and the capability lines that say which collector works and why another does not. A host page fault is never called GPU
paging, and a prefetch request (``optimizers``) is never called a migration.

CUPTI's activity interface belongs to the whole process: where the collector runs, torch.profiler must not.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.events import Event

_RECORD = struct.Struct("<iiQQQQIIIIII")  # the first 64 bytes of every version of the unified-memory counter's record
_KIND_UNIFIED_MEMORY = 25
_PROCESS_ALL_DEVICES = 2
_END_OF_BUFFER = 12  # CUPTI_ERROR_MAX_LIMIT_REACHED
_BUFFER = 1 << 20
_WINDOW_NS = 100_000_000
_DIRECTIONS = {1: "h2d", 2: "d2h", 3: "cpu fault", 4: "gpu fault", 5: "thrashing", 6: "throttling", 7: "remote map", 8: "d2d"}
_MOVES = frozenset({1, 2, 8})  # counters whose value is a number of bytes
_CAUSES = {1: "user", 2: "coherence", 3: "prefetch", 4: "eviction", 5: "access counters"}


@dataclass(frozen=True)
class Capability:
    """Whether a collector works, and why not."""

    works: bool
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a hello event carries it."""
        return {"works": self.works, "why": self.why}


@dataclass(frozen=True)
class Migration:
    """One unified-memory record: ``value`` is bytes for moves and no number to add up for anything else."""

    counter: int
    value: int
    start: int
    end: int
    flags: int

    @property
    def direction(self) -> str:
        """What moved or faulted."""
        return _DIRECTIONS.get(self.counter, f"counter {self.counter}")

    @property
    def cause(self) -> str:
        """Why it moved; known for moves only."""
        return _CAUSES.get(self.flags, "unknown") if self.counter in _MOVES else ""


def parse_record(raw: bytes) -> Migration | None:
    """A record's first 64 bytes → ``Migration``; None for another kind of record."""
    kind, counter, value, start, end, _address, _src, _dst, _stream, _process, flags, _pad = _RECORD.unpack_from(raw)
    return Migration(counter, value, start, end, flags) if kind == _KIND_UNIFIED_MEMORY else None


def page_events(migrations: Iterable[Migration], shift: int = 0, window: int = _WINDOW_NS) -> list[Event]:
    """Records → page events, one a direction and cause in each window; ``shift`` turns CUPTI's clock into monotonic time."""
    groups: dict[tuple[int, str, str], list[Migration]] = defaultdict(list)
    for m in migrations:
        groups[(m.start + shift) // window, m.direction, m.cause].append(m)
    events: list[Event] = []
    for (_, direction, cause), group in sorted(groups.items()):
        moved = sum(m.value for m in group) if group[0].counter in _MOVES else None
        start, end = min(m.start for m in group) + shift, max(m.end for m in group) + shift
        events.append(_page("cupti", direction, moved, len(group), cause, start, end))
    return events


def _page(source: str, direction: str, moved: int | None, count: int, cause: str, start: int, end: int) -> Event:
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
                events.append(_page("host faults", "fault", None, now - then, cause, since, self._at))
        return events


def loaded_cupti(maps: Path = Path("/proc/self/maps")) -> str | None:
    """The libcupti that this process has loaded (torch loads its own); None if there is none."""
    try:
        lines = maps.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next((line.split(maxsplit=5)[5] for line in lines if "libcupti.so" in line), None)


class _CounterConfig(ctypes.Structure):
    _fields_ = [("scope", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("device", ctypes.c_uint32), ("enable", ctypes.c_uint32)]


class CuptiError(Exception):
    """A call into libcupti that did not succeed; its text names the call and CUPTI's own name for the answer."""


class Cupti:
    """Bytes that pages really moved, from CUPTI's unified-memory counters. Not yet run on a GPU.

    ``start`` registers callbacks and enables the counters, ``drain`` gives page events, ``close`` flushes and disables. The
    callbacks, on a thread of CUPTI's own, only copy records.
    """

    def __init__(self, path: str) -> None:
        self._lib = ctypes.CDLL(path)
        self._lock = threading.Lock()
        self._records: list[Migration] = []
        self._buffers: dict[int, Any] = {}
        self._shift = 0
        self._running = False
        request = ctypes.CFUNCTYPE(
            None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
        )
        completed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
        self._callbacks = request(self._requested), completed(self._completed)  # kept: CUPTI calls them as long as it runs

    def start(self, device: int = 0) -> None:
        """Begins to collect; raises ``CuptiError`` with CUPTI's answer where it cannot."""
        self._call("cuptiActivityRegisterCallbacks", *self._callbacks)
        kinds = (1, 2, 3, 4, 5, 6, 8)
        wanted = (_CounterConfig * len(kinds))(*(_CounterConfig(_PROCESS_ALL_DEVICES, kind, device, 1) for kind in kinds))
        self._call("cuptiActivityConfigureUnifiedMemoryCounter", wanted, ctypes.c_uint32(len(kinds)))
        self._call("cuptiActivityEnable", ctypes.c_int(_KIND_UNIFIED_MEMORY))
        self._call("cuptiActivityFlushPeriod", ctypes.c_uint32(200))
        self._running = True
        if (now := self.clock()) is not None:
            self._shift = time.monotonic_ns() - now

    def clock(self) -> int | None:
        """CUPTI's own time in nanoseconds."""
        now = ctypes.c_uint64()
        return int(now.value) if self._lib.cuptiGetTimestamp(ctypes.byref(now)) == 0 else None

    def drain(self) -> list[Event]:
        """Page events of the records that CUPTI has completed."""
        with self._lock:
            records, self._records = self._records, []
        return page_events(records, self._shift)

    def close(self) -> None:
        """Flushes what is still under way and stops collecting; twice is fine."""
        if self._running:
            self._running = False
            self._lib.cuptiActivityFlushAll(ctypes.c_uint32(1))
            self._lib.cuptiActivityDisable(ctypes.c_int(_KIND_UNIFIED_MEMORY))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            named = self._lib.cuptiGetResultString(ctypes.c_int(code), ctypes.byref(text)) == 0 and text.value
            raise CuptiError(f"{name} answered {named.decode() if named else code}")

    def _requested(self, buffer: Any, size: Any, records: Any) -> None:
        memory = ctypes.create_string_buffer(_BUFFER + 8)
        address = (ctypes.addressof(memory) + 7) & ~7  # CUPTI wants eight-byte alignment
        self._buffers[address] = memory
        buffer[0], size[0], records[0] = address, _BUFFER, 0

    def _completed(self, _context: Any, _stream: int, buffer: int, _size: int, valid: int) -> None:
        found = self.walk(buffer, valid)
        with self._lock:
            self._records += found
        self._buffers.pop(buffer, None)

    def walk(self, buffer: int, valid: int) -> list[Migration]:
        """The unified-memory records in ``valid`` bytes at the address ``buffer``; libcupti itself knows how long each is."""
        found: list[Migration] = []
        record = ctypes.c_void_p()
        while self._lib.cuptiActivityGetNextRecord(ctypes.c_void_p(buffer), ctypes.c_size_t(valid), ctypes.byref(record)) == 0:
            if record.value is not None and (parsed := parse_record(ctypes.string_at(record.value, _RECORD.size))):
                found.append(parsed)
        return found


def open_cupti(cuda: bool) -> tuple[Cupti | None, Capability]:
    """The collector, started, or the reason why there is none."""
    if not cuda:
        return None, Capability(False, "no CUDA device")
    path = loaded_cupti()
    if path is None:
        return None, Capability(False, "torch has loaded no libcupti")
    try:
        collector = Cupti(path)
        collector.start()
    except (OSError, AttributeError, CuptiError) as error:
        return None, Capability(False, str(error))
    return collector, Capability(True, "CUPTI unified-memory counters")


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
