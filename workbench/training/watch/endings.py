"""How a worker ends: exit codes, and the named ending that belongs to an exception.

Covers the translation of an exception into kind, message and remedy, and of an exit code where there is nothing else. Does
not decide the run's state: the supervisor does, from the exit code and the last error event. Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError, DataError, ModelError, WorkbenchError
from workbench.text import counted, memory_size
from workbench.training.fingerprints import Changed
from workbench.training.watch.shortage import Shortage, asked_bytes

FINISHED, FAILED, STOPPED, PAUSED = 0, 1, 10, 11
STATE_OF_CODE = {FINISHED: "finished", STOPPED: "stopped", PAUSED: "paused"}
Find = Callable[[Mapping[str, Any], int | None], Shortage | None]
_CODES = {"out_of_memory": 20, "disk_full": 21}
"""Failures after which the worker may be unable to write anything: the exit code alone names them."""


class Diverged(WorkbenchError):
    """The loss is no longer a number."""


class Overflowed(Diverged):
    """Numbers are larger than float16 holds."""


class OtherEnding(BaseException):
    """Raised by SIGTERM in the worker, which then saves what there is and ends. No library takes it for an error of its own."""


@dataclass(frozen=True)
class Ending:
    """Why a run failed."""

    kind: str
    message: str
    remedy: str


_STEPPING = (None, "train", "first_forward")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KIND_OF_ERROR = (
    (Overflowed, "overflow"),
    (Diverged, "nan_loss"),
    (DataError, "data"),
    (ModelError, "model"),
    (ConfigError, "config"),
    (Changed, "changed"),
)


def code_of(ending: Ending) -> int:
    """The exit code of a failure."""
    return _CODES.get(ending.kind, FAILED)


def ending_of_code(code: int) -> Ending | None:
    """The failure that an exit code stands for, where the worker could write nothing; None for any other code."""
    known: dict[int, BaseException] = {
        _CODES["out_of_memory"]: MemoryError(),
        _CODES["disk_full"]: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    }
    return ending_of(known[code], {}) if code in known else None


def ending_of(error: BaseException, where: Mapping[str, Any], find: Find = lambda where, asked: None) -> Ending:
    """The named ending of an exception; ``where`` says what was going on (``phase``, ``step``, ``rows``, ``longest``).

    ``find`` is called where memory ran out, with what of that is true of a batch and the bytes that were asked for, and returns
    what would have fitted.
    """
    if full := _disk_full(error):
        return Ending(
            "disk_full",
            f"The disk is full ({full}).",
            "Free some space, or raise save_steps; then resume: complete checkpoints are intact.",
        )
    if isinstance(error, WorkbenchError):
        kind = next((kind for cls, kind in _KIND_OF_ERROR if isinstance(error, cls)), "error")
        return Ending(kind, f"{error.where}: {error.what}" if error.where else error.what, error.remedy)
    text = str(error)
    if _out_of_memory(error, text):
        return _no_memory(error, text, where, find)
    return Ending("error", f"{type(error).__name__}: {text}", "The whole traceback is in log.txt.")


def _no_memory(error: BaseException, text: str, where: Mapping[str, Any], find: Find) -> Ending:
    """Which step and batch, what was asked for, what the batch was forecast to take, and the change that would have fitted."""
    asked = asked_bytes(text)
    if where.get("phase") not in _STEPPING:  # the last step is over
        where = {"phase": where["phase"]}
    at = f" in the phase {where['phase']}" if where.get("phase") else ""
    if where.get("step") is not None:
        at = f" at step {where['step']}"
    batch = f", with a batch whose longest row has {where['longest']:,} tokens" if where.get("longest") else ""
    if batch and where.get("rows"):
        batch += f" ({counted(where['rows'], 'row')})"
    what = "The GPU" if "CUDA" in text or type(error).__name__ == "OutOfMemoryError" else "This machine"
    sentences = [f"{what} ran out of memory{at}{batch}."]
    if asked is not None:
        sentences.append(f"{memory_size(asked)} more were asked for.")
    found = None
    with contextlib.suppress(Exception):  # there may be no memory to find out, and the ending must be reported all the same
        found = find(where, asked)
    if found is None:
        return Ending(
            "out_of_memory",
            " ".join(sentences),
            "Lower per_device_train_batch_size (raise gradient_accumulation_steps instead) or max_length, "
            "or turn gradient_checkpointing on.",
        )
    return Ending("out_of_memory", " ".join([*sentences, found.summary]), found.remedy)


def _disk_full(error: BaseException | None) -> str:
    """What the system, or a library in its stead, says of a full disk, here or in the error's causes; "" where it is not that.

    safetensors keeps the system's words, torch only its own position in the file.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.strerror or ""
        text = str(error)
        for number in _FULL:
            if f"(os error {number})" in text:
                return os.strerror(number)
        if isinstance(error, RuntimeError) and ("PytorchStreamWriter failed" in text or "unexpected pos" in text):
            return "a file could not be written to its end"
        error = error.__cause__
    return ""


def _out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    low = text.lower()
    return isinstance(error, OSError | RuntimeError) and any(
        sign in low
        for sign in ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
    )
