"""`qlora-workbench`: the notebooks in a folder of the user's, where nothing changed is overwritten, and JupyterLab on them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from workbench.cli import lab


def given(folder: Path, **texts: str) -> Path:
    """A folder of notebooks with these texts."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.ipynb").write_text(text)
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.glob("*.ipynb")}


def started(*arguments: str) -> Result:
    return CliRunner().invoke(lab.main, arguments)


def test_what_was_changed_stays_and_what_was_not_is_renewed(tmp_path: Path) -> None:
    source, target = given(tmp_path / "new", a="1", b="1", c="1"), tmp_path / "mine"
    assert lab.copy_notebooks(source, target) == []
    assert texts(target) == {"a": "1", "b": "1", "c": "1"}
    given(target, b="mine", own="mine")
    (target / "c.ipynb").unlink()
    given(source, a="2", b="2", c="2")
    assert lab.copy_notebooks(source, target) == ["b.ipynb"]
    assert texts(target) == {"a": "2", "b": "mine", "c": "2", "own": "mine"}
    assert lab.copy_notebooks(source, target) == ["b.ipynb"]


def test_a_folder_whose_record_is_lost_is_overwritten_nowhere(tmp_path: Path) -> None:
    source, target = given(tmp_path / "new", a="2", b="2"), given(tmp_path / "mine", a="1", b="2")
    (target / lab._COPIED).write_text("[1]")
    assert lab.copy_notebooks(source, target) == ["a.ipynb"]
    assert texts(target) == {"a": "1", "b": "2"}


def test_it_opens_jupyterlab_on_the_first_notebook_and_hands_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *call: ran.append((*call, os.getcwd())))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.chdir(tmp_path)
    result = started("--folder", str(tmp_path / "mine"), "--port=8889", "--no-browser")
    assert result.exit_code == 0, result.output
    command = [sys.executable, "-m", "jupyterlab", "--port=8889", "--no-browser", "00_workbench.ipynb"]
    assert ran == [(sys.executable, command, str(tmp_path / "mine"))]
    assert "00_workbench" in texts(tmp_path / "mine")


def test_without_jupyterlab_it_copies_and_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "find_spec", lambda _: None)
    result = started("--folder", str(tmp_path / "mine"))
    assert result.exit_code == 1
    assert 'pip install "qlora-workbench[lab]"' in result.output
    assert texts(tmp_path / "mine")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = started("--folder", str(tmp_path / "file" / "mine"))
    assert result.exit_code == 1
    assert "Name another folder: --folder" in result.output


def test_what_is_kept_is_said(tmp_path: Path) -> None:
    mine = given(tmp_path / "mine", **{"00_workbench": "mine"})
    result = started("--folder", str(mine), "--copy-only")
    assert "left as they are, though this version brings others: 00_workbench.ipynb." in result.output
    assert texts(mine)["00_workbench"] == "mine"
