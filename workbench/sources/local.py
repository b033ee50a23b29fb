"""A model in a local folder: one safetensors file, or shards with their index, and config.json.

Covers finding the files, keeping inside the folder, and positioned reads (``preadv`` straight into the destination, no mmap:
less memory, and a file that shrinks is an error instead of a SIGBUS). Never unpickles anything and never runs a model's code.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.sources.base import Reader, Source
from workbench.sources.header import MAX_TENSORS, Entry, read_header, shown, unique

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_MAX_JSON = 64_000_000  # bytes; the index of a 1,000-billion-parameter model has about 20
_MAX_CONTAINERS = 100_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class LocalSource(Source):
    """A folder as transformers saves one. Headers are read and checked when it is opened, tensors when they are asked for."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.path: Path = folder.resolve()
        self.name = name or self.path.name
        self._files = _files(self.path)
        self.config = _json(self.path, CONFIG) if _exists(self.path / CONFIG) else {}
        self._sizes: dict[str, int] = {}
        self._where = self._read_headers()

    def _entries(self) -> dict[str, tuple[str, Entry]]:
        return self._where

    def _read_headers(self) -> dict[str, tuple[str, Entry]]:
        found: dict[str, tuple[str, Entry]] = {}
        for file in dict.fromkeys(self._files.values()):
            with self._open(file) as read:
                header = read_header(partial(_fetch, read), self._sizes[file], str(self.path / file))
            for name, entry in header.entries.items():
                if name in found:
                    what = f"The tensor {shown(name)} is also in {found[name][0]}."
                    raise ModelError(what, where=str(self.path / file), remedy="Keep one of the two.")
                found[name] = (file, entry)
            if len(found) > MAX_TENSORS:
                raise ModelError(f"More than {MAX_TENSORS:,} tensors.", where=str(self.path))
        for name, file in self._files.items():
            if name and (name not in found or found[name][0] != file):
                what = f"The index says that {shown(name)} is in {file}, and it is not."
                raise ModelError(
                    what, where=str(self.path / INDEX), remedy="Fetch the index and the shards again, from one revision."
                )
        return found

    @contextmanager
    def _open(self, file: str) -> Iterator[Reader]:
        path = inside(self.path, file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ModelError(f"Cannot be read: {error.strerror}.", where=str(path), remedy="Check its permissions.") from error
        try:
            size = os.fstat(descriptor).st_size
            if self._sizes.setdefault(file, size) != size:
                what = f"Changed since it was opened: {self._sizes[file]:,} bytes then, {size:,} now."
                raise ModelError(what, where=str(path), remedy="Open the model again.")
            yield lambda offset, into: _fill(descriptor, offset, into, path)
        finally:
            os.close(descriptor)


def inside(folder: Path, file: str) -> Path:
    """The regular file ``file`` of ``folder``; ModelError where the name or a link leads out of the folder.

    Links into ``blobs`` are followed in a snapshot of the Hugging Face cache, whose layout
    (``models--*/snapshots/REVISION`` beside ``models--*/blobs``) consists of them.
    """
    where = str(folder / CONFIG if file == CONFIG else folder)
    if (
        not file
        or len(file) > 255
        or not file.isprintable()
        or Path(file).is_absolute()
        or ".." in Path(file).parts
        or "\\" in file
    ):
        raise ModelError(f"It names the file {shown(file)}, which is not a name inside the folder.", where=where)
    path = folder / file
    try:
        target = path.resolve()
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        remedy = "Fetch the missing file, from the same revision as the others."
        raise ModelError(f"The file {shown(file)} is missing or cannot be read.", where=where, remedy=remedy) from error
    homes = [folder, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(home) for home in homes):
        what = f"The file {shown(file)} is a link out of the folder."
        raise ModelError(what, where=where, remedy="Copy the file itself into the folder.")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{shown(file)} is not a regular file.", where=where)
    return target


def _files(folder: Path) -> dict[str, str]:
    """Tensor name → file as the index says, or ``{"": SINGLE}``."""
    if _exists(folder / SINGLE):
        return {"": SINGLE}
    if _exists(folder / INDEX):
        weights = _json(folder, INDEX).get("weight_map")
        if not isinstance(weights, dict) or not weights or not all(isinstance(file, str) for file in weights.values()):
            raise ModelError("It has no weight_map of tensor names to files.", where=str(folder / INDEX))
        for file in dict.fromkeys(weights.values()):
            if not file.endswith(".safetensors"):
                raise ModelError(f"It names the shard {shown(file)}, which is not safetensors.", where=str(folder / INDEX))
            inside(folder, file)
        return weights
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise ModelError(f"Cannot be listed: {error.strerror}.", where=str(folder)) from error
    loose = [name for name in names if name.endswith(".safetensors")]
    if len(loose) == 1:
        return {"": loose[0]}
    if loose:
        what = f"It holds {len(loose)} safetensors files and no {INDEX} that says how they belong together."
        raise ModelError(what, where=str(folder), remedy="Fetch the index too, or give each file a folder of its own.")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        what = (
            f"It holds only pickles ({shown(pickles[0])}), which can run any code when they are loaded: they are never opened."
        )
        remedy = (
            "Fetch the model's safetensors, or convert it where you trust it: load it with transformers and save_pretrained()."
        )
        raise ModelError(what, where=str(folder), remedy=remedy)
    raise ModelError(
        f"It holds no {SINGLE} and no {INDEX}.", where=str(folder), remedy="Pass a folder as transformers saves one."
    )


def _json(folder: Path, file: str) -> dict[str, Any]:
    path = inside(folder, file)
    where = str(folder / file)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_JSON + 1)
    except OSError as error:
        raise ModelError(f"Cannot be read: {error.strerror}.", where=where) from error
    if len(raw) > _MAX_JSON or raw.count(b"[") + raw.count(b"{") > _MAX_CONTAINERS:
        raise ModelError("It is larger than such a file ever is.", where=where)
    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"It is not valid JSON: {str(error)[:120]}.", where=where, remedy="Fetch the file again.") from error
    if not isinstance(value, dict):
        raise ModelError("It is not a JSON object.", where=where, remedy="Fetch the file again.")
    return value


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _fetch(read: Reader, offset: int, count: int) -> bytes:
    into = bytearray(count)
    read(offset, memoryview(into))
    return bytes(into)


def _fill(descriptor: int, offset: int, into: memoryview, path: Path) -> None:
    while into:
        try:
            got = os.preadv(descriptor, [into], offset)
        except OSError as error:
            raise ModelError(f"Reading failed: {error.strerror}.", where=str(path)) from error
        if got == 0:
            raise ModelError("Truncated while it was being read.", where=str(path), remedy="Open the model again.")
        into, offset = into[got:], offset + got
