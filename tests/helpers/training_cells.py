"""What a reader does with a training panel, and waiting for what it comes to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from widgets import TrainingCell

SECONDS = 180


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
