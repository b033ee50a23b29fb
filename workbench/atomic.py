"""Files that several processes see: a reader sees the old one or the new one, never half of it; and one may hold a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from workbench.errors import WorkbenchError

_NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A fresh file beside ``path`` to write to, which takes its place when the block ends well, and is removed when not.

    A link is followed. What is there and is not a regular file (a pipe, ``/dev/stdout``) is written to directly. Raises OSError
    where the file cannot be made, written or moved.
    """
    target = path.resolve()
    if target.exists() and not target.is_file() and not target.is_dir():
        yield path
        return
    draft = target.with_name(f".{secrets.token_hex(4)}.{target.name}"[-255:])
    try:
        draft.open("xb").close()
        yield draft
        with draft.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


@contextlib.contextmanager
def replacing_for_user(path: Path) -> Iterator[Path]:
    """``replacing`` a file that the user named: WorkbenchError with the path in place of OSError."""
    try:
        with replacing(path) as draft:
            yield draft
    except OSError as error:
        what = f"Cannot be written: {error.strerror or error}."
        raise WorkbenchError(what, where=str(path), remedy="Name a file in a folder that can be written to.") from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A fresh folder beside ``path`` to fill, which becomes ``path`` when the block ends well, and is removed when not.

    Its files are written through to the disk first. Raises OSError where it cannot be made, filled or moved, and where ``path``
    is there and is not an empty folder.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{secrets.token_hex(4)}.{target.name}"[-255:])
    try:
        draft.mkdir()
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
        os.replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def take_lock(file: IO[Any], wait: bool = False) -> None:
    """Hold an open file until it is closed, here and in what inherits it.

    Raises BlockingIOError where another process does, unless that is to be waited for. On a file system that has no locks, as
    Google Drive mounted on Colab, nothing is held, and that is not reported.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
