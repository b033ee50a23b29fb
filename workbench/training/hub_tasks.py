"""What a run does on the Hub, in a process of its own: ``python -m workbench.training.hub_tasks RUN_DIR fetch|push``.

Covers fetching the model before the worker starts, and pushing what was trained after it. This process alone uses the token:
it reads it from its standard input, a line, and ends once that closes, so that it never outlives the supervisor. It answers in
lines of JSON: ``done`` and ``total`` bytes, and at its end what it did or how it failed. What is partly fetched is kept.
Imports no torch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.progress import Progress
from workbench.sources import open_model
from workbench.sources.fetching import fetch
from workbench.sources.hub import HubSource, open_hub
from workbench.training import model_files, origins
from workbench.training.config import TrainConfig
from workbench.training.folder import RunFolder
from workbench.training.model_checks import check_model
from workbench.training.results.pushing import push
from workbench.training.runs import attach
from workbench.training.watch.endings import ending_of

_APART = 0.2
"""Seconds between two lines of progress, at least."""


def _fetch(folder: RunFolder, token: str | None, progress: Progress) -> dict[str, Any]:
    """Fetches what training needs, then checks what only whole files show, and takes their fingerprints."""
    config = TrainConfig.from_dict(json.loads(folder.config.read_text("utf-8")))
    source = open_hub(config.model, origins.pinned(folder.root, config), token)
    path = source.path
    if isinstance(source, HubSource):
        path = fetch(source, model_files.to_fetch(source), progress)
    assert path is not None
    whole = open_model(path)
    model_files.check(whole)
    check_model(config, whole)
    origins.add_model(folder.root, whole)
    folder.to_fetch.unlink(missing_ok=True)
    return {"folder": str(path)}


def _push(folder: RunFolder, token: str | None, progress: Progress) -> dict[str, Any]:
    return {"address": push(attach(folder.root), token=token)}


_TASKS: Mapping[str, Callable[[RunFolder, str | None, Progress], dict[str, Any]]] = {"fetch": _fetch, "push": _push}


def main(root: str, task: str) -> int:
    """Does the task and says what came of it; the exit code."""
    token = sys.stdin.readline().strip() or None
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    said_at = 0.0

    def say(**fields: Any) -> None:
        text = json.dumps(fields)
        print(text.replace(token, "…") if token else text, flush=True)

    def progress(done: int, total: int) -> None:
        nonlocal said_at
        if (now := time.monotonic()) - said_at >= _APART or done == total:
            said_at = now
            say(done=done, total=total)

    try:
        say(**_TASKS[task](RunFolder(Path(root)), token, progress))
    except Exception as error:  # all of it: the supervisor records how this ended
        ending = ending_of(error, {})
        say(kind=ending.kind, message=ending.message, remedy=ending.remedy)
        return 1
    return 0


def _end_with_supervisor() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    code = main(*sys.argv[1:3])
    sys.stdout.flush()
    os._exit(code)  # a thread may still wait for a socket, or for the supervisor
