"""Files of one repository at one commit, read by byte range over HTTP.

Covers finding where a file really lies (the Hub redirects large ones to another host, which never sees the token), asking for a
range and nothing else, checking that this is what comes, and going on where a connection broke: with a growing pause, or the
one that the server asks for. The client, its proxies, the endpoint, the token and offline mode are huggingface_hub's. Keeps
nothing (``cache.py``).
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers

from workbench.errors import ModelError, Unreachable, WholeFileOnly
from workbench.sources.faults import HTTP_ERROR, as_model_error, status, wait_asked
from workbench.sources.header import shown

FIRST_PAUSE = 0.5
"""Seconds before the first new attempt; doubled each time up to ``LONGEST_PAUSE``, and shortened by up to a half at random."""
LONGEST_PAUSE = 8.0
ATTEMPTS = 5
"""How often in a row something may fail before it is told."""
UNREACHABLE_ATTEMPTS = 2
"""The same where no connection comes about at all."""
PATIENCE = 60.0
"""Seconds that a server may ask to be left alone before it is told instead of waited for."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({401, 403, 404, 410})
_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
T = TypeVar("T")


class Remote:
    """A repository's files. Any number of threads may fetch at a time."""

    def __init__(self, repo: str, commit: str, sizes: Mapping[str, int], token: str | None) -> None:
        self.repo, self.commit, self.sizes = repo, commit, sizes
        self._token = token
        self._located: dict[str, str] = {}

    def fetch(self, file: str, begin: int, end: int, stop: Event, got: Callable[[int], None]) -> bytearray:
        """The bytes from ``begin`` to ``end``; ``got`` is told how many have come, ``stop`` ends it with InterruptedError."""
        data, at = bytearray(end - begin), 0

        def go_on() -> None:
            nonlocal at
            while at < len(data):
                before = at
                for part in self._answers(file, begin + at, end):
                    if stop.is_set():
                        raise InterruptedError("The reading was cancelled.")
                    if len(part) > len(data) - at:
                        raise self._strange(file, "more bytes than asked for")
                    data[at : at + len(part)] = part
                    at += len(part)
                    got(len(part))
                if at == before:
                    raise self._strange(file, "no bytes at all")

        persist(go_on, lambda: at, stop, self.repo, self._where(file))
        return data

    def _answers(self, file: str, begin: int, end: int) -> Iterator[bytes]:
        with self._asked(file, begin, end) as response:
            if response.status_code == 200 and not (begin == 0 and response.headers.get("Content-Length") == str(end)):
                raise self._whole(file)
            if response.status_code != 200:
                self._check_range(file, response.headers.get("Content-Range", ""), begin, end)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise self._strange(file, "compressed bytes")
            yield from response.iter_raw()

    @contextmanager
    def _asked(self, file: str, begin: int, end: int) -> Iterator[Any]:
        """The answer to a request for a range, its body not yet read; follows redirects, and remembers where they led."""
        at_hub = hf_hub_url(self.repo, file, revision=self.commit)
        remembered = self._located.get(file)
        url = remembered or at_hub
        for _ in range(_REDIRECTS):
            headers = build_hf_headers(token=self._token if _origin(url) == _origin(at_hub) else False)
            headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if response.status_code in _EXPIRED and remembered not in (None, at_hub):
                    url, remembered = at_hub, None  # signed addresses expire; the Hub gives a new one
                    continue
                if response.status_code not in _MOVED:
                    hf_raise_for_status(response)
                    self._check_commit(file, response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))
                    self._located[file] = url
                    yield response
                    return
                self._check_commit(file, response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))
                url = self._redirected(file, url, response.headers.get("Location", ""))
        raise self._strange(file, "one redirect after another")

    def _redirected(self, file: str, url: str, location: str) -> str:
        if location.isascii() and location.isprintable():
            with contextlib.suppress(ValueError):
                target = urljoin(url, location)
                scheme, host, _ = _origin(target)
                if host and (scheme == "https" or (scheme == "http" and urlsplit(url).scheme == "http")):
                    return target
        raise self._strange(file, f"a redirect to {shown(location)}")

    def _check_range(self, file: str, content_range: str, begin: int, end: int) -> None:
        match = _CONTENT_RANGE.fullmatch(content_range)
        first, last, total = match.groups() if match else ("", "", "")
        if first != str(begin) or not begin <= int(last) < end or total not in ("*", str(self.sizes[file])):
            raise self._strange(file, f"{shown(content_range)} for bytes {begin}-{end - 1} of {self.sizes[file]}")

    def _check_commit(self, file: str, commit: str | None) -> None:
        if commit is not None and commit != self.commit:
            raise self._strange(file, f"the file of another commit ({shown(commit)})")

    def _whole(self, file: str) -> WholeFileOnly:
        size = self.sizes[file]
        text = f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
        what = f"The server ignores byte ranges: to read a part it would send the whole file, {text}."
        remedy = "Nothing was downloaded. open_model(…, download=True) takes whole files, into Hugging Face's cache."
        return WholeFileOnly(what, size, where=self._where(file), remedy=remedy)

    def _strange(self, file: str, what: str) -> ModelError:
        remedy = "Check HF_ENDPOINT, and whether a proxy is in between; then open the model again."
        return ModelError(f"The server sent {what}.", where=self._where(file), remedy=remedy)

    def _where(self, file: str) -> str:
        return f"{self.repo}/{file}"


def persist(work: Callable[[], T], reached: Callable[[], int], stop: Event, repo: str, where: str = "") -> T:
    """``work()``, again and again while it fails in a way that may pass; ``reached`` tells whether it gets on in between.

    ModelError once it has failed too often in a row, or in a way that does not pass; InterruptedError once ``stop`` is set.
    """
    failed, before = 0, reached()
    while True:
        try:
            return work()
        except (InterruptedError, ModelError):
            raise
        except HTTP_ERROR as error:  # HfHubHTTPError is one
            fault: Exception = error
        except (OSError, ValueError) as error:
            raise as_model_error(error, repo, where) from error
        failed, before = (failed if reached() == before else 0) + 1, reached()
        pause = _pause(fault, failed, repo)
        if pause is None:
            raise as_model_error(fault, repo, where) from fault
        if stop.wait(pause):
            raise InterruptedError("The reading was cancelled.")


def _pause(error: Exception, failed: int, repo: str) -> float | None:
    """Seconds to wait before the next attempt; None: give up."""
    if isinstance(error, HfHubHTTPError):
        if status(error) not in _AGAIN or failed >= ATTEMPTS:
            return None
        asked = wait_asked(error.response)
        if asked is not None:
            return asked if asked <= PATIENCE else None
    elif failed >= (UNREACHABLE_ATTEMPTS if isinstance(as_model_error(error, repo), Unreachable) else ATTEMPTS):
        return None
    return min(LONGEST_PAUSE, FIRST_PAUSE * float(2 ** (failed - 1))) * random.uniform(0.5, 1)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
