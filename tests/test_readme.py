"""What the README says can be done, done: its Python runs, its commands, targets, files and links are there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import widgets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PRINTED = [text for language, text in BLOCKS if language == "text"]
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "printed"), list(zip(PYTHON, PRINTED, strict=True)))
def test_the_python_runs_and_prints_what_stands_below_it(script: str, printed: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    *shown, ending = printed.splitlines()
    assert lines == shown
    assert re.fullmatch(re.escape(ending).replace("…", ".*"), last)
    state, adapter = last.split(" ", 1)
    assert state == "finished"
    assert (Path(adapter) / "adapter_model.safetensors").is_file()
    assert len(script.splitlines()) == 5


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("workbench ")])
def test_the_terminal_commands_run(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
    written = [word for word in command.split() if word.endswith((".csv", ".html"))]
    assert all((tmp_path / name).stat().st_size for name in written)


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = [textwrap.dedent(text) for text in re.findall(r"^ *```python\n(.*?)^ *```", CONTRIBUTING, re.DOTALL | re.MULTILINE)]


def test_a_format_is_added_as_contributing_says() -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[0]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    winners, error = done.stdout.rsplit(" ", 1)
    assert "cubic" not in winners
    assert 0.05 < float(error) < 0.2


def test_a_view_is_added_as_contributing_says() -> None:
    """Its last lines read what it shows."""
    ask = "assert shown.wait(60)\nprint(view.plots[0].summary, view.message.value)"
    watch = "import threading; shown = threading.Event(); view.session.on_analysis(lambda _: shown.set())"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((EXAMPLES[1], watch, "view.session.start()", ask))],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Histogram of 180,224 weights in standard deviations."


def test_every_make_command_is_a_target_and_every_file_is_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {word for command in COMMANDS for word in command.split() if re.search(r"\.(ipynb|yml|txt)$", word)}
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} == {"lab", "test"} <= targets
    assert named
    assert all((ROOT / name).is_file() for name in named)


def pytest_runs(target: str) -> list[list[str]]:
    """The arguments of each pytest that a target runs, whatever make these tests were themselves started by."""
    make = ["make", "--no-print-directory", "--dry-run", target]
    environment = {"PATH": os.environ["PATH"]}
    said = subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line.partition(" -m pytest ")[2]) for line in said.splitlines() if " -m pytest " in line]


def test_ci_runs_the_readme_s_tests_first_then_what_they_leave_out_then_colab_s() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.findall(r"^(?:timeout .* )?make (lint|test\S*)", ci, re.MULTILINE) == ["lint", "test-all"]
    (readme,) = pytest_runs("test")
    quick, rest, colab, page = pytest_runs("test-all")
    assert quick == readme
    assert quick[:2] == ["-m", "not slow and not smollm2 and not colab"]
    assert rest == ["-m", "slow", *quick[2:]]
    assert colab[:4] == [*quick[:2], "-p", "tests.helpers.colab"]
    assert "-m" not in page
    assert page[-1] == "tests/browser/colab"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_pictures_are_there(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r' src(?:set)?="([^"]+)"', text)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_views_are_those_of_the_package() -> None:
    assert "DistributionView" in widgets.__all__
    assert "Workbench" in widgets.__all__


def test_it_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 90
