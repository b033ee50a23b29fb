"""Whatever ends a run has a name, says where it happened, and what to do."""

from __future__ import annotations

import errno
import os

import pytest

from workbench import DataError
from workbench.training.endings import Diverged, ending_of


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (MemoryError(), "out_of_memory", "This machine ran out of memory at step 7, with a batch whose longest row has 480 tokens"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory",
         "tried to allocate 9 bytes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory", "The GPU ran out of memory at step 7"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk_full", "The disk is full"),
        (DataError("there is no such file.", where="rows.csv"), "data", "rows.csv: there is no such file."),
        (Diverged("The loss is no longer a number."), "nan_loss", "no longer a number"),
        (KeyError("x"), "error", "KeyError: 'x'"),
    ],
)  # fmt: skip
def test_endings(error: Exception, kind: str, told: str) -> None:
    ending = ending_of(error, {"step": 7, "longest": 480})
    assert ending.kind == kind
    assert told in ending.message
    assert ending.remedy or isinstance(error, DataError | Diverged)  # those bring their own
