"""A tiny model, and training panels on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.training_cells import SECONDS
from widgets import TrainingCell


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cell(model: Path, tmp_path: Path) -> Iterator[Callable[..., TrainingCell]]:
    """Makes panels, with every field's control and a folder of runs of their own; runs and panels end with the test."""
    made: list[TrainingCell] = []

    def make(**options: Any) -> TrainingCell:
        panel = TrainingCell(model, **options)
        panel.form.more.fill()
        panel.setup.run_folder.value = str(tmp_path / "runs" / "a run")
        made.append(panel)
        return panel

    with contextlib.chdir(tmp_path):
        yield make
    for panel in made:
        if panel.run and panel.run.status.state in ("starting", "running"):
            panel.run.stop(patience=0)
            panel.run.wait(SECONDS)
        panel.close()
        panel.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("workbench-ticker")]
