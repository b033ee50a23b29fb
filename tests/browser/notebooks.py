"""Runs the committed notebooks and puts pictures where widgets were: ``make notebooks``.

A notebook gets its badge and its first cell anew (tests/helpers/first_cell.py), is run from top to bottom in a real JupyterLab
and saved there, and every widget output in the file becomes a picture of what the page showed, so that GitHub, nbviewer and
nbconvert show it. No widget state stays. A notebook that fails, or would be larger than ``LARGEST``, leaves its file as it was.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator

from tests.browser.lab import Lab
from tests.browser.server import ROOT, TOKEN, everything
from tests.helpers.first_cell import address, renewed

LARGEST = 500_000
"""Bytes of a committed notebook at most."""

WIDGET = "application/vnd.jupyter.widget-view+json"
_TALL = {"width": 1280, "height": 6000}  # JupyterLab draws only the cells near the window

# Every plot that is on screen is drawn, and nothing on the page has changed for a second.
_SETTLED = """() => {
    const plots = [...document.querySelectorAll('.jp-OutputArea .workbench-plot [role=figure]')];
    const shown = plots.filter((plot) => plot.checkVisibility());
    if (!window.changes) {
        window.changes = { at: performance.now() };
        const observer = new MutationObserver(() => (window.changes.at = performance.now()));
        const noted = { subtree: true, childList: true, attributes: true, characterData: true };
        observer.observe(document.querySelector('.jp-Notebook'), noted);
    }
    return shown.every((plot) => plot.dataset.revision) && performance.now() - window.changes.at > 1000;
}"""

# What a trained run was asked has been answered, wherever it can be.
_ANSWERED = """() => [...document.querySelectorAll('.jp-OutputArea .wb-try')].every(
    (tried) => !tried.checkVisibility() || /token/.test(tried.querySelector('.wb-unseen[role=status]')?.textContent))"""

# In place of this machine's folders an ellipsis, wherever a page shows them.
_WITHOUT_PATHS = """(root) => {
    const texts = document.createTreeWalker(document.querySelector('.jp-Notebook'), NodeFilter.SHOW_TEXT);
    for (let text; (text = texts.nextNode());) if (text.data.includes(root)) text.data = text.data.replaceAll(root, '…');
    const fields = document.querySelectorAll('.jp-OutputArea :is(input, textarea)');
    for (const field of fields) if (field.value.includes(root)) field.value = field.value.replaceAll(root, '…');
}"""


def run(lab: Lab, path: Path, seconds: float = 600) -> dict[str, Any]:
    """The notebook at ``path``, in the server's folder, after a run, with pictures in place of widgets."""
    metadata = json.loads(path.read_text("utf-8"))["metadata"]
    lab.page.set_viewport_size(_TALL)
    lab.open(path.name)
    lab.run_all(seconds)
    lab.until(_SETTLED, seconds)
    for ask in lab.page.locator(".wb-ask button", has_text="Try it").all():
        if ask.is_visible():
            ask.click()
    lab.until(_ANSWERED, seconds)
    lab.page.evaluate(_WITHOUT_PATHS, str(ROOT))
    pictures = [_pictures(cell) for cell in lab.page.locator(".jp-CodeCell").all()]
    lab.menu("File", "Save Notebook")
    lab.page.wait_for_selector(".lm-TabBar-tab.jp-mod-dirty", state="detached")
    notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
    notebook["metadata"] = metadata  # without widget state, and without the versions of this machine
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, shown in zip(code, pictures, strict=True):
        _replace(cell, shown)
    return notebook


def text_of(notebook: dict[str, Any]) -> str:
    """A notebook as it is written to a file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _pictures(cell: Locator) -> dict[int, dict[str, Any]]:
    """By the place of an output among its cell's: a picture of the widget that it shows."""
    found = {}
    for i, output in enumerate(cell.locator(".jp-OutputArea-child").all()):
        shown = output.locator(".jupyter-widgets, .workbench-drawing").first  # a plot on its own is no ipywidgets' widget
        if shown.count():
            png = shown.screenshot(animations="disabled")
            width, height = struct.unpack(">II", png[16:24])
            figures = (shown, *shown.locator("[role=figure]:visible").all())
            labels = [label for figure in figures if (label := figure.get_attribute("aria-label"))]
            alt = labels[0] if labels else "A widget"
            data = {"image/png": base64.b64encode(png).decode(), "text/plain": [f"{alt.rstrip('.')}, as a picture"]}
            found[i] = {"data": data, "metadata": {"image/png": {"alt": alt, "height": height, "width": width}}}
    return found


def _replace(cell: dict[str, Any], pictures: dict[int, dict[str, Any]]) -> None:
    for i, output in enumerate(cell["outputs"]):
        if output["output_type"] == "error":
            raise RuntimeError(f"{output['ename']}: {output['evalue']}\nin the cell:\n{''.join(cell['source'])}")
        if WIDGET in output.get("data", {}):
            output.update(pictures[i])
    cell["metadata"].pop("execution", None)


def main() -> None:
    """Renews the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted((ROOT / "notebooks").glob("*.ipynb")))
    args = parser.parse_args()
    with everything() as (browser, server, _):
        for path in args.notebooks:
            copy = server.folder / path.name
            copy.write_text(text_of(renewed(json.loads(path.read_text("utf-8")), path.stem, address())), "utf-8")
            lab = Lab(browser.new_page(), server.url, TOKEN, path.stem)
            text = text_of(run(lab, copy))
            lab.page.close()
            server.end_kernels()
            if (size := len(text.encode())) > LARGEST:
                sys.exit(f"{path} would hold {size:,} bytes; {LARGEST:,} are allowed.")
            path.write_text(text, "utf-8")
            print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
