"""The GPUs to judge a forecast against: well-known ones by name, and the one in this machine.

Asks the driver through NVML for the latter, which takes no CUDA context.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from workbench.errors import ConfigError

GIB = 2**30
THIS_MACHINE = "the GPU of this machine"

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory. ``usable`` is about what CUDA reports as the total, which is below the name's round number."""

    name: str
    usable: int


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("RTX 3060 12 GB", int(11.7 * GIB)),
            Gpu("T4 16 GB", int(14.7 * GIB)),
            Gpu("L4 24 GB", int(22.1 * GIB)),
            Gpu("RTX 4090 24 GB", int(23.5 * GIB)),
            Gpu("A100 40 GB", int(39.3 * GIB)),
            Gpu("A100 80 GB", int(79.1 * GIB)),
            Gpu("H100 80 GB", int(79.1 * GIB)),
        )
    }
)
"""GPUs to judge against, by name; other programs' memory on the same GPU is not counted."""


def devices() -> int:
    """How many NVIDIA GPUs the driver knows; 0 where it does not answer."""
    return _asked(lambda nvml: int(nvml.nvmlDeviceGetCount()), 0)


@functools.cache
def present() -> Gpu | None:
    """The first GPU of this machine, in NVML's order; None where the driver knows none or does not answer."""
    return _asked(_first, None)


def _first(nvml: Any) -> Gpu | None:
    if not nvml.nvmlDeviceGetCount():
        return None
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
    return Gpu(f"{nvml.nvmlDeviceGetName(device)}, in this machine", int(memory.total - memory.reserved))


def _asked(question: Callable[[Any], T], otherwise: T) -> T:
    """What NVML answers, or else ``otherwise``."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return question(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return otherwise


def known() -> Mapping[str, Gpu]:
    """``GPUS``, after ``THIS_MACHINE`` where it has one."""
    own = present()
    return GPUS if own is None else MappingProxyType({THIS_MACHINE: own, **GPUS})


def find(name: str) -> Gpu:
    """A GPU by its name in ``GPUS``, or ``THIS_MACHINE``; ConfigError where there is none."""
    gpus = known()
    if name in gpus:
        return gpus[name]
    what = "This machine has no NVIDIA GPU that answers." if name == THIS_MACHINE else f"{name!r} is no GPU known here."
    raise ConfigError([what], where="gpu", remedy=f"Choose one of: {', '.join(gpus)}.")
