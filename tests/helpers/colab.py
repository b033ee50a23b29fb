"""Colab's versions of what the project requires, in an environment of their own: ``make test-colab``.

``python -m tests.helpers.colab FOLDER`` makes the environment: what ``tests/colab.txt`` pins, but torch as in
``constraints.txt``, then the project over it, which must change none of it. As a plugin (``pytest -p tests.helpers.colab``)
this module picks the tests that run there: the notebooks, and each file of tests that names one of the ``PACKAGES``, a module
of ours that imports one, or the widgets. Browsers and GPUs stay out, and so do the files that watch live processes (kills,
limits, signals): no package changes those, and the notebooks launch whole runs. Nothing here knows Colab's Python or its
front end.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.public_names import homes

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = frozenset({
    "accelerate", "anywidget", "datasets", "ipykernel", "IPython", "ipywidgets", "jupyter_client", "peft", "plotly",
    "transformers",
})  # fmt: skip
WATCHING = frozenset({"tests.helpers.live_runs", "tests.helpers.preloaded"})
"""The helpers that tests of live processes use."""
TOOLS = ("gguf", "hatchling", "hypothesis", "nbval", "pytest", "pytest-xdist", "PyYAML", "tensorboard", "xllamacpp")
"""What the tests need besides, in the versions of constraints.txt."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the browser tests and each file of tests that meets none of the packages."""
    parts = collection_path.relative_to(ROOT).parts
    elsewhere = parts[:2] in (("tests", "browser"), ("tests", "gpu"))
    return elsewhere or (collection_path.match("test_*.py") and not runs(collection_path)) or None


def runs(path: Path) -> bool:
    """Whether a file of tests runs with Colab's versions."""
    names = set(imports(path))
    return not names & WATCHING and any(_meets(name) for name in names)


def imports(path: Path) -> Iterator[str]:
    """Every module, and every name of one, that the file imports, wherever in it; for ``wb.name`` the module it is kept in."""
    HOMES = homes("workbench")
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "wb":
            yield f"workbench.{HOMES.get(node.attr, node.attr)}"


@functools.cache
def _meets(name: str) -> bool:
    top, *rest = name.split(".")
    if top in PACKAGES or top == "widgets":
        return True
    path = ROOT.joinpath(top, *rest).with_suffix(".py")
    return bool(rest) and path.is_file() and any(found.partition(".")[0] in PACKAGES for found in imports(path))


def make(folder: Path) -> None:
    """The environment in ``folder``; a version that installing the project changed ends it."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    constraints = _pins(ROOT / "constraints.txt")
    wanted = _pins(ROOT / "tests" / "colab.txt") | {name: constraints[name] for name in ("torch", *TOOLS)}
    subprocess.run([*pip, "install", *(f"{name}=={version}" for name, version in wanted.items())], check=True)
    before = _installed(pip)
    subprocess.run([*pip, "install", f"bitsandbytes=={constraints['bitsandbytes']}", "--editable", ROOT], check=True)
    if changed := before - _installed(pip):
        sys.exit(f"Installing the project would change on Colab: {', '.join(sorted(changed))}.")


def _pins(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    return {name: version for name, version in (line.split("==") for line in lines)}


def _installed(pip: list[str | Path]) -> set[str]:
    return set(subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout.splitlines())


if __name__ == "__main__":
    make(Path(sys.argv[1]))
