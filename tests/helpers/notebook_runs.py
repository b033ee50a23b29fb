"""A committed notebook that is run again in a kernel of its own: without noise, what piles up, or many more bytes.

What its cells leave behind can be looked at there, by a function of the tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
from nbclient import NotebookClient

from tests.browser.notebooks import LARGEST, text_of

ROOT = Path(__file__).parents[2]
KEEPS_ITS_RUN = ("00_workbench", "07_train_an_adapter")
"""What a reader trains there is theirs to keep."""
SHOW_THE_TRAINING_CELL = ("06_paged_optimizers", "07_train_an_adapter")
"""Its widgets' scripts alone are more than a notebook may take, where a client saves them with it: JupyterLab does not."""


def run_again(name: str, folder: Path, held: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run a notebook in a folder; ``held`` is called in its kernel with the names there, and raises where one is wrong."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)  # type: ignore[no-untyped-call]
    if held is not None:
        check = f"from {held.__module__} import {held.__name__} as held\nheld(globals())"
        notebook["cells"].append(nbformat.v4.new_code_cell(check))  # type: ignore[no-untyped-call]
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}):
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    if held is not None:
        notebook["cells"].pop()
    noise = [output["text"] for output in outputs(notebook) if output["output_type"] == "stream" and output["name"] == "stderr"]
    assert not noise
    if name in SHOW_THE_TRAINING_CELL:
        del notebook["metadata"]["widgets"]
    assert len(text_of(notebook).encode()) <= LARGEST, "its widgets' state is part of it"
    assert not list(folder.glob("runs/*")) or name in KEEPS_ITS_RUN


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """All that the code cells gave."""
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
