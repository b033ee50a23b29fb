"""A Hub on the loopback interface: the part of its HTTP that huggingface_hub uses, with counting, and with faults on demand.

Two servers on two ports: the Hub itself (``/api/models…``, ``/OWNER/NAME/resolve/REVISION/FILE``), and a content network to
which it redirects large files, as the real one does: to a signed address that needs no token and must not get one. Covers
model information with file sizes, HEAD and GET with ranges, search, private and gated repositories, revisions; writing is
``hub_uploads``' part. Does not cover Xet; a dataset is served like a model of the same name.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.helpers import hub_uploads

TOKEN = "hf_a_token_of_the_tests"
_LARGE = 4_096  # bytes from which on a file is on the content network; the real Hub's limit is higher
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_RESOLVE = re.compile(r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_INFO = re.compile(r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")


@dataclass
class Repo:
    """A repository: its files at each commit, and who may read it."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    private: bool = False
    gated: bool = False
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Other commits → their files."""
    card: dict[str, Any] = field(default_factory=dict)
    downloads: int = 0

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files."""
        if revision in ("main", self.commit):
            return self.commit, self.files
        return (revision, self.older[revision]) if revision in self.older else None


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose path contains ``path``, on ``server`` (``hub`` or ``cdn``).

    ``status``: answer so, with ``body``. ``headers``: put these into the answer. ``cut_after``: send so many bytes of the body
    and hang up. ``ranges`` False: answer 200 with the whole file. ``lie``: a Content-Range of one's own. ``stall``: send half
    of the body and then nothing until the server is closed.
    """

    path: str = ""
    server: str = ""
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    ranges: bool = True
    lie: str | None = None
    stall: bool = False


@dataclass
class Request:
    """One request as it came, and what goes out for it."""

    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0
    """Bytes, status line and headers included."""


class HubServer:
    """The two servers, their repositories, their faults, and what they were asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.role = "write"
        """What the token may do, as the Hub reports it."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._servers = {name: _Server(name, self) for name in ("hub", "cdn")}
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.05,), name="hub-server", daemon=True).start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._servers['hub'].server_port}"

    @property
    def cdn(self) -> str:
        """The content network's address: another host, to a client."""
        return f"http://127.0.0.1:{self._servers['cdn'].server_port}"

    @property
    def sent(self) -> int:
        """Bytes that went over the wire in answers, whole."""
        return sum(request.sent for request in self.requests)

    def add(self, repo: str, folder: Path | dict[str, bytes], **about: Any) -> Repo:
        """Add a repository with the files of a folder, or with these files."""
        files = folder if isinstance(folder, dict) else {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        made = self.repos[repo] = Repo(files, **about)
        return made

    def fail(self, **fault: Any) -> None:
        """Let something go wrong once, or as often as ``times`` says."""
        self.faults.append(Fault(**fault))

    def forget(self) -> None:
        """Start counting anew."""
        self.requests.clear()

    def close(self) -> None:
        """End both servers."""
        self.closing.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def note(self, request: Request) -> None:
        """Count a request."""
        with self._lock:
            self.requests.append(request)

    def fault(self, server: str, path: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.server in ("", server) and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A Hub for as long as the block lasts."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str, hub: HubServer) -> None:
        self.name, self.hub = name, hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        # Small buffers, so that what was sent is near what the client took.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        about = (self.headers.get("Range"), self.headers.get("Authorization"))
        self._request = Request(self.server.name, self.command, self.path, *about)
        self.server.hub.note(self._request)
        self._fault = self.server.hub.fault(self.server.name, self.path)
        if self._fault is not None and self._fault.status:
            self._answer(self._fault.status, self._fault.body, {})
        elif self.server.name == "cdn":
            self._content(unquote(urlsplit(self.path).path).lstrip("/"))
        else:
            self._hub()

    def _hub(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._reader() == "accepted" and (written := hub_uploads.answer(self.server.hub, path, body)):
            self._json(written[1], written[0])
        elif path == "/api/whoami-v2":
            self._refuse(401, "", "Invalid username or password.")
        elif path == "/api/models":
            self._search(parse_qs(parts.query))
        elif match := _INFO.fullmatch(path):
            self._info(match["repo"], match["revision"] or "main")
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match["repo"], match["revision"], match["file"])
        else:
            self._refuse(404, "", "Sorry, we can't find the page you are looking for.")

    def _search(self, query: dict[str, list[str]]) -> None:
        words, limit = query.get("search", [""])[0].lower(), int(query.get("limit", ["1000"])[0])
        tags = query.get("filter", [])
        found = {
            name: repo
            for name, repo in self.server.hub.repos.items()
            if words in name.lower() and not repo.private and (not tags or any(f.endswith(".safetensors") for f in repo.files))
        }
        if query.get("sort") == ["downloads"]:
            found = dict(sorted(found.items(), key=lambda item: -item[1].downloads))
        self._json([
            {"id": name, "modelId": name, "downloads": repo.downloads, "gated": "auto" if repo.gated else False, "tags": tags}
            for name, repo in [*found.items()][:limit]
        ])  # fmt: skip

    def _info(self, name: str, revision: str) -> None:
        repo = self._allowed(name)
        if repo is None:
            return
        at = repo.at(revision)
        if at is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        commit, files = at
        self._json({
            "_id": "0", "id": name, "modelId": name, "sha": commit, "private": repo.private, "disabled": False, "tags": [],
            "gated": "manual" if repo.gated else False, "downloads": repo.downloads, "cardData": repo.card,
            "siblings": [_sibling(file, data) for file, data in files.items()],
        })  # fmt: skip

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._allowed(name)
        if repo is None:
            return
        if repo.gated and self._reader() is None:
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated to access it."
            self._refuse(401, "GatedRepo", f"{message} Please log in.")
            return
        if repo.gated and self._reader() != "accepted":
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            self._refuse(403, "GatedRepo", f"{message} Visit {self.server.hub.url}/{name} to ask for access.")
            return
        at = repo.at(revision)
        if at is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        commit, files = at
        if file not in files:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        data = files[file]
        about = {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(data)}"'}
        if len(data) < _LARGE:
            self._bytes(data, about)
            return
        target = f"{self.server.hub.cdn}/{quote(f'{name}/{commit}/{file}')}?X-Amz-Signature=0123&Expires=99"
        about |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{_sha256(data)}"', "Location": target}
        self._answer(302, f"Found. Redirecting to {target}".encode(), about)

    def _content(self, path: str) -> None:
        owner, name, commit, file = path.split("/", 3)
        at = self.server.hub.repos[f"{owner}/{name}"].at(commit)
        assert at is not None
        data = at[1][file]
        if "X-Amz-Signature" not in self.path:
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
        else:
            self._bytes(data, {"ETag": f'"{_sha256(data)}"'})

    def _reader(self) -> str | None:
        """Who asks: None, ``accepted`` (has accepted every gate), or ``other``."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return "accepted" if token == TOKEN else "other" if token else None

    def _allowed(self, name: str) -> Repo | None:
        repo, reader = self.server.hub.repos.get(name), self._reader()
        if (self.headers.get("Authorization") or "").endswith("_invalid"):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is not None and (not repo.private or reader == "accepted"):
            return repo
        elif reader is None:
            self._refuse(401, "", "Invalid username or password.")
        else:
            self._refuse(404, "RepoNotFound", "Repository not found")
        return None

    def _refuse(self, status: int, code: str, message: str, about: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(about or {})}
        self._answer(status, json.dumps({"error": message}).encode(), headers | {"Content-Type": "application/json"})

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _bytes(self, data: bytes, about: dict[str, str]) -> None:
        match = _RANGE.fullmatch(self.headers.get("Range") or "")
        fault = self._fault or Fault()
        if match is None or not fault.ranges:
            self._answer(200, data, about)
            return
        first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        content_range = fault.lie or f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], about | {"Content-Range": content_range, "Accept-Ranges": "bytes"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._request.status = status
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}", f"Content-Length: {len(body)}"]
        faulty = self._fault.headers if self._fault is not None else {}
        lines += [f"{name}: {value}" for name, value in (headers | faulty).items()]
        self._send("\r\n".join([*lines, "", ""]).encode())
        if self.command == "HEAD":
            return
        fault = self._fault or Fault()
        if fault.stall:
            self._send(body[: len(body) // 2])
            self.server.hub.closing.wait(30)
            self._hang_up()
            return
        for start in range(0, len(body), 16_384):
            part = body[start : start + 16_384]
            if fault.cut_after is not None and start + len(part) > fault.cut_after:
                self._send(part[: fault.cut_after - start])
                self._hang_up()
                return
            self._send(part)

    def _send(self, data: bytes) -> None:
        self._request.sent += len(data)  # before the client can have seen it
        self.connection.sendall(data)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _sibling(file: str, data: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": _git_hash(data)}
    if len(data) >= _LARGE:
        about["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
    return about


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
