"""How every committed notebook begins: its title, under it a badge that opens it in Colab, then a folded cell to install there.

The badge and the address in the cell come from pyproject's ``urls``: without a repository address there is no badge, and the
cell asks for an uploaded wheel. ``make notebooks`` renews both.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_CELL = """\
# @title Install the workbench, on Colab: upgrades nothing there, and elsewhere does nothing
import sys
from importlib.util import find_spec

if "google.colab" in sys.modules and not find_spec("workbench"):
    from glob import glob
    from subprocess import check_output

    pip = (sys.executable, "-m", "pip")
    with open("present.txt", "wb") as present:
        present.write(check_output([*pip, "list", "--format=freeze"]))
{source}
    check_output([*pip, "install", "--quiet", "--constraint=present.txt", source])"""

_WHEEL_ONLY = """\
    source = max(glob("qlora_workbench-*.whl"), default=None)
    assert source, "Upload qlora_workbench-….whl first: the folder at the left edge, then its upload button.\""""

_WHEEL_OR_REPOSITORY = """\
    source = max(glob("qlora_workbench-*.whl"), default="git+{address}")"""

_FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}
"""Colab shows the cell's title and its play button, JupyterLab a line to unfold; neither its code."""

_BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def address() -> str:
    """The repository's address in pyproject's urls; empty where there is none yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", ""))


def first_cell(address: str) -> str:
    """The source of the first code cell."""
    return _CELL.format(source=_WHEEL_OR_REPOSITORY.format(address=address) if address else _WHEEL_ONLY)


def badge(address: str, name: str) -> str:
    """The badge that opens the notebook ``name`` (``00_workbench``) in Colab; empty without an address on GitHub."""
    host, _, repository = address.partition("github.com/")
    if not host or not repository:
        return ""
    path = f"{repository.removesuffix('.git').strip('/')}/blob/main/notebooks/{name}.ipynb"
    return _BADGE.format(link=f"https://colab.research.google.com/github/{path}")


def renewed(notebook: dict[str, Any], name: str, address: str) -> dict[str, Any]:
    """``notebook`` with its badge and its first code cell as they are to be now."""
    title, *cells = notebook["cells"]
    lines = [line for line in "".join(title["source"]).split("\n") if "colab-badge" not in line]
    text = "\n".join(lines).rstrip() + (f"\n\n{shown}" if (shown := badge(address, name)) else "")
    if cells and cells[0]["cell_type"] == "code" and "google.colab" in "".join(cells[0]["source"]):
        cells = cells[1:]
    start: dict[str, Any] = {
        "cell_type": "code", "execution_count": None, "id": "colab", "metadata": _FOLDED, "outputs": [],
        "source": first_cell(address).splitlines(keepends=True),
    }  # fmt: skip
    return notebook | {"cells": [title | {"source": text.splitlines(keepends=True)}, start, *cells]}
