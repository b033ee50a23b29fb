"""What a reader does with a training panel, and waiting for what it comes to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import workbench as wb
from widgets import TrainingCell

SECONDS = 180
SHORT = wb.TrainConfig(max_steps=3, max_length=48, per_device_train_batch_size=2, max_eval_rows=4, sample_max_new_tokens=4)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of a live panel, within a bound."""
    pause = threading.Event()
    for _ in range(SECONDS * 20):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("the panel did not get there in time")


def put(panel: TrainingCell, **values: Any) -> None:
    """What a reader enters."""
    for name, value in values.items():
        panel.form.controls[name].value = value


def shown(part: Any) -> bool:
    return part.layout.display != "none"


def press(panel: TrainingCell, name: str) -> None:
    """What the cockpit's button sends."""
    panel.view.cockpit._receive(panel.view.cockpit, {"type": name}, [])


def offered(panel: TrainingCell) -> list[str]:
    """The cockpit's buttons that can be pressed now."""
    return list(panel.view.cockpit._state["content"]["actions"])
