"""Where a new folder may be put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.training.paths import is_free


def test_a_place_is_free_where_nothing_is_and_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "full", "locked"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine").touch()
    names = ("nothing", "no/parent", "x" * 300, "empty", "full", "full/mine")
    assert [is_free(tmp_path / name) for name in names] == [True, True, True, True, False, False]

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert not is_free(tmp_path / "locked"), "what cannot be looked into may hold something"
