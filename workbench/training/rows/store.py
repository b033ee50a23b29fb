"""Tokens of large files, kept on disk for later runs and mapped from there: memory holds no more than what is looked at.

Covers which files are large, the key, which is of content alone, and how much is kept. They lie in ``rows`` in the folder of
pieces from the Hub (``sources.cache``), and take at most as much again as those; the least recently used go first. A set is
written beside its place and moved there whole. Where nothing can be written, or nothing is to be kept, tokens are in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from workbench import caches
from workbench.atomic import take_lock
from workbench.sources import cache
from workbench.sources.base import Watch
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files
from workbench.training.rows.chats import Refused
from workbench.training.rows.shapes import Shape
from workbench.training.rows.tokens import Rows, Sink, TokenRows

LARGE = 1_000_000
"""Bytes of a dataset's files from which on its tokens are kept."""
_TRAINING = Path(__file__).parent.parent
_MADE_BY = (
    *sorted((_TRAINING / "rows").glob("*.py")),
    *(_TRAINING / name for name in ("data.py", "dataset_files.py", "row_files.py", "row_kinds.py")),
)
"""The sources that decide which tokens come of a file: another version of any of them makes its own."""
_FIELDS = ("max_length", "completion_only_loss", "thoughts", "prompt_template")
_SPARE = 1_000_000_000
"""Bytes that are left free on the disk."""
_ABANDONED = 86_400
"""Seconds after which a half-written set is taken to be abandoned."""
_PIECE = 1 << 20
_FACTS = "rows.json"


def is_large(files: Files) -> bool:
    """Whether it takes long to tokenize them."""
    return sum(path.stat().st_size for path in files.paths) >= LARGE


def key(
    config: TrainConfig, shape: Shape, files: Files, tokenizer: Path, limit: int | None = None, watch: Watch | None = None
) -> str:
    """A name for the tokens of these files: of their content, the tokenizer's files, the fields and the code that decide."""
    digest = hashlib.sha256()

    def say(*parts: object) -> None:
        digest.update(json.dumps(parts, default=str).encode() + b"\n")

    say(shape.kind, shape.columns, shape.besides, limit, *(getattr(config, name) for name in _FIELDS))
    say(*(version(name) for name in ("transformers", "tokenizers")))
    for source in _MADE_BY:
        say(source.name, _sha256(source))
    for path in sorted(path for path in tokenizer.iterdir() if path.suffix in (".json", ".model", ".txt", ".jinja")):
        say(path.name, _sha256(path))
    for path in files.paths:
        say("".join(path.suffixes), _sha256(path, watch))
    return digest.hexdigest()[:40]


def _sha256(path: Path, watch: Watch | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            if watch is not None:
                watch.check()
            digest.update(piece)
    return digest.hexdigest()


def kept(name: str, make: Callable[[Sink | None], Rows]) -> Rows:
    """What is kept under a key, or what ``make`` gives, kept from then on. Of two processes one makes it, and one waits."""
    store = cache.default()
    folder = store.folder / "rows"
    if not store.limit or not caches.writable(folder) or shutil.disk_usage(folder).free < _SPARE:
        return make(None)
    with _alone(folder / f"{name}.lock"):
        if (found := _opened(folder / name)) is not None:
            return found
        draft = folder / f"{name}.part"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
            _write(draft, make)
            shutil.rmtree(folder / name, ignore_errors=True)  # one that is damaged
            os.replace(draft, folder / name)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            return make(None)  # the disk is full: memory may do
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _tidy(folder, store.limit, name)
        found = _opened(folder / name)
    return make(None) if found is None else found


def _write(folder: Path, make: Callable[[Sink | None], Rows]) -> None:
    with (folder / "ids").open("wb") as ids, (folder / "loss").open("wb") as loss:
        sink = Sink(ids, loss)
        rows = make(sink)
    np.save(folder / "ends.npy", np.array(sink.ends, np.int64))
    first = None if rows.refusal is None else [rows.refusal.what, rows.refusal.where, rows.refusal.remedy]
    facts = {name: getattr(rows, name) for name in ("total", "empty", "truncated", "without_loss", "refused", "single_turns")}
    (folder / _FACTS).write_text(json.dumps(facts | {"refusal": first}), "utf-8")


def _opened(folder: Path) -> Rows | None:
    """The set in a folder; None where there is none that is whole."""
    try:
        facts = json.loads((folder / _FACTS).read_text("utf-8"))
        ends = np.load(folder / "ends.npy")
        many = int(ends[-1]) if len(ends) else 0
        if [(folder / part).stat().st_size for part in ("ids", "loss")] != [4 * many, many]:
            return None
        os.utime(folder / _FACTS)
        ids = np.memmap(folder / "ids", np.int32, "c") if many else np.zeros(0, np.int32)
        loss = np.memmap(folder / "loss", np.bool_, "c") if many else np.zeros(0, np.bool_)
        refusal = (
            Refused(facts["refusal"][0], where=facts["refusal"][1], remedy=facts["refusal"][2]) if facts["refusal"] else None
        )
        return Rows(TokenRows(ids, loss, ends), **facts | {"refusal": refusal})
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process does the same, where the file system has locks."""
    with path.open("wb") as file:
        take_lock(file, wait=True)
        yield


def _tidy(folder: Path, limit: int, newest: str) -> None:
    """Remove the least recently used until all takes ``limit`` bytes at most, and what a crash left half written."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix == ".part" and time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir() and not path.suffix:
                size = sum(part.stat().st_size for part in path.iterdir())
                found.append(((path / _FACTS).stat().st_mtime_ns, size, path))
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found, key=lambda one: one[0]):
        if held <= limit:
            break
        if path.name != newest:
            shutil.rmtree(path, ignore_errors=True)
            (folder / f"{path.name}.lock").unlink(missing_ok=True)
            held -= size
