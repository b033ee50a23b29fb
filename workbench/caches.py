"""The folder of what can be made again: compiled kernels, pieces of models, what ``datasets`` wants a folder for.

Covers where it lies, and what happens where nothing can be written there (a container, a shared hub). Does not cover what is
kept in it, and for how long: that is the part of ``bits``, ``sources/cache`` and ``training/dataset_files``.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
import sys
import tempfile
from pathlib import Path

_LOG = logging.getLogger(__name__)
_NAME = "qlora-workbench"


def user_folder() -> Path:
    """``qlora-workbench`` where the platform keeps caches; where that cannot be written, among the temporary files.

    In the second case a warning says so, once in a process, and names the variable that sets another place.
    """
    return _usable(_platforms() / _NAME)


def writable(folder: Path) -> bool:
    """Whether files can be made in the folder; it is made first, for this user alone, if it is not there."""
    try:
        if not folder.is_absolute():  # a user without a home
            return False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _platforms() -> Path:
    home = Path(os.path.expanduser("~"))  # Path.home() raises where there is none
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else home / ".cache"


@functools.lru_cache(8)
def _usable(folder: Path) -> Path:
    if writable(folder):
        return folder
    try:
        instead = _temporary()
    except OSError:  # nothing at all can be written here: the caller goes on without
        return folder
    other = "WORKBENCH_CACHE and NUMBA_CACHE_DIR" if sys.platform in ("darwin", "win32") else "XDG_CACHE_HOME"
    _LOG.warning(
        "%s cannot be written: compiled kernels and what is read from the Hub are kept in %s, until that is emptied. "
        "Set %s to a folder that can be written.",
        folder, instead, other,
    )  # fmt: skip
    return instead


def _temporary() -> Path:
    """A folder of this user's alone, the same in every process if possible: what is in it is loaded as code."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"{_NAME}-{owner}")
    if writable(folder):
        there = folder.lstat()
        private = sys.platform == "win32" or (there.st_uid == owner and not there.st_mode & 0o077)
        if stat.S_ISDIR(there.st_mode) and private:
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{_NAME}-"))
