"""The part of a Hub's HTTP that a push needs: who is logged in, a new repository, and a commit whose files come in its body.

Every file is one that the Hub takes in the commit itself (``regular``), however large; large-file storage and Xet are not here.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

OWNER = "someone"
"""Whose account every accepted token is of."""
_COMMIT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/main")
Answer = tuple[int, Any]


def answer(hub: HubServer, path: str, body: bytes) -> Answer | None:
    """The status and JSON for a request of one who may write; None where this is no part of it."""
    if path == "/api/whoami-v2":
        return 200, {"type": "user", "name": OWNER, "auth": {"type": "access_token", "accessToken": {"role": hub.role}}}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if match := _COMMIT.fullmatch(path):
        return {"preupload": _preupload, "commit": _commit}[match["what"]](hub, match["repo"], body)
    return None


def _create(hub: HubServer, asked: dict[str, Any]) -> Answer:
    name = f"{asked.get('organization') or OWNER}/{asked['name']}"
    there = name in hub.repos
    if not there:
        private = asked.get("private", asked.get("visibility") == "private")
        hub.add(name, {}, private=bool(private))
    return 409 if there else 200, {"url": f"{hub.url}/{name}", "name": name}


def _preupload(hub: HubServer, repo: str, body: bytes) -> Answer:
    files = json.loads(body)["files"]
    return 200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}


def _commit(hub: HubServer, repo: str, body: bytes) -> Answer:
    for line in map(json.loads, body.splitlines()):
        if line["key"] == "file":
            hub.repos[repo].files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    return 200, {"commitUrl": f"{hub.url}/{repo}/commit/{'c' * 40}", "commitOid": "c" * 40}
