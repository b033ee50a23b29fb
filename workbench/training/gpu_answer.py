"""What the steps of ``make gpu-check`` share: what one may say, a folder for its time, and the balloon.

Torch is imported when the balloon is blown up, and not before.
"""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
MIB = 1 << 20


class CheckFailed(Exception):
    """Something is not as it should be."""


def expect(condition: object, told: str) -> None:
    """Raises ``CheckFailed`` if the condition does not hold."""
    if not condition:
        raise CheckFailed(told)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the time of a step."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def chunks(total: int, count: int = 64) -> Iterator[int]:
    """``total`` bytes in pieces of at least 64 MiB, the last one smaller: one large piece could fail whole."""
    size = max(64 * MIB, total // count)
    for at in range(0, total, size):
        yield min(size, total - at)


def blow_up(facts: Facts, beyond: int) -> list[Any]:
    """Tensors in all the memory that is free on the device and in ``beyond`` bytes more, which only eviction can make room for.

    They last as long as the list does. Where the device has no more, the balloon stays as large as it is, and ``facts`` say so.
    """
    import torch

    held: list[Any] = []
    try:
        for size in chunks(torch.cuda.mem_get_info()[0] + beyond):
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError as error:
        facts["the balloon stopped"] = str(error).splitlines()[0]
    facts["balloon"] = sum(t.nbytes for t in held)
    return held


def answer(step: Callable[[Facts], None]) -> dict[str, Any]:
    """What a step found, and whether all of it is as it should be."""
    facts: Facts = {}
    try:
        step(facts)
    except CheckFailed as failure:
        return {"passed": False, "told": str(failure), "facts": facts}
    except Exception as error:
        traceback.print_exc()
        return {"passed": False, "told": f"{type(error).__name__}: {error}", "facts": facts}
    return {"passed": True, "told": "", "facts": facts}
