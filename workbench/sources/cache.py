"""The workbench's own cache of what it read from the Hub: bounded, shared by processes, and never in the way of a read.

Covers pieces of files under any key. They lie in ``$WORKBENCH_CACHE``, or in the user's folder (``caches``), and take at most
``$WORKBENCH_CACHE_GB`` gigabytes (10; 0 for none), the least recently used going first. A piece is written beside its place and
moved there, so another process sees all of it or nothing, and ends with its checksum, so what a crash left half written is not
taken for it. Where nothing can be written (a read-only or full disk) reads go on without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from workbench import caches
from workbench.errors import WorkbenchError
from workbench.given import expanded
from workbench.sources.header import shown

FOLDER, GIGABYTES = "WORKBENCH_CACHE", "WORKBENCH_CACHE_GB"
_DEFAULT_GIGABYTES = 10.0
_SPARE = 1_000_000_000
"""Bytes that are left free on the disk."""
_KEPT = 0.9
"""The share of the limit that is kept when something must go, so that not every later piece has to look again."""
_LOOK_AGAIN = 0.05
"""The share of the limit that this process writes before it looks at what others have written."""
_ABANDONED = 3_600
"""Seconds after which a half-written piece is taken to be abandoned."""
_SUM = 4


class Cache:
    """Pieces of bytes by key. Any number of threads and processes may use one folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._held: int | None = None
        self._since = 0
        self._broken = False

    def __reduce__(self) -> tuple[Callable[[Path, int], Cache], tuple[Path, int]]:
        return _shared, (self.folder, self.limit)

    def get(self, key: str) -> bytes | None:
        """What was put under the key, None where there is nothing whole."""
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        data = raw[:-_SUM]
        if len(raw) < _SUM or _checksum(data) != raw[-_SUM:]:
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(self, key: str, data: bytes | bytearray) -> None:
        """Keep ``data`` if there is room for it; what cannot be written is not an error."""
        size = len(data) + _SUM
        if self._broken or size > self.limit // 4:
            return
        path = self._path(key)
        part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < size + _SPARE:
                return
            self._make_room(size)
            with part.open("xb") as file:
                file.write(data)
                file.write(_checksum(data))
            os.replace(part, path)
        except OSError:
            _remove(part)
            self._broken = True

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:42]

    def _make_room(self, size: int) -> None:
        with self._lock:
            if self._held is None or self._held + size > self.limit or self._since > _LOOK_AGAIN * self.limit:
                self._held, self._since = self._tidied(size), 0
            self._held += size
            self._since += size

    def _tidied(self, size: int) -> int:
        """The bytes held, once enough of the least recently used has gone for ``size`` more."""
        found = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                if path.suffix == ".part" and time.time() - stat.st_mtime > _ABANDONED:
                    _remove(path)
                else:
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        held = sum(count for _, count, _ in found)
        if held + size > self.limit:
            for _, count, path in sorted(found, key=lambda item: item[:2]):
                if held + size <= _KEPT * self.limit:
                    break
                if _remove(path):
                    held -= count
        return held


def default() -> Cache:
    """The cache that the environment variables set; WorkbenchError where they set an impossible one."""
    text = os.environ.get(GIGABYTES) or str(_DEFAULT_GIGABYTES)
    try:
        gigabytes = float(text)
        limit = int(gigabytes * 1e9)
    except (ValueError, OverflowError):
        gigabytes, limit = -1.0, 0
    if gigabytes < 0:
        raise WorkbenchError(f"{shown(text)} is not a size in gigabytes.", where=GIGABYTES, remedy="Set it to 0 or more.")
    named = os.environ.get(FOLDER)
    return _shared(expanded(named) if named else caches.user_folder(), limit)


@functools.lru_cache(8)
def _shared(folder: Path, limit: int) -> Cache:
    return Cache(folder, limit)


def _checksum(data: bytes | bytearray) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM, "little")


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
