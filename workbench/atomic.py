"""Writing a file, or a new folder, so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import WorkbenchError


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
