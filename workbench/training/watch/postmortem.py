"""How an attempt ended, as the supervisor finds once its worker is gone.

Covers the final state, message and remedy, from the exit code, the events that the worker left, and what was seen from outside;
where the kernel killed the worker for want of memory, also the batch and the change that would have fitted. What an exception
means is ``endings``' part, in the worker while it lives. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from typing import Any

from workbench.text import counted
from workbench.training.config import TrainConfig
from workbench.training.events import Event, EventReader
from workbench.training.folder import RunFolder
from workbench.training.watch import endings
from workbench.training.watch.outside import Outside
from workbench.training.watch.shortage import Shortage, shortage

_LESS_MEMORY = "Lower per_device_train_batch_size or max_length, or turn gradient_checkpointing on."


def status_of(folder: RunFolder, attempt: int, code: int, outside: Outside) -> dict[str, Any]:
    """The final status's fields (``state``, ``kind``, ``message``, ``remedy``, ``exit_code``)."""
    events = [event for event in EventReader(folder.root, every_rank=True).poll() if event.get("attempt") == attempt]
    error = next((event for event in events if event["k"] == "error"), {})  # the first rank's: the others fail because of it
    done = max((event["n"] for event in events if event["k"] == "step"), default=0)
    steps = counted(done, "step")
    state, kind, remedy = endings.STATE_OF_CODE.get(code, "failed"), "", ""
    early = next((event for event in events if event["k"] == "early_stop"), None)
    if state == "finished" and early is not None:
        message = (
            f"Finished early, after {steps}: the held-out loss did not fall in {counted(early['patience'], 'evaluation')}, "
            "which was all the patience that early_stopping_patience gave it."
        )
    elif state == "finished":
        message = f"Finished after {steps}."
    elif state == "stopped":
        message = f"Stopped after {steps}; the adapter is saved." if done else "Stopped before the first step."
    elif state == "paused":
        message, remedy = f"Paused after {steps}.", "Resume continues from the checkpoint."
    elif code < 0 and folder.asked("stop"):
        state, message = "stopped", f"Stopped by {_signal_name(code)} after {steps}: the worker did not end in time."
        remedy = "The adapter is that of the last checkpoint, if there is one."
    elif code == -signal.SIGKILL and outside.killed_for_memory():
        kind, message, remedy = "out_of_memory", *_killed_for_memory(folder, events, done, outside)
    elif code < 0:
        state, kind = "killed", "killed"
        guess = "killed, possibly out of memory" if code == -signal.SIGKILL else f"killed by {_signal_name(code)}"
        message = f"The worker was {guess}, after {steps}.{outside.last_words()}"
        remedy = f"Resume continues from the last checkpoint. If memory is short: {_LESS_MEMORY}"
    elif error:
        kind, message, remedy = error.get("kind", "error"), error.get("message", ""), error.get("remedy", "")
    elif mute := endings.ending_of_code(code):
        kind, message, remedy = mute.kind, mute.message, mute.remedy
    else:
        kind, message, remedy = "error", f"The worker ended with exit code {code}.", "Its last words are in log.txt."
    if best := folder.best:
        message += f" The checkpoint of the lowest held-out loss is {best.relative_to(folder.root)}."
    return {"state": state, "kind": kind, "message": message, "remedy": remedy, "exit_code": code}


def _killed_for_memory(folder: RunFolder, events: list[Event], done: int, outside: Outside) -> tuple[str, str]:
    """The same message as where the worker itself ran out of memory, and what killed it."""
    where: dict[str, Any] = {}
    for event in events:  # what it was doing
        if event["k"] == "phase":
            where["phase"] = event["name"] if event["edge"] == "begin" else None
        elif event["k"] == "batch":
            where |= {"step": done + 1, "rows": event["rows"], "longest": event["longest"]}
        elif event["k"] == "step":  # over, and its batches with it
            where = {"phase": where.get("phase"), "step": done + 1}

    def find(where: Mapping[str, Any], asked: int | None) -> Shortage | None:
        return _shortage(folder, events, where, outside)

    ending = endings.ending_of(MemoryError(), where, find)
    message = f"{ending.message} The kernel killed the worker, for want of memory of the machine's or its container's."
    return message + outside.last_words(), f"{ending.remedy} Resume continues from the last checkpoint."


def _shortage(folder: RunFolder, events: list[Event], where: Mapping[str, Any], outside: Outside) -> Shortage | None:
    """By the forecast; None where the batch was on a GPU: then the host's memory is short of something else."""
    from workbench.memory.footprint import Plan
    from workbench.sources import open_model

    devices = {event["device"] for event in events if event["k"] == "forecast"}
    libraries = [event["rss"] for event in events if event["k"] == "memory" and event["moment"] == "libraries"]
    if devices != {"cpu"} or not libraries:
        return None
    config = TrainConfig.from_dict(json.loads(folder.config.read_text("utf-8")))
    plan = Plan.of(config, "cpu")
    usable = outside.usable() - (libraries[0] or 0)
    return shortage(
        open_model(config.model, config.model_revision), plan, where, None, usable, config.gradient_accumulation_steps
    )


def _signal_name(code: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
