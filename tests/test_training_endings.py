"""Whatever ends a run has a name, says where it happened, and what to do."""

from __future__ import annotations

import errno
import os

import pytest

from workbench import DataError
from workbench.training.endings import Diverged, ending_of

NO_CPU_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
NO_GPU_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (MemoryError(), "out_of_memory", "out of memory at step 7, with a batch whose longest row has 480 tokens"),
        (NO_CPU_MEMORY, "out_of_memory", "This machine ran out of memory"),
        (NO_GPU_MEMORY, "out_of_memory", "The GPU ran out of memory"),
        (FULL, "disk_full", "The disk is full"),
        (DataError("there is no such file.", where="rows.csv"), "data", "rows.csv: there is no such file."),
        (Diverged("The loss is no longer a number."), "nan_loss", "no longer a number"),
        (KeyError("x"), "error", "KeyError: 'x'"),
    ],
)
def test_endings(error: Exception, kind: str, told: str) -> None:
    ending = ending_of(error, {"step": 7, "longest": 480})
    assert ending.kind == kind
    assert told in ending.message
    assert ending.remedy or isinstance(error, DataError | Diverged)  # those bring their own
