"""A model in a local folder: one safetensors file, or shards with their index, and config.json.

Covers finding the files, keeping inside the folder, and positioned reads (``preadv`` straight into the destination, no mmap:
less memory, and a file that shrinks is an error instead of a SIGBUS). Never unpickles anything and never runs a model's code.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.sources import listing
from workbench.sources.base import Reader, Source, Watch
from workbench.sources.files import CONFIG, MAX_JSON, check_name, configuration, join, parse_json, refuse_adapter, weight_files
from workbench.sources.header import Entry, Fetch, Header, read_header, shown

_STEP = 1 << 25
"""Bytes between two checks for cancellation: a few milliseconds from memory, some tens from a disk."""


class LocalSource(Source):
    """A folder as transformers saves one. Headers are read and checked when it is opened, tensors when they are asked for."""

    def __init__(self, folder: Path, name: str | None = None, licence: str | None = None, *, adapter: bool = True) -> None:
        """``adapter``: whether the folder may be an adapter's, as peft saves one; else that is refused for being no model."""
        self.path: Path = folder.resolve()
        self.name = name or self.path.name
        names = _listing(self.path)
        if not adapter:
            refuse_adapter(names, self._json, self._place)
        files = weight_files(names, self._json, self._place)
        for file in dict.fromkeys(files.values()):
            inside(self.path, file)
        self.config = configuration(names, self._json)
        self.licence = licence or listing.of_folder(names, lambda file: _head(self.path, file, listing.ENOUGH))
        self._sizes: dict[str, int] = {}
        self._where = join(files, ((file, self._header(file)) for file in dict.fromkeys(files.values())), self._place)

    def entries(self) -> dict[str, tuple[str, Entry]]:
        """As ``Source`` has it."""
        return self._where

    def _place(self, file: str) -> str:
        return str(self.path / file)

    def _json(self, file: str) -> dict[str, Any]:
        return parse_json(_head(self.path, file, MAX_JSON + 1), self._place(file))

    def _header(self, file: str) -> Header:
        with self._open(file, 0, 0, Watch(0)) as read:
            return read_header(fetching(read), self._sizes[file], self._place(file))

    @contextmanager
    def _open(self, file: str, begin: int, end: int, watch: Watch) -> Iterator[Reader]:
        path = inside(self.path, file)
        with opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            if self._sizes.setdefault(file, size) != size:
                what = f"Changed since it was opened: {self._sizes[file]:,} bytes then, {size:,} now."
                raise ModelError(what, where=str(path), remedy="Open the model again.")
            yield lambda offset, into: fill(descriptor, offset, into, path, watch)


def inside(folder: Path, file: str) -> Path:
    """The regular file ``file`` of ``folder``; ModelError where the name or a link leads out of the folder.

    Links into ``blobs`` are followed in a snapshot of the Hugging Face cache, whose layout consists of them:
    ``models--*/snapshots/REVISION`` beside ``models--*/blobs``, from which in turn links may lead to what repositories share.
    """
    where = str(folder / CONFIG if file == CONFIG else folder)
    check_name(file, where)
    path = folder / file
    try:
        target = path.resolve()
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        remedy = "Fetch the missing file, from the same revision as the others."
        raise ModelError(f"The file {shown(file)} is missing or cannot be read.", where=where, remedy=remedy) from error
    homes = [folder]
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        homes += [folder.parents[1] / "blobs", folder.parents[2] / "blobs"]
    if not any(target.is_relative_to(home) for home in homes):
        what = f"The file {shown(file)} is a link out of the folder."
        raise ModelError(what, where=where, remedy="Copy the file itself into the folder.")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{shown(file)} is not a regular file.", where=where)
    return target


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor for reading; ModelError where the file cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(f"Cannot be read: {error.strerror}.", where=str(path), remedy="Check its permissions.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fill(descriptor: int, offset: int, into: memoryview, path: Path, watch: Watch) -> None:
    """Fill ``into`` from ``offset`` of an open file on, checking for cancellation now and then."""
    while into:
        watch.check()
        try:
            got = os.preadv(descriptor, [into[:_STEP]], offset)
        except OSError as error:
            raise ModelError(f"Reading failed: {error.strerror}.", where=str(path)) from error
        if got == 0:
            raise ModelError("Truncated while it was being read.", where=str(path), remedy="Open the model again.")
        into, offset = into[got:], offset + got
        watch.moved(got)


def fetching(read: Reader) -> Fetch:
    """The reader as ``read_header`` wants it."""

    def fetch(offset: int, count: int) -> bytes:
        into = bytearray(count)
        read(offset, memoryview(into))
        return bytes(into)

    return fetch


def _listing(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise ModelError(f"Cannot be listed: {error.strerror}.", where=str(folder)) from error


def _head(folder: Path, file: str, count: int) -> bytes:
    """The first ``count`` bytes of a file of the folder, or all of it."""
    path = inside(folder, file)
    try:
        with path.open("rb") as stream:  # a buffer of ``count`` bytes is made first, however short the file is
            return stream.read(min(count, os.fstat(stream.fileno()).st_size))
    except OSError as error:
        raise ModelError(f"Cannot be read: {error.strerror}.", where=str(folder / file)) from error
