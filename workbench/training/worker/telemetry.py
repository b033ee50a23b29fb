"""Memory and faults, sampled several times a second by a thread of the worker.

Covers the CUDA allocator's and NVML's figures where there is a GPU, clock anchors, and the thread that records them beside the
host's counters (``host``); versions, and the libraries' warnings as events. With each sample it also looks for what must be
noticed while the main thread is busy: a stop before training, a supervisor that is gone. Does not interpret. Imports torch only
if the worker has already done so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from workbench.training.events import Event, EventWriter
from workbench.training.host import host_counters

INTERVAL = 0.125
"""Seconds between samples (8 a second); the real gaps are those between the events' ``t``."""
_ANCHOR_EVERY = 30.0
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")


class Collector(Protocol):
    """What gathers events between two samples, such as page faults."""

    def drain(self) -> list[Event]:
        """Events since the last call."""


class Nvml:
    """One device's memory, all processes together, as NVML reports it through nvidia-ml-py."""

    def __init__(self, uuid: str) -> None:
        self.why = ""
        """Why it does not answer; "" as long as it does."""
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        except Exception as error:  # any answer of a driver or of its absence
            self.why = f"NVML does not answer ({error})"
        else:
            self.memory()

    def memory(self) -> tuple[int, int] | None:
        """Bytes used and in all; None once NVML has refused to say: it is not asked again."""
        if self.why:
            return None
        try:
            import pynvml

            device = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        except Exception as error:  # the device may be lost while a run goes on
            self.why = f"NVML does not tell the device's memory ({error})"
            return None
        return int(device.used), int(device.total)

    def process(self) -> int | None:
        """Bytes of this process on the device; None where NVML does not report it, as in some containers."""
        if self.why:
            return None
        try:
            import pynvml

            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except Exception:  # not every driver reports it; the device's figure remains
            return None
        return next((int(p.usedGpuMemory) for p in running if p.pid == os.getpid() and p.usedGpuMemory is not None), None)


class CudaMemory:
    """One GPU's memory: the allocator's figures, and the device's by NVML where that answers."""

    def __init__(self) -> None:
        torch = sys.modules["torch"]
        self._nvml = (
            Nvml(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)) if torch.cuda.is_available() else None
        )

    @property
    def why(self) -> str:
        """Why NVML does not work; "" where it does."""
        return self._nvml.why if self._nvml else "no CUDA device"

    def process(self) -> int | None:
        """Bytes of this process on the device by NVML; None where it does not report it."""
        return self._nvml.process() if self._nvml else None

    def counters(self, managed: int) -> dict[str, int | None]:
        """The fields of a sample on a GPU, in bytes; ``allocated_peak`` is the peak since the step began."""
        torch = sys.modules["torch"]
        stats = torch.cuda.memory_stats()
        used, total = (self._nvml and self._nvml.memory()) or (None, None)
        return {
            "allocated": stats.get("allocated_bytes.all.current", 0),
            "allocated_peak": stats.get("allocated_bytes.all.peak", 0),
            "reserved": stats.get("reserved_bytes.all.current", 0),
            "inactive_split": stats.get("inactive_split_bytes.all.current", 0),
            "retries": stats.get("num_alloc_retries", 0),
            "ooms": stats.get("num_ooms", 0),
            "nvml_used": used,
            "nvml_total": total,
            "managed": managed,
        }


def anchors(cupti: Callable[[], int | None] | None = None) -> dict[str, int | None]:
    """The same moment on the clocks in use: monotonic and wall nanoseconds, and CUPTI's where it runs."""
    return {"monotonic_ns": time.monotonic_ns(), "time_ns": time.time_ns(), "cupti_ns": cupti() if cupti else None}


class Sampler:
    """A thread that records samples, and what its collectors gathered, every ``INTERVAL`` seconds until it is closed."""

    def __init__(self, writer: EventWriter, watch: Callable[[], None]) -> None:
        self._writer, self._watch = writer, watch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="workbench-sampler", daemon=True)
        self.collectors: Sequence[Collector] = ()
        self.gpu: CudaMemory | None = None
        self.managed: Callable[[], int] = lambda: 0
        self.cupti_clock: Callable[[], int | None] | None = None

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def _loop(self) -> None:
        next_anchor = time.monotonic() + _ANCHOR_EVERY
        while not self._stop.wait(INTERVAL):
            self._watch()
            with contextlib.suppress(OSError, MemoryError):  # the main thread meets them, too, and reports it
                self.sample()
                if time.monotonic() >= next_anchor:
                    next_anchor += _ANCHOR_EVERY
                    self._writer.emit("anchor", anchors=anchors(self.cupti_clock))

    def sample(self) -> None:
        """Records one sample and what the collectors have, in one write."""
        event: Event = {"k": "sample", "source": "worker", **host_counters()}
        if self.gpu is not None:
            event |= self.gpu.counters(self.managed())
        self._writer.emit_all([event, *(e for collector in self.collectors for e in collector.drain())])

    def close(self) -> None:
        """Ends the thread, with a last sample that takes in what the collectors still had; twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
            with contextlib.suppress(OSError, MemoryError):
                self.sample()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that train."""
    found = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class LogEvents(logging.Handler):
    """Warnings of the libraries, as log events."""

    def __init__(self, writer: EventWriter) -> None:
        super().__init__(logging.WARNING)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Records one warning."""
        with contextlib.suppress(OSError):
            self._writer.emit("log", level=record.levelname.lower(), text=record.getMessage()[:2000])
