"""The committed notebooks as a reader without a kernel sees them: pictures in place of widgets, in files that stay small.

And as one sees them who runs them again: without noise, without what piles up, and hardly larger than before.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from tests.browser.notebooks import LARGEST, WIDGET, text_of

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
WIDEST = 95
"""Columns of code that a page of 1,200 pixels shows."""
QUICK = ("04_double_quantization",)
KEEPS_ITS_RUN = ("00_workbench", "07_train_an_adapter")
"""What a reader trains there is theirs to keep."""
SHOW_THE_TRAINING_CELL = ("06_paged_optimizers", "07_train_an_adapter")
"""Its widgets' scripts alone are more than a notebook may take, where a client saves them with it: JupyterLab does not."""


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_shows_pictures_and_holds_no_widget(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    assert len(text.encode()) <= LARGEST
    assert text == text_of(notebook), "written by `make notebooks`"
    assert "widgets" not in notebook["metadata"]
    data = [output.get("data", {}) for output in outputs(notebook)]
    assert all(WIDGET not in shown for shown in data)
    assert all(output["output_type"] != "error" for output in outputs(notebook))
    pictures = [shown["image/png"].strip() for shown in data if "image/png" in shown]
    assert pictures
    page, _ = HTMLExporter().from_filename(str(path))
    assert all(f"data:image/png;base64,{picture}" in page for picture in pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_line_of_shown_code_is_cut_off(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    shown = [cell for cell in cells if cell["cell_type"] == "code" and "jupyter" not in cell["metadata"]]
    lines = "\n".join("".join(cell["source"]) for cell in shown).split("\n")
    assert not [line for line in lines if len(line) > WIDEST]


def test_each_asks_what_the_readme_says_that_the_next_one_answers() -> None:
    readme = (NOTEBOOKS[0].parent.parent / "README.md").read_text("utf-8")
    listed = re.findall(r"^\d\. \[(.+)\]\(notebooks/(.+)\.ipynb\)$", readme, re.MULTILINE)
    last = ["".join(json.loads(path.read_text("utf-8"))["cells"][-1]["source"]) for path in NOTEBOOKS[:-1]]
    asked = [re.findall(r"\*\*(.+)\*\*\s+\[(\w+)\]", text) for text in last]
    assert asked == [[line] for line in listed]


AGAIN = [path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow, id=path.stem) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", AGAIN, ids=lambda path: path.stem)
def test_a_notebook_that_is_run_again_stays_small_and_quiet(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, 4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    noise = [output["text"] for output in outputs(notebook) if output["output_type"] == "stream" and output["name"] == "stderr"]
    assert not noise
    if path.stem in SHOW_THE_TRAINING_CELL:
        del notebook["metadata"]["widgets"]
    assert len(text_of(notebook).encode()) <= LARGEST, "its widgets' state is part of it"
    assert not list(tmp_path.glob("runs/*")) or path.stem in KEEPS_ITS_RUN
