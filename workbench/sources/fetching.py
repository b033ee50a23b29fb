"""Files of a model on the Hub, taken whole into Hugging Face's cache, going on where an earlier try broke off.

Covers large files in pieces, with their hash checked; small ones, and servers that give no parts, are ``hf_hub_download``'s.
huggingface_hub itself begins a broken file anew (2.4 does): here what has arrived stays beside the blob, by its hash, until it
is whole. Which files those are is the caller's choice. Several processes may fetch one model: each file is one's at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from workbench.atomic import take_lock
from workbench.errors import ModelError, WholeFileOnly
from workbench.progress import Cancelled, Progress
from workbench.sources.base import Watch
from workbench.sources.crew import PIECE, crew, reading_ahead
from workbench.sources.faults import as_model_error
from workbench.sources.hub import HubSource

_IN_PIECES = 2 * PIECE
"""Bytes from which on a file is fetched in pieces."""
_LOOK = 0.1


def arrived(source: HubSource, files: Mapping[str, int]) -> int:
    """Bytes of these files that an earlier try has left here."""
    found = 0
    for file, size in files.items():
        with contextlib.suppress(OSError):
            found += min(_partial(blob).stat().st_size, size) if (blob := source.blob(file)) else 0
    return found


def fetch(
    source: HubSource, files: Mapping[str, int], progress: Progress | None = None, cancelled: Cancelled | None = None
) -> Path:
    """Takes files (name → bytes, as ``HubSource.missing`` gives them) into the cache; the folder of their commit.

    ``progress`` counts bytes, those that an earlier try left here included. InterruptedError once ``cancelled()`` says yes,
    with what has arrived kept; ``ModelError`` where the Hub, or the disk, does not do its part.
    """
    watch = Watch(sum(files.values()), progress, cancelled)
    for file, size in files.items():
        blob, counted = source.blob(file), watch.done + size
        try:
            if blob is not None and size >= _IN_PIECES and not blob.is_file():
                with contextlib.suppress(WholeFileOnly):
                    _in_pieces(source, file, size, blob, watch)
        except InterruptedError:
            raise
        except OSError as error:
            where = str(blob)
            raise as_model_error(OSError(error.errno, error.strerror, where), source.name, where) from error
        with crew(1) as team:  # what is there already is only linked
            there = watch.done >= counted
            team.result(team.submit(source.take, file, team), Watch(0, cancelled=cancelled) if there else watch)
    return source.folder


def _in_pieces(source: HubSource, file: str, size: int, blob: Path, watch: Watch) -> None:
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _alone(_partial(blob), watch) as out:
        if blob.is_file():  # another process was first
            watch.moved(size)
            _partial(blob).unlink()
            return
        at = out.seek(0, os.SEEK_END)
        if at > size:
            at = out.truncate(0)
        digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        out.seek(0)
        while before := out.read(PIECE):
            digest.update(before)
            watch.check()
        watch.moved(at)
        buffer = memoryview(bytearray(PIECE))
        with reading_ahead(partial(source.piece, file), at, size, watch) as read:
            while at < size:
                part = buffer[: min(PIECE, size - at)]
                read(at, part)
                digest.update(part)
                while part:  # a raw file may take less than all
                    part = part[out.write(part) :]
                at = out.tell()
        if digest.hexdigest() != blob.name:
            out.truncate(0)
            what = "What arrived is not what the Hub lists: its hash is another."
            raise ModelError(what, where=f"{source.name}/{file}", remedy="Fetch it again.")
        os.replace(_partial(blob), blob)


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.workbench.incomplete")


@contextlib.contextmanager
def _alone(path: Path, watch: Watch) -> Iterator[IO[bytes]]:
    """The file, which no other process writes meanwhile; waits for one that does."""
    while True:
        with path.open("ab+", buffering=0) as file:
            while not _locked(file):
                watch.check()
                time.sleep(_LOOK)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return  # else it became the blob while we waited


def _locked(file: IO[bytes]) -> bool:
    """Whether the file is ours."""
    try:
        take_lock(file)
    except BlockingIOError:
        return False
    return True
