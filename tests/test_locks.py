"""A file is one process's at a time, and everybody's where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from workbench.atomic import take_lock


def test_a_file_that_another_holds_is_not_taken(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as mine, (tmp_path / "lock").open("w") as other:
        take_lock(mine)
        with pytest.raises(BlockingIOError):
            take_lock(other)
        mine.close()
        take_lock(other, wait=True)


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "ENOSYS", "EIO"])
def test_a_file_system_without_locks_is_no_fault(
    name: str, wait: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(getattr(errno, name), name)

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        if name == "EIO":
            with pytest.raises(OSError, match="EIO"):
                take_lock(file, wait)
        else:
            take_lock(file, wait)
