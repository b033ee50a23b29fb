"""Every committed notebook begins alike: its title, a badge once there is an address, and a cell that acts on Colab alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.helpers.first_cell import ROOT, address, badge, first_cell, renewed

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ON_COLAB = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_begins_with_title_badge_and_the_cell(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    title, start, *_ = notebook["cells"]
    assert [title, start | {"execution_count": None}] == renewed(notebook, path.stem, address())["cells"][:2]
    assert path.read_text("utf-8").count("colab-badge.svg") == bool(address())


def test_the_badge_opens_the_notebook_in_colab() -> None:
    notebook = {"cells": [{"cell_type": "markdown", "source": ["# A title\n", "\n", "A question?"]}]}
    title, cell = renewed(renewed(notebook, "00", ""), "00", "https://github.com/someone/workbench.git")["cells"]
    link = "https://colab.research.google.com/github/someone/workbench/blob/main/notebooks/00.ipynb"
    assert title["source"][-1] == badge("https://github.com/someone/workbench", "00")
    assert title["source"][-1].endswith(f"({link})")
    assert "git+https://github.com/someone/workbench.git" in "".join(cell["source"])
    assert renewed({"cells": [title, cell]}, "00", "")["cells"][0] == notebook["cells"][0]


def test_elsewhere_the_cell_does_nothing(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", first_cell("")], cwd=tmp_path, env=env, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Python that has everything installed but the workbench, as a Colab runtime has, and its own site-packages."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "python")
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "python")}))
    present = folder / "present"
    present.mkdir()
    own_entries = ("workbench", "widgets")  # of which an editable install leaves a part there
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "qlora_workbench" not in entry.name and entry.name not in own_entries:
            (present / entry.name).symlink_to(entry)
    (own / "present.pth").write_text(str(present))
    return folder / "python" / "bin" / "python", own


def on_colab(python: Path, cell: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the cell without an index: whatever is not there already cannot be had."""
    env = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HOME": os.environ.get("HOME", "")}
    return subprocess.run([python, "-c", ON_COLAB + cell], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_on_colab_the_cell_asks_for_the_wheel_then_installs_it_and_nothing_else(
    colab: tuple[Path, Path], tmp_path: Path
) -> None:
    python, own = colab
    asked = on_colab(python, first_cell(""), tmp_path)
    assert asked.returncode
    assert "Upload qlora_workbench" in asked.stderr

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    before = set(own.iterdir())
    cell = first_cell("") + "\nimport workbench, widgets\nprint(workbench.__file__)"
    first = on_colab(python, cell, tmp_path)
    assert first.returncode == 0, first.stderr
    assert Path(first.stdout.strip()).is_relative_to(own)
    assert {path.name.partition("-")[0] for path in set(own.iterdir()) - before} == {"workbench", "widgets", "qlora_workbench"}

    Path(wheel).unlink()
    again = on_colab(python, cell, tmp_path)  # it is there: nothing is asked for any more
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
