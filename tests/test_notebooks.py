"""The committed notebooks as a reader without a kernel sees them: pictures in place of widgets, in files that stay small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nbconvert import HTMLExporter

from tests.browser.notebooks import LARGEST, WIDGET, text_of

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


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
