"""Pages that really moved: CUPTI's unified-memory counters, through the libcupti that torch has loaded.

Covers finding the library, enabling the counters, every answer it can give, records to page events. The real library walks
hand-built records in the tests, and a stub drives the callbacks; on an H100 (driver 580) it delivered prefetches, faults and
evictions. Does not cover what the optimizer asked for (``optimizers``) and what it means (``truth``).

CUPTI's activity interface belongs to the whole process: where the collector runs, torch.profiler must not.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from workbench.training.events import Event
from workbench.training.host import MAPS, mappings
from workbench.training.paging import Capability, page_event

H2D, D2H, CPU_FAULT, GPU_FAULT, THRASHING, THROTTLING, REMOTE_MAP, D2D = range(1, 9)
_RECORD = struct.Struct("<iiQQQQIIIIII")  # the first 64 bytes of every version of the unified-memory counter's record
_KIND_UNIFIED_MEMORY = 25
_PROCESS_ALL_DEVICES = 2
_END_OF_BUFFER = 12  # CUPTI_ERROR_MAX_LIMIT_REACHED
_BUFFER = 1 << 20
_WINDOW_NS = 100_000_000
_DIRECTIONS = {
    H2D: "h2d", D2H: "d2h", CPU_FAULT: "cpu fault", GPU_FAULT: "gpu fault", THRASHING: "thrashing", THROTTLING: "throttling",
    REMOTE_MAP: "remote map", D2D: "d2d",
}  # fmt: skip
_MOVES = frozenset({H2D, D2H, D2D})  # counters whose value is a number of bytes
_MOMENTS = frozenset({CPU_FAULT, THRASHING, REMOTE_MAP})  # counters whose end CUPTI leaves undefined
_CAUSES = {1: "user", 2: "coherence", 3: "prefetch", 4: "eviction", 5: "access counters"}
"""Why pages moved, by CUPTI's names: ``user`` is an explicit request as cudaMemPrefetchAsync, which is what bitsandbytes
makes; ``prefetch`` is the driver's own guess."""
_WIDEST_FIRST = (
    (H2D, D2H, CPU_FAULT, GPU_FAULT, THRASHING, THROTTLING, REMOTE_MAP, D2D),
    (H2D, D2H, CPU_FAULT, GPU_FAULT),
    (H2D, D2H),
)
"""Sets of counters to ask for; a device or a CUPTI that refuses one set may have the next."""

_REASONS = {
    7: "another tool of this process may be using CUPTI",
    15: "CUPTI found no CUDA driver",
    21: "this CUPTI does not know the unified-memory counters",
    27: "not supported on this system or GPU",
    28: "this system does not support the unified-memory counters",
    29: "this GPU does not support the unified-memory counters",
    30: "several GPUs without peer access: show the process one of them with CUDA_VISIBLE_DEVICES",
    31: "the Multi-Process Service is running",
    33: "the GPU is virtualized",
    35: "the driver lets administrators only profile (its option NVreg_RestrictProfilingToAdminUsers)",
    39: "a debugger or profiler is attached",
    40: "the hypervisor does not allow profiling",
    41: "confidential computing is on",
    42: "a mining card",
    43: "the GPU is divided (MIG)",
    44: "the GPU is part of an SLI group",
    45: "WSL",
}
"""What the likelier of CUPTI's answers mean (cupti_result.h), in a reader's words."""


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
    if kind != _KIND_UNIFIED_MEMORY:
        return None
    return Migration(counter, value, start, start if counter in _MOMENTS else max(start, end), flags)


def page_events(migrations: Iterable[Migration], shift: int = 0, window: int = _WINDOW_NS) -> list[Event]:
    """Records → page events, one a direction and cause in each window; ``shift`` turns CUPTI's clock into monotonic time."""
    groups: dict[tuple[int, str, str], list[Migration]] = defaultdict(list)
    for m in migrations:
        groups[(m.start + shift) // window, m.direction, m.cause].append(m)
    events: list[Event] = []
    for (_, direction, cause), group in sorted(groups.items()):
        moved = sum(m.value for m in group) if group[0].counter in _MOVES else None
        start, end = min(m.start for m in group) + shift, max(m.end for m in group) + shift
        events.append(page_event("cupti", direction, moved, len(group), cause, start, end))
    return events


def loaded_cupti(maps: Path = MAPS) -> str | None:
    """The libcupti that this process has loaded (torch loads its own); None if there is none."""
    with contextlib.suppress(OSError):
        return next((path for _, path in mappings(maps) if "libcupti.so" in path), None)
    return None


class _CounterConfig(ctypes.Structure):
    _fields_ = [("scope", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("device", ctypes.c_uint32), ("enable", ctypes.c_uint32)]


class CuptiError(Exception):
    """A call into libcupti that did not succeed; its text names the call, CUPTI's own name for the answer, and the reason."""


class Cupti:
    """Bytes that pages really moved, from CUPTI's unified-memory counters.

    ``start`` registers callbacks and enables the counters, ``drain`` gives page events, ``close`` flushes and disables; what
    was flushed is drained once more after it. The callbacks, on a thread of CUPTI's own, only copy records.
    """

    _registered: ClassVar[list[Cupti]] = []
    """Kept for good: CUPTI calls what was registered, and gives no sign of its last call."""

    def __init__(self, path: str) -> None:
        self._lib = ctypes.CDLL(path)
        self._lock = threading.Lock()
        self._records: list[Migration] = []
        self._faults: list[str] = []
        self._buffers: dict[int, Any] = {}
        self._shift = 0
        self._running = False
        self.counters: tuple[str, ...] = ()
        """What is counted, once it has started."""
        request = ctypes.CFUNCTYPE(
            None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
        )
        completed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
        self._callbacks = request(self._requested), completed(self._completed)

    def start(self, device: int = 0) -> None:
        """Begins to collect; raises ``CuptiError`` with CUPTI's answer where it cannot."""
        now = ctypes.c_uint64()
        self._call("cuptiGetTimestamp", ctypes.byref(now))  # without a clock no record could be set beside a step
        self._shift = time.monotonic_ns() - int(now.value)
        self._registered.append(self)
        self._call("cuptiActivityRegisterCallbacks", *self._callbacks)
        self._configure(device)
        self._call("cuptiActivityEnable", ctypes.c_int(_KIND_UNIFIED_MEMORY))
        self._running = True
        try:
            self._call("cuptiActivityFlushPeriod", ctypes.c_uint32(200))
        except CuptiError:
            self.close()
            raise

    def _configure(self, device: int) -> None:
        for kinds in _WIDEST_FIRST:
            wanted = (_CounterConfig * len(kinds))(*(_CounterConfig(_PROCESS_ALL_DEVICES, kind, device, 1) for kind in kinds))
            try:
                self._call("cuptiActivityConfigureUnifiedMemoryCounter", wanted, ctypes.c_uint32(len(kinds)))
            except CuptiError:
                if kinds == _WIDEST_FIRST[-1]:
                    raise
            else:
                self.counters = tuple(_DIRECTIONS[kind] for kind in kinds)
                return

    def clock(self) -> int | None:
        """CUPTI's own time in nanoseconds."""
        now = ctypes.c_uint64()
        return int(now.value) if self._lib.cuptiGetTimestamp(ctypes.byref(now)) == 0 else None

    def drain(self) -> list[Event]:
        """Page events of the records that CUPTI has completed, and a log event for each of its faults."""
        with self._lock:
            records, self._records = self._records, []
            faults, self._faults = self._faults, []
        logs: list[Event] = [{"k": "log", "level": "warning", "text": text} for text in faults]
        return page_events(records, self._shift) + logs

    def close(self) -> None:
        """Flushes what is still under way and stops collecting; twice is fine. An answer that is no success becomes a log."""
        if self._running:
            self._running = False
            for name, argument in (
                ("cuptiActivityFlushAll", ctypes.c_uint32(1)),
                ("cuptiActivityDisable", ctypes.c_int(_KIND_UNIFIED_MEMORY)),
            ):
                try:
                    self._call(name, argument)
                except CuptiError as error:
                    self._fault(f"{error}: the last paging records may be missing.")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code != 0:
            raise CuptiError(f"{name} answered {self._named(code)}")

    def _named(self, code: int) -> str:
        text = ctypes.c_char_p()
        found = self._lib.cuptiGetResultString(ctypes.c_int(code), ctypes.byref(text)) == 0 and text.value
        name = found.decode("ascii", "replace") if found else f"code {code}"
        return f"{name} ({_REASONS[code]})" if code in _REASONS else name

    def _fault(self, text: str) -> None:
        with self._lock:
            self._faults.append(text)

    def _requested(self, buffer: Any, size: Any, records: Any) -> None:
        memory = ctypes.create_string_buffer(_BUFFER + 8)
        address = (ctypes.addressof(memory) + 7) & ~7  # CUPTI wants eight-byte alignment
        self._buffers[address] = memory
        buffer[0], size[0], records[0] = address, _BUFFER, 0

    def _completed(self, context: Any, stream: int, buffer: int, _size: int, valid: int) -> None:
        found = self.walk(buffer, valid)
        with self._lock:
            self._records += found
        self._buffers.pop(buffer, None)
        dropped = ctypes.c_size_t()
        arguments = ctypes.c_void_p(context), ctypes.c_uint32(stream), ctypes.byref(dropped)
        if self._lib.cuptiActivityGetNumDroppedRecords(*arguments) == 0 and dropped.value:
            self._fault(f"CUPTI dropped {dropped.value:,} records: the paging shown is too low.")

    def walk(self, buffer: int, valid: int) -> list[Migration]:
        """The unified-memory records in ``valid`` bytes at the address ``buffer``; libcupti itself knows how long each is."""
        found: list[Migration] = []
        record = ctypes.c_void_p()
        arguments = ctypes.c_void_p(buffer), ctypes.c_size_t(valid), ctypes.byref(record)
        while (code := self._lib.cuptiActivityGetNextRecord(*arguments)) == 0:
            if record.value is not None and (parsed := parse_record(ctypes.string_at(record.value, _RECORD.size))):
                found.append(parsed)
        if code != _END_OF_BUFFER:
            self._fault(f"cuptiActivityGetNextRecord answered {self._named(code)}: the rest of a buffer was not read.")
        return found


def open_cupti(cuda: bool, path: str | None = None) -> tuple[Cupti | None, Capability]:
    """The collector, started, or the reason why there is none; ``path`` is that of the library, if not the one loaded."""
    if not cuda:
        return None, Capability(False, "no CUDA device")
    path = path or loaded_cupti()
    if path is None:
        return None, Capability(False, "torch has loaded no libcupti")
    try:
        collector = Cupti(path)
        collector.start()
    except (OSError, AttributeError, CuptiError) as error:
        return None, Capability(False, str(error))
    return collector, Capability(True, f"CUPTI unified-memory counters: {', '.join(collector.counters)}")
