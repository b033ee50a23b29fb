"""What a run was begun with, and whether it is still the same: fingerprints of its base, tokenizer, chat template and rows.

Covers taking them, which is cheap however large the files are, hashing whole files later, beside the training, and comparing
them with what is there now. Content alone counts: a file that was moved, copied or touched is the same one. They lie in
``fingerprints.json`` in the run's folder; a run without that file has nothing to compare with. Which files those are is
``origins``' part. Imports no torch.

What taking or comparing reads at once, of each part: everything where that is at most ``AT_ONCE`` bytes. Otherwise, of each
file, a safetensors header, which opening the model reads as well, and pieces of ``PIECE`` bytes at even distances: at most
``PIECES`` of them over all files, or ``LEAST`` in each where there are very many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.atomic import replacing
from workbench.errors import RunError
from workbench.progress import Cancelled, Progress
from workbench.text import printable

AT_ONCE = 32 << 20
PIECE = 4_096
PIECES, MOST, LEAST = 512, 64, 4
"""Pieces over all files of a part; at most, and at least, in one file."""
_FILE = "fingerprints.json"
_STEP = 1 << 20
_SAVED_AFTER = 1 << 30
"""Bytes that are hashed between two writings of the file."""
_SAID = {
    "missing": "is no longer there",
    "new": "was not there",
    "header": "has another header (names, dtypes, shapes or places of tensors)",
    "content": "has other content",
    "appended": "begins as it did, and more was appended",
    "commit": "is of another commit",
}

Content = Path | bytes
"""A file, or a value that was found inside one, as bytes."""
Contents = Mapping[str, Sequence[tuple[str, Content]]]
"""Part → its files in their order, by name."""
Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Fingerprint:
    """One file, or one value, as it was."""

    name: str
    size: int
    """In bytes."""
    sha256: str = ""
    """Of all of it; empty while that is not known."""
    header: str = ""
    """SHA-256 of a safetensors header, with the length in front of it."""
    sampled: str = ""
    """SHA-256 of the pieces, where the whole was too large to be read at once."""
    pieces: int = 0
    """How many pieces."""
    path: str = ""
    """Where the file was; empty for a value."""
    state: tuple[int, ...] = ()
    """Its times of modification and change in nanoseconds, and its inode: while they are the same it need not be read again."""


@dataclass(frozen=True)
class Fingerprints:
    """All of a run."""

    parts: dict[str, tuple[Fingerprint, ...]]
    commit: str | None = None
    """The commit of a base from the Hub."""
    accepted: tuple[str, ...] = ()
    """What had changed when the run was resumed all the same, a sentence each."""


@dataclass(frozen=True)
class FileChange:
    """One file that is no longer what it was."""

    part: str
    name: str
    what: str
    """``missing``, ``new``, ``header``, ``content``, ``appended`` or ``commit``."""
    sizes: tuple[int, int] | None = None
    """Bytes then and now."""

    def __str__(self) -> str:
        sizes = "" if self.sizes is None else f" ({self.sizes[0]:,} bytes then, {self.sizes[1]:,} now)"
        return f"{self.part}: {printable(self.name)} {_SAID[self.what]}{sizes}"


class Changed(RunError):
    """A run's base, tokenizer, chat template or rows are no longer what it was begun with; ``changes`` says which, and how."""

    changes: tuple[FileChange, ...] = ()


def take(contents: Contents, commit: str | None = None) -> Fingerprints:
    """The fingerprints of what is there now. Raises ``RunError`` where a file cannot be read."""
    parts = {}
    for part, found in contents.items():
        sizes = [_size(value) for _, value in found]
        pieces = max(LEAST, min(MOST, PIECES // len(sizes))) if sum(sizes) > AT_ONCE else 0
        parts[part] = tuple(_taken(name, value, pieces) for name, value in found)
    return Fingerprints(parts, commit)


def _taken(name: str, value: Content, pieces: int) -> Fingerprint:
    with _opened(value) as (read, size, state):
        pieces = 0 if size <= pieces * PIECE else pieces
        digest = _sha256(read, _spans(size, pieces))
        whole, sampled = ("", digest) if pieces else (digest, "")
        path = "" if isinstance(value, bytes) else str(value)
        return Fingerprint(name, size, whole, _header(name, read, size), sampled, pieces, path, state)


def changes(
    known: Fingerprints,
    contents: Contents,
    *,
    whole: bool = True,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> tuple[FileChange, ...]:
    """The files of ``contents`` that have changed; parts that were not recorded are skipped.

    ``whole``: once nothing else has changed, files whose whole hash is known and that were touched since are hashed again.
    ``progress(done, total)`` counts their bytes, and once ``cancelled()`` says yes the call raises InterruptedError.
    """
    found: list[FileChange] = []
    touched: list[tuple[str, Fingerprint, Path]] = []
    for part in contents.keys() & known.parts.keys():
        pairs, odd = _paired(known.parts[part], contents[part])
        found += [FileChange(part, name, what) for name, what in odd]
        for then, now in pairs:
            with _opened(now) as (read, size, state):
                if what := _difference(then, read, size):
                    found.append(FileChange(part, then.name, what, (then.size, size) if size != then.size else None))
                elif then.pieces and then.sha256 and state != then.state and isinstance(now, Path):
                    touched.append((part, then, now))
    if whole and not found:
        done, total = 0, sum(then.size for _, then, _ in touched)
        for part, then, now in touched:
            with _opened(now) as (read, size, _):
                spans = _watched(_spans(size), cancelled, progress and (lambda at, of=done: progress(of + at, total)))
                if _sha256(read, spans) != then.sha256:
                    found.append(FileChange(part, then.name, "content"))
            done += then.size
    return tuple(sorted(found, key=lambda change: (change.part, change.name)))


def _paired(
    then: Sequence[Fingerprint], now: Sequence[tuple[str, Content]]
) -> tuple[list[tuple[Fingerprint, Content]], list[tuple[str, str]]]:
    """Pairs of a file then and now: by their order, so that other names do not matter, or by name where some came or went."""
    if len(then) == len(now):
        return [(old, value) for old, (_, value) in zip(then, now, strict=True)], []
    here, there = dict(now), {old.name for old in then}
    odd = [(old.name, "missing") for old in then if old.name not in here]
    odd += [(name, "new") for name in here if name not in there]
    return [(old, here[old.name]) for old in then if old.name in here], odd


def _difference(then: Fingerprint, read: Read, size: int) -> str:
    """What is different, empty for nothing; no more is read than when the fingerprint was taken."""
    if then.header and _header(then.name, read, size) != then.header:
        return "header"
    if size < then.size or _sha256(read, _spans(then.size, then.pieces)) != (then.sampled or then.sha256):
        return "content"
    return "appended" if size > then.size else ""


def hash_whole(run: Path, cancelled: Cancelled) -> None:
    """Hashes what was only sampled, and keeps what comes of it in the run's folder; for beside the training.

    What is no longer the file that was sampled, or becomes another one meanwhile, stays without a whole hash. Ends early, with
    what is done, once ``cancelled()`` says yes; never raises for a disk that is full or a folder that is gone.
    """
    with contextlib.suppress(RunError, OSError):
        known = read(run)
        parts = {part: list(prints) for part, prints in (known.parts if known else {}).items()}
        unsaved = 0

        def save() -> None:
            assert known is not None
            write(run, dataclasses.replace(known, parts={part: tuple(prints) for part, prints in parts.items()}))

        for prints in parts.values():
            for i, then in enumerate(prints):
                if then.sha256:
                    continue
                with contextlib.suppress(RunError):
                    prints[i] = dataclasses.replace(then, sha256=_whole(then, cancelled))
                unsaved += then.size
                if unsaved >= _SAVED_AFTER:
                    save()
                    unsaved = 0
                if cancelled():
                    break
        if unsaved:
            save()


def _whole(then: Fingerprint, cancelled: Cancelled) -> str:
    """The hash of the whole file, empty where that is not, or no longer, the file that was sampled."""
    with _opened(Path(then.path)) as (read, size, state), contextlib.suppress(InterruptedError):
        if (size, state) == (then.size, then.state):
            digest = _sha256(read, _watched(_spans(size), cancelled))
            if _state(os.stat(then.path)) == state:
                return digest
    return ""


def read(run: Path) -> Fingerprints | None:
    """The fingerprints of the run in ``run``; None where none are recorded. ``RunError`` where they cannot be read."""
    path = run / _FILE
    try:
        kept = json.loads(path.read_text("utf-8"))
        parts = {part: tuple(_from_dict(one) for one in files) for part, files in kept["parts"].items()}
        return Fingerprints(parts, kept["commit"], tuple(kept["accepted"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"what the run was begun with cannot be read ({error})."
        raise RunError(
            what, where=str(path), remedy="Remove this file to go on without knowing whether anything changed."
        ) from error


def _from_dict(fields: dict[str, Any]) -> Fingerprint:
    return Fingerprint(**fields | {"size": int(fields["size"]), "state": tuple(fields["state"])})


def write(run: Path, known: Fingerprints) -> None:
    """Puts them into the folder of the run, which must be there; OSError where that cannot be done."""
    with replacing(run / _FILE) as draft:
        draft.write_text(json.dumps(dataclasses.asdict(known), indent=1) + "\n", "utf-8")


@contextlib.contextmanager
def _opened(value: Content) -> Iterator[tuple[Read, int, tuple[int, ...]]]:
    """How to read ``count`` bytes from an offset on, how many there are, and the file's state."""
    if isinstance(value, bytes):
        yield lambda offset, count: value[offset : offset + count], len(value), ()
        return
    try:
        with value.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            yield lambda offset, count: os.pread(file.fileno(), count, offset), stat.st_size, _state(stat)
    except OSError as error:
        if isinstance(error, InterruptedError):
            raise
        what = f"Cannot be read: {error.strerror or error}."
        raise RunError(what, where=str(value), remedy="Check the file and its permissions.") from error


def _size(value: Content) -> int:
    with _opened(value) as (_, size, _):
        return size


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _header(name: str, read: Read, size: int) -> str:
    """Of a file that was opened as safetensors before, so that its header is known to be one."""
    if not name.endswith(".safetensors"):
        return ""
    return _sha256(read, _spans(min(8 + int.from_bytes(read(0, 8), "little"), size)))


def _spans(size: int, pieces: int = 0) -> Iterator[tuple[int, int]]:
    """(offset, count) of all of it, or of so many pieces at even distances, from the first byte to the last."""
    if pieces:
        yield from (((size - PIECE) * i // (pieces - 1), PIECE) for i in range(pieces))
    else:
        yield from ((at, min(_STEP, size - at)) for at in range(0, size, _STEP))


def _watched(
    spans: Iterable[tuple[int, int]], cancelled: Cancelled | None, progress: Callable[[int], object] | None = None
) -> Iterator[tuple[int, int]]:
    for offset, count in spans:
        if cancelled and cancelled():
            raise InterruptedError("The comparison was cancelled.")
        yield offset, count
        if progress:
            progress(offset + count)


def _sha256(read: Read, spans: Iterable[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for offset, count in spans:
        digest.update(read(offset, count))
    return digest.hexdigest()
