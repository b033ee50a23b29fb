"""The GPUs to judge a forecast against: well-known ones by name, and the one in this machine.

Asks the driver through NVML for the latter, which takes no CUDA context.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from workbench.errors import ConfigError
from workbench.given import described, is_a, nearest, spelling
from workbench.memory.learnt import learnt
from workbench.show import Line, Record, ShownMapping
from workbench.text import memory_size

GIB = 2**30
THIS_MACHINE = "the GPU of this machine"
_WORDS = re.compile(r"nvidia|tesla|geforce|rtx|\bgpu\b|pcie|sxm\d?|hbm\d?e?")
"""Parts of a GPU's name that may be left out: ``T4``, ``Tesla T4``, ``NVIDIA GeForce RTX 4090``, ``A100-SXM4-40GB``."""

T = TypeVar("T")


_MIB = 2**20


@dataclass(frozen=True, repr=False)
class Gpu(Record):
    """A GPU's memory. ``usable`` is about what CUDA reports as the total, which is below the name's round number."""

    name: str
    usable: int
    context: int = 500 * _MIB
    """Bytes of the CUDA context, driver and libraries."""
    how: str = "driver and libraries, 100 to 650 MiB by GPU: not known of this one"
    """How ``context`` is known."""
    slack: float | None = None
    """What the allocator reserved beyond its peak in the last run on it, as a share of that; None: not measured."""

    def _line_(self) -> Line:
        return {"GPU": self.name, "usable memory": memory_size(self.usable)}


def _gpu(name: str, gib: float, context: int, how: str = "between a T4's and an H100's by its SMs") -> Gpu:
    return Gpu(name, int(gib * GIB), context * _MIB, f"driver and libraries, {how}")


GPUS: Mapping[str, Gpu] = ShownMapping(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("RTX 3060 12 GB", 11.7, 120),
            _gpu("T4 16 GB", 14.56, 141, "as steps on a T4 had it"),
            _gpu("L4 24 GB", 22.1, 240),
            _gpu("RTX 4090 24 GB", 23.5, 540),
            _gpu("A100 40 GB", 39.3, 450),
            _gpu("A100 80 GB", 79.1, 450),
            _gpu("H100 80 GB", 79.1, 650, "as an H100 had it"),
        )
    },
    "GPUs known by name",
    "GPU",
)
"""GPUs to judge against, by name; other programs' memory on the same GPU is not counted."""
UNKNOWN = GPUS["T4 16 GB"]
"""Whose context a forecast has that no GPU was named for."""


def devices() -> int:
    """How many NVIDIA GPUs the driver knows; 0 where it does not answer."""
    return _asked(lambda nvml: int(nvml.nvmlDeviceGetCount()), 0)


def names() -> tuple[str, ...]:
    """The names of all NVIDIA GPUs, in NVML's order; none where the driver does not answer."""
    return _asked(_all_names, ())


def _all_names(nvml: Any) -> tuple[str, ...]:
    every = range(nvml.nvmlDeviceGetCount())
    return tuple(str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i))) for i in every)


def present() -> Gpu | None:
    """The first GPU of this machine, in NVML's order, with what runs on it have measured up to now.

    None where the driver knows none or does not answer.
    """
    if (first := _first()) is None:
        return None
    name, usable = first
    own = Gpu(f"{name}, in this machine", usable)
    if (seen := learnt(name)) is not None:
        return replace(own, context=seen.context, how=f"measured here by the run {seen.run}", slack=seen.slack)
    like = next((gpu for gpu in GPUS.values() if _plain(_model(gpu.name)) in _plain(name).split()), None)
    return replace(own, context=like.context, how=like.how) if like else own


@functools.cache
def capability() -> tuple[int, int] | None:
    """The compute capability of the first GPU, as (7, 5) of a T4; None where the driver does not answer."""
    return _asked(_capability, None)


def _capability(nvml: Any) -> tuple[int, int] | None:
    if not nvml.nvmlDeviceGetCount():
        return None
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByIndex(0))
    return int(major), int(minor)


@functools.cache
def _first() -> tuple[str, int] | None:
    """The name of the first GPU, and the bytes that CUDA can use of it."""
    return _asked(_name_and_usable, None)


def _name_and_usable(nvml: Any) -> tuple[str, int] | None:
    if not nvml.nvmlDeviceGetCount():
        return None
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
    return str(nvml.nvmlDeviceGetName(device)), int(memory.total - memory.reserved)


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


def find(gpu: Gpu | str) -> Gpu:
    """A GPU by its name: ``T4``, ``nvidia t4``, ``A100 40 GB``, ``THIS_MACHINE``; a ``Gpu`` is returned as it is.

    Case, vendor and form factor are not needed, nor is the memory where that leaves one. Raises ConfigError with those known.
    """
    if isinstance(gpu, Gpu):
        return gpu
    gpus = known()
    remedy = f"Choose one of: {', '.join(gpus)}."
    if not is_a(gpu, str):
        what = f"{described(gpu)} is no GPU."
        raise ConfigError([what], where="gpu", remedy=f"{remedy} Or give a Gpu of its own: wb.Gpu(name, usable bytes).")
    if gpu in gpus:
        return gpus[gpu]
    if spelling(gpu) == spelling(THIS_MACHINE):
        raise ConfigError(["This machine has no NVIDIA GPU that answers."], where="gpu", remedy=remedy)
    meant = [name for name in GPUS if _plain(gpu) in (_plain(name), _plain(_model(name)))]
    if len(meant) == 1:
        return GPUS[meant[0]]
    if meant:
        raise ConfigError([f"{gpu!r} may be {' or '.join(meant)}."], where="gpu", remedy="Name its memory too.")
    near = nearest(gpu, [*gpus, *map(_model, GPUS)])
    raise ConfigError([f"{gpu!r} is no GPU known here."], where="gpu", remedy=f"{remedy} {near}".strip())


def _model(name: str) -> str:
    """A name without its memory: ``A100 40 GB`` → ``A100``."""
    return re.sub(r" \d+ GB$", "", name)


def _plain(name: str) -> str:
    return spelling(_WORDS.sub(" ", name.casefold()))
