"""Out of memory: what was asked for, what there was, and the cheapest change that would have fitted by the forecast.

Covers the bytes in the messages of torch and numpy, what a process may still take on this machine, and the advice. Does not
decide what is an out-of-memory error (``endings`` does). Imports no torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from workbench.text import listed, memory_size

if TYPE_CHECKING:
    from workbench.memory.footprint import Plan
    from workbench.memory.ways import Change
    from workbench.sources import Source

_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, **{f"{unit}IB": 1 << 10 * (i + 1) for i, unit in enumerate("KMGTPE")}}
_CGROUP = Path("/sys/fs/cgroup")


def asked_bytes(text: str) -> int | None:
    """The allocation that failed, from the error's text; None where it does not say.

    >>> asked_bytes("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.77 GiB")
    2684354560
    """
    found = _ASKED.search(text)
    if found is None:
        return None
    size, unit = found.groups()
    return int(float(size) * _UNITS.get(unit.upper(), 1))


def headroom(cgroup: Path = _CGROUP) -> int:
    """Bytes that this process may still take: on the machine, in its container, and in its address space."""
    left = [int(psutil.virtual_memory().available)]
    with contextlib.suppress(OSError, ValueError):  # version 2; "max" is no limit
        limit, used = (int((cgroup / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        left.append(limit - used)
    with contextlib.suppress(ImportError, OSError, ValueError, psutil.Error):
        import resource

        for kind, field in ((resource.RLIMIT_AS, "vms"), (resource.RLIMIT_DATA, "data")):
            if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                left.append(limit - getattr(psutil.Process().memory_info(), field, 0))
    return max(min(left), 0)


@dataclass(frozen=True)
class Shortage:
    """A batch that did not fit."""

    what: str
    """The batch in words, as the beginning of a sentence."""
    asked: int | None
    """Bytes that were asked for and not given; None where that is not known."""
    forecast: int
    """What the batch was forecast to take."""
    usable: int | None
    """What there was for it; None where that is not known."""
    changes: tuple[Change, ...] | None
    """The cheapest that would have fitted; None where none would."""
    accumulate: int = 1
    """Batches a step gathers as it is."""
    rows: int = 1
    """Rows in a batch as it is."""

    @property
    def summary(self) -> str:
        """Forecast beside what there was."""
        there = f"; there were {memory_size(self.usable)} for it" if self.usable is not None else ""
        return f"{self.what} is forecast to take {memory_size(self.forecast)}{there}."

    @property
    def remedy(self) -> str:
        """The fields to change and their new values."""
        if self.changes is None:
            return (
                "By the forecast no batch, length, method or optimizer would have fitted: "
                "take a smaller model, or a machine with more memory."
            )
        fields: dict[str, Any] = {}
        for change in self.changes:
            fields |= change.fields
        if rows := fields.get("per_device_train_batch_size"):
            fields["gradient_accumulation_steps"] = self.accumulate * -(-self.rows // rows)
        saved = memory_size(sum(change.saved for change in self.changes))
        cheapest = listed([f"{name}={value!r}" for name, value in fields.items()])
        return f"The cheapest change that would have fitted by the forecast: {cheapest}, which saves {saved}."


def shortage(
    src: Source, plan: Plan, where: Mapping[str, Any], asked: int | None, usable: int | None, accumulate: int = 1
) -> Shortage:
    """The shortage of the batch in ``where`` (``rows``, ``longest``; a full one without them) that did not fit.

    After the change the forecast leaves a tenth of what there was, or of what the batch was forecast to take where that is
    less: then the forecast was too low, by an unknown amount. It is also lower by what was asked for, at least.
    """
    from workbench.memory.forecast import forecast
    from workbench.memory.ways import cheapest

    rows, longest = where.get("rows"), where.get("longest")
    what = "A full batch"
    if rows and longest:
        what = "Such a batch"
        plan = replace(plan, per_device_train_batch_size=rows, max_length=longest)
    total = forecast(src, plan, plan.device).total
    most = min(total - (asked or 0), 9 * min(total, total if usable is None else usable) // 10)
    changes = cheapest(src, plan, most, plan.device)
    return Shortage(what, asked, total, usable, changes, accumulate, plan.per_device_train_batch_size)
