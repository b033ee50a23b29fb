"""A model on the Hugging Face Hub, read by byte range: headers when it is opened, then only the bytes that are asked for.

Covers opening by id and revision, pinned to the commit that this is now; reading from Hugging Face's own cache what is there,
and from the workbench's (``cache.py``) what was read before; and what to do without network. Endpoint, token, cache folder and
offline mode are huggingface_hub's (1.x and 2.x). Never unpickles anything and never runs a model's code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import tqdm, validate_repo_id

from workbench.errors import ModelError, Unreachable, WholeFileOnly
from workbench.progress import Cancelled, Progress
from workbench.sources import cache, listing
from workbench.sources.base import Reader, Source, Watch
from workbench.sources.cache import Cache
from workbench.sources.crew import Crew, crew, reading_ahead
from workbench.sources.faults import HTTP_ERROR, as_model_error
from workbench.sources.files import (
    CONFIG,
    INDEX,
    MAX_JSON,
    SINGLE,
    configuration,
    join,
    parse_json,
    refuse_adapter,
    weight_files,
)
from workbench.sources.header import Entry, Header, read_header
from workbench.sources.listing import Listing
from workbench.sources.local import LocalSource, fetching, fill, opened
from workbench.sources.ranges import Remote

_AT_ONCE = 8
"""Files requested at a time while a model is opened."""
_SINGLE_GUESS = 32_768
"""Bytes of a header requested at first where its length is not known: most single files' headers fit."""
_START_GUESS, _ENTRY_GUESS = 64, 84
"""Bytes of a header before its tensors, and of a tensor's entry beside its name."""
T = TypeVar("T")


def open_hub(
    repo: str,
    revision: str | None = None,
    token: str | None = None,
    *,
    download: bool = False,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Source:
    """The model ``repo`` (``owner/name``) at a branch, tag or commit; see ``open_model``."""
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise as_model_error(error, repo) from error
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        what = "The token is none: it is empty or has characters that no token has."
        raise ModelError(what, where=repo, remedy="Copy it again, without quotes and line breaks.")
    kept, how = cache.default(), (download, progress, cancelled)
    with crew(_AT_ONCE) as team:
        try:
            found = team.result(team.submit(listing.ask, repo, revision, token, team.stop), Watch(0, cancelled=cancelled))
        except Unreachable as error:
            here = _without_network(repo, revision, kept)
            if isinstance(here, LocalSource):
                return here
            if here is None:
                raise
            try:
                return HubSource(here, kept, token).loaded(team, *how)
            except Unreachable:
                raise error from None
        listing.keep(kept, found, revision)
        return HubSource(found, kept, token).loaded(team, *how)


def _without_network(repo: str, revision: str | None, kept: Cache) -> LocalSource | Listing | None:
    """What there is of a model on this machine."""
    for file in (SINGLE, INDEX):
        path = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(path, str):
            try:
                return LocalSource(Path(path).parent, name=repo)
            except ModelError:  # an incomplete snapshot; the workbench's own cache may have more
                break
    return listing.remembered(kept, repo, revision)


class HubSource(Source):
    """A repository at one commit. ``revision`` is that commit; ``path`` is its folder if Hugging Face's cache has all of it."""

    def __init__(self, found: Listing, kept: Cache, token: str | None) -> None:
        self.name, self.revision, self.licence = found.repo, found.commit, found.licence
        self.config: dict[str, Any] = {}
        self.path: Path | None = None
        self._listing, self._cache, self._token = found, kept, token
        self._where: dict[str, tuple[str, Entry]] = {}
        self._local: dict[str, Path] = {}
        self._sizes: dict[str, int] = {}
        self._remote = Remote(found.repo, found.commit, self._sizes, token)

    def loaded(self, team: Crew, download: bool, progress: Progress | None, cancelled: Cancelled | None) -> HubSource:
        """Reads the configuration, the index and every header; the source itself, ready to be used.

        ``download``: take whole files where the server gives no parts. ``progress`` counts headers, or bytes of whole files.
        """
        quiet = Watch(0, cancelled=cancelled)
        listed = self._listing.files.keys()

        def read(file: str) -> dict[str, Any]:
            return self._json(file, team, quiet)

        refuse_adapter(listed, read, self._place)
        files = weight_files(listed, read, self._place)
        self.config = configuration(listed, read)
        names = list(dict.fromkeys(files.values()))
        self._locate(names, team, quiet)
        guesses = _guesses(files)

        def header(file: str) -> Header:
            return self._header(file, guesses[file], team)

        try:
            headers = list(_each(names, header, team, Watch(len(names), progress, cancelled), count=1))
        except WholeFileOnly:
            if not download:
                raise
            self._take(names, team, Watch(sum(self._sizes[name] for name in names), progress, cancelled))
            headers = list(_each(names, header, team, quiet))
        self._where = join(files, zip(names, headers, strict=True), self._place)
        self.path = self._snapshot([*names, *([CONFIG] if CONFIG in self._listing.files else [])])
        return self

    def entries(self) -> dict[str, tuple[str, Entry]]:
        """As ``Source`` has it."""
        return self._where

    @property
    def files(self) -> Collection[str]:
        """Names of the repository's files at this commit."""
        return self._listing.files.keys()

    @property
    def folder(self) -> Path:
        """Where Hugging Face's cache has, or is to have, the files of this commit."""
        return _folder(self.name) / "snapshots" / self.revision

    def blob(self, file: str) -> Path | None:
        """Where that cache has, or is to have, a file's content; None where the listing does not say what that is."""
        content = self._listing.files[file].content
        return _folder(self.name) / "blobs" / content if content else None

    def missing(self, files: Sequence[str]) -> dict[str, int]:
        """Of these files, those that are not in ``folder``, with the bytes to fetch: 0 where the cache has the content."""
        with crew(_AT_ONCE) as team:
            self._locate(files, team, Watch(0))
        absent = [file for file in files if not (self.folder / file).is_file()]
        return {file: 0 if file in self._local else self._sizes[file] for file in absent}

    def piece(self, file: str, begin: int, end: int, team: Crew) -> bytearray:
        """Bytes of a file from the Hub, which no cache keeps."""
        return self._remote.fetch(file, begin, end, team.stop, team.got)

    def take(self, file: str, team: Crew) -> Path:
        """The file in ``folder``; downloaded whole if the cache has not its content."""
        return take(self.name, file, self.revision, self._token, team)

    def _place(self, file: str) -> str:
        return f"{self.name}/{file}" if file else self.name

    @contextmanager
    def _open(self, file: str, begin: int, end: int, watch: Watch) -> Iterator[Reader]:
        path = self._local.get(file)
        if path is None:
            with reading_ahead(partial(self._piece, file), begin, end, watch) as read:
                yield read
        else:
            with opened(path) as descriptor:
                yield lambda offset, into: fill(descriptor, offset, into, path, watch)

    def _piece(self, file: str, begin: int, end: int, team: Crew) -> bytes | bytearray:
        """Bytes of a file that is not here: from the workbench's cache, or from the Hub and then into it."""
        key = self._key(file, f"{begin}-{end}")
        kept = self._cache.get(key)
        if kept is not None and len(kept) == end - begin:
            team.got(len(kept))
            return kept
        data = self._remote.fetch(file, begin, end, team.stop, team.got)
        self._cache.put(key, data)
        return data

    def _header(self, file: str, guess: int, team: Crew) -> Header:
        size = self._sizes[file]
        if file in self._local:
            with self._open(file, 0, 0, Watch(0)) as read:
                return read_header(fetching(read), size, self._place(file))
        key = self._key(file, "header")
        kept = self._cache.get(key)
        have = bytearray(kept or b"")

        def fetch(offset: int, count: int) -> bytes:
            if offset + count > len(have):
                end = max(offset + count, min(guess, size))
                have.extend(self._remote.fetch(file, len(have), end, team.stop, lambda _: None))
            return bytes(have[offset : offset + count])

        header = read_header(fetch, size, self._place(file))
        if kept is None:
            self._cache.put(key, have[: 8 + int.from_bytes(have[:8], "little")])
        return header

    def _json(self, file: str, team: Crew, watch: Watch) -> dict[str, Any]:
        self._locate([file], team, watch)
        size = self._sizes[file]
        if size > MAX_JSON:
            raise ModelError("It is larger than such a file ever is.", where=self._place(file))
        raw = bytearray(size)
        with self._open(file, 0, size, watch) as read:
            read(0, memoryview(raw))
        return parse_json(bytes(raw), self._place(file))

    def _locate(self, files: Sequence[str], team: Crew, watch: Watch) -> None:
        """Finds out how large the files are, and which of them are in Hugging Face's cache."""

        def size(file: str) -> int:
            return listing.size_of(self._listing, file, self._token, team.stop)

        for file, found in zip(files, _each(files, size, team, watch), strict=True):
            self._sizes[file] = found
            path = self._cached(file)
            if path is not None and path.stat().st_size == found:
                self._local[file] = path

    def _cached(self, file: str) -> Path | None:
        """The file in Hugging Face's cache: of this commit, or the same content of another."""
        path = try_to_load_from_cache(self.name, file, revision=self.revision)
        if isinstance(path, str):
            return Path(path)
        blob = self.blob(file)
        return blob if blob is not None and blob.is_file() else None

    def _take(self, files: Sequence[str], team: Crew, watch: Watch) -> None:
        for file in files:
            self._local[file] = team.result(team.submit(self.take, file, team), watch)

    def _snapshot(self, files: Sequence[str]) -> Path | None:
        """The folder in Hugging Face's cache, if all of these files are in it."""
        return self.folder if all((self.folder / file).is_file() for file in files) else None

    def _key(self, file: str, part: str) -> str:
        content = self._listing.files[file].content or f"{self.revision}/{file}"
        return f"{constants.ENDPOINT}\n{self.name}\n{content}\n{part}"


def _each(files: Sequence[str], work: Callable[[str], T], team: Crew, watch: Watch, count: int = 0) -> Iterator[T]:
    """``work`` of each file, several at a time, in their order; ``count``: what each adds to the progress."""
    for future in [team.submit(work, file) for file in files]:
        yield team.result(future, watch)
        if count:
            watch.moved(count)


def _guesses(files: Mapping[str, str]) -> dict[str, int]:
    """File → bytes that its header probably has, estimated from the names that the index gives each."""
    found: dict[str, int] = {}
    for name, file in files.items():
        found[file] = found.get(file, _START_GUESS) + len(name) + _ENTRY_GUESS if name else _SINGLE_GUESS
    return found


def _folder(repo: str) -> Path:
    """The repository's folder in Hugging Face's cache, whose layout is documented."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def take(repo: str, file: str, commit: str, token: str | None, team: Crew) -> Path:
    """The file in Hugging Face's cache, downloaded if it is not there yet; ModelError where that fails."""
    arrived = 0

    class Bar(tqdm):
        """A bar that draws nothing: it reports what arrives, and ends the download once it is no longer wanted."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if team.stop.is_set():
                raise InterruptedError("The download was cancelled.")
            nonlocal arrived
            arrived += int(n or 0)
            team.got(int(n or 0))
            return None

    # huggingface_hub 1.0 has no tqdm_class here: it shows a bar of its own, and ends only with the file.
    ours = {"tqdm_class": Bar} if "tqdm_class" in inspect.signature(hf_hub_download).parameters else {}
    download: Any = hf_hub_download
    try:
        path = Path(download(repo, file, revision=commit, token=token, **ours))
    except InterruptedError:
        raise
    except (OSError, ValueError, HTTP_ERROR) as error:
        raise as_model_error(error, repo, f"{repo}/{file}") from error
    team.got(path.stat().st_size - arrived)
    return path
