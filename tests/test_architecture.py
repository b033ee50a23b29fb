"""What may import what, what an import costs, and what a tracked file may not contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import widgets
import workbench

ROOT = Path(__file__).parent.parent
VIEWS = {"widgets", "ipywidgets", "anywidget", "plotly", "IPython", "ipykernel"}
HEAVY = {"torch", "numba", "plotly", "pandas", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "ipywidgets"}
TORCH = {"torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that the file imports, wherever in it: (line, top-level name)."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the statement."""
    script = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_workbench_imports_no_view() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "workbench").rglob("*.py"))
        for line, name in imports(path)
        if name in VIEWS
    ]
    assert not found


def test_importing_workbench_loads_nothing_heavy() -> None:
    assert not loaded_by("import workbench; dir(workbench)") & (HEAVY | {"numpy", "widgets"})


def test_looking_at_weights_needs_no_torch() -> None:
    names = "open_model, quantize, measure, forecast, TrainConfig, launch, attach"
    assert not loaded_by(f"from workbench import {names}") & TORCH


def test_importing_the_widgets_loads_no_torch() -> None:
    assert not loaded_by("import widgets; [getattr(widgets, name) for name in widgets.__all__]") & TORCH


@pytest.mark.parametrize("name", workbench.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(workbench, name)
    assert name in dir(workbench)
    if callable(value):
        assert value.__doc__
        assert value.__name__ == name
        assert value.__module__.startswith("workbench.")


@pytest.mark.parametrize("name", widgets.__all__)
def test_every_public_name_of_the_widgets_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(widgets, name).__doc__
    assert getattr(widgets, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = workbench.no_such_name


def tracked_texts() -> Iterator[tuple[str, str]]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if path.exists() and path.suffix not in {".png", ".safetensors", ".webp"}:
            yield name, path.read_text("utf-8")


def test_no_tracked_file_names_a_machine_or_is_unfinished() -> None:
    # Spelt in two parts, so that this file does not contain what it looks for.
    machine = r"(?<![\w.])/(" + "|".join(["work" + "/", "root" + "/", "home" + r"/\w", "Users" + r"/\w", "tmp" + r"/\w"]) + ")"
    unfinished = r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b"
    corpora = ("workbench/builtin/model/", "workbench/builtin/data/")
    found = [
        f"{name}:{number} {line.strip()[:80]}"
        for name, text in tracked_texts()
        if not name.startswith(corpora)
        for number, line in enumerate(text.splitlines(), 1)
        if not line.lstrip().startswith('"image/png"')  # a picture in a notebook: any letters may follow each other there
        if re.search(machine, line) or re.search(unfinished, line)
    ]
    assert not found


def test_files_can_be_read_in_one_sitting() -> None:
    longest = {name: text.count("\n") for name, text in tracked_texts() if name.endswith((".py", ".js"))}
    assert not {name: lines for name, lines in longest.items() if lines > 400}


def test_notebooks_carry_no_widget_state_and_stay_small() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = path.read_text("utf-8")
        assert "application/vnd.jupyter.widget-state" not in text
        assert path.stat().st_size <= 500_000
