"""Holding an open file while no other process does, on file systems that have locks and on those that have none."""

from __future__ import annotations

import errno
import fcntl
from typing import IO, Any

_NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})


def take_lock(file: IO[Any], wait: bool = False) -> None:
    """Hold an open file until it is closed, here and in what inherits it.

    Raises BlockingIOError where another process does, unless that is to be waited for. On a file system that has no locks, as
    Google Drive mounted on Colab, nothing is held and nobody is told.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
