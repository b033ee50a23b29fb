"""The models that were opened last, in a small file beside the workbench's cache, so that the next session offers them.

Keeps names and nothing else. Where the file cannot be read or written there are none, and nothing fails.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from workbench.atomic import replacing
from workbench.errors import WorkbenchError
from workbench.sources import cache

KEPT = 8
_LONGEST = 1_000  # characters of a name: a path may be long
_LARGEST = 64_000  # bytes of the file


def recent() -> list[str]:
    """Names of models, the last one first."""
    try:
        with _file().open("rb") as stream:
            values = json.loads(stream.read(_LARGEST))
    except (OSError, ValueError, RecursionError, WorkbenchError):
        return []
    names = values if isinstance(values, list) else []
    return [name for name in names if isinstance(name, str) and 0 < len(name) <= _LONGEST and name.isprintable()][:KEPT]


def remember(name: str) -> None:
    """Put a name first. Another process that does so at the same moment may win."""
    if len(name) > _LONGEST or not name.isprintable():
        return
    names = [name, *(other for other in recent() if other != name)][:KEPT]
    with contextlib.suppress(OSError, WorkbenchError):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(names), "utf-8")


def _file() -> Path:
    return cache.default().folder / "recent.json"
