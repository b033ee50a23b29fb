"""The committed notebooks as a reader without a kernel sees them: pictures in place of widgets, in files that stay small.

And as one sees them who runs them again: without noise, without what piles up, and hardly larger than before.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nbconvert import HTMLExporter

from tests.browser.notebooks import LARGEST, WIDGET, text_of
from tests.helpers.notebook_runs import outputs, run_again

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
WIDEST = 95
"""Columns of code that a page of 1,200 pixels shows."""
QUICK = ("04_double_quantization",)
HELD_ELSEWHERE = ("07_train_an_adapter", "08_claims", "09_what_it_costs")
"""Run again where their numbers are held: test_notebook_run.py and test_notebook_claims.py."""


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_read_aloud_in_one_breath_a_sentence(path: Path) -> None:
    """No sentence has more than thirty words, a formula counting as one; and all before the picture are two at most."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    said = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    for text in said:
        plain = re.sub(r"\$\$.*?\$\$|\$.*?\$|`[^`]*`", "x", text, flags=re.DOTALL)
        parts = re.split(r"(?<=[.?!:])\s+|\n\n+|\n[-#|]", plain)
        assert not [part for part in parts if len(part.split()) > 30]
    title, opening = said[0].split("\n\n", 1)
    assert title.startswith("# ")
    assert len(re.findall(r"[.?!](?=\s|$)", opening)) <= 2


def test_each_asks_what_the_readme_says_that_the_next_one_answers() -> None:
    readme = (NOTEBOOKS[0].parent.parent / "README.md").read_text("utf-8")
    listed = re.findall(r"^\d\. \[(.+)\]\(notebooks/(.+)\.ipynb\)$", readme, re.MULTILINE)
    last = ["".join(json.loads(path.read_text("utf-8"))["cells"][-1]["source"]) for path in NOTEBOOKS[:-1]]
    asked = [re.findall(r"\*\*(.+)\*\*\s+\[(\w+)\]", text) for text in last]
    assert asked == [[line] for line in listed]


AGAIN = [path.stem for path in NOTEBOOKS if path.stem not in HELD_ELSEWHERE]


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in AGAIN])
def test_a_notebook_that_is_run_again_stays_small_and_quiet(name: str, tmp_path: Path) -> None:
    run_again(name, tmp_path)
