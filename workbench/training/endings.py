"""How a worker ends: exit codes, and the named ending that belongs to an exception.

Covers the translation of an exception into kind, message and remedy. Does not decide the run's state: the supervisor does, from
the exit code and the last error event. Imports no torch.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError, DataError, ModelError, WorkbenchError

FINISHED, FAILED, STOPPED, PAUSED = 0, 1, 10, 11
STATE_OF_CODE = {FINISHED: "finished", STOPPED: "stopped", PAUSED: "paused"}


class Diverged(WorkbenchError):
    """The loss is no longer a number."""


class OtherEnding(Exception):
    """Raised by SIGTERM in the worker: save what there is, then end."""


@dataclass(frozen=True)
class Ending:
    """Why a run failed."""

    kind: str
    message: str
    remedy: str


_KIND_OF_ERROR = ((Diverged, "nan_loss"), (DataError, "data"), (ModelError, "model"), (ConfigError, "config"))


def ending_of(error: BaseException, where: dict[str, Any]) -> Ending:
    """The named ending of an exception; ``where`` says what was going on (``step``, ``longest``, ``device``)."""
    if isinstance(error, WorkbenchError):
        kind = next((kind for cls, kind in _KIND_OF_ERROR if isinstance(error, cls)), "error")
        return Ending(kind, f"{error.where}: {error.what}" if error.where else error.what, error.remedy)
    text = str(error)
    if _out_of_memory(error, text):
        at = f" at step {where['step']}" if where.get("step") is not None else ""
        batch = f", with a batch whose longest row has {where['longest']} tokens" if where.get("longest") else ""
        what = "The GPU" if "CUDA" in text or type(error).__name__ == "OutOfMemoryError" else "This machine"
        return Ending(
            "out_of_memory",
            f"{what} ran out of memory{at}{batch}. {text.splitlines()[0] if text else ''}".strip(),
            "Lower per_device_train_batch_size (raise gradient_accumulation_steps instead) or max_length, "
            "or turn gradient_checkpointing on.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Ending(
            "disk_full",
            f"The disk is full ({error.strerror}).",
            "Free some space, or raise save_steps; then resume: complete checkpoints are intact.",
        )
    return Ending("error", f"{type(error).__name__}: {text}", "The whole traceback is in log.txt.")


def _out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    low = text.lower()
    return isinstance(error, OSError | RuntimeError) and any(
        sign in low for sign in ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    )
