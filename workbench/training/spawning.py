"""Starting a run's supervisor in a process of its own, and reaping those that have ended.

The process gets the run's folder and nothing else, and the token where it has to do with the Hub. Does not check what is to be
run: ``launching`` and ``Run.resume`` do.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from huggingface_hub import get_token

from workbench.errors import RunError
from workbench.text import listed
from workbench.training.config import TrainConfig
from workbench.training.environment import for_supervisor
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder

_children: dict[int, subprocess.Popen[bytes]] = {}  # kept for as long as they live, whatever becomes of their Run


def token_for(config: TrainConfig, fetches: bool) -> str | None:
    """The token that huggingface_hub knows, for a run that fetches its model or is pushed; None for any other."""
    return get_token() if fetches or config.push_to_hub else None


def spawn(
    folder: RunFolder, attempt: int, others: Sequence[str], token: str | None = None, warnings: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Starts the supervisor in a session of its own, so that no signal to the notebook reaches it; ``others`` are going on.

    ``token`` goes through a pipe: no file, argument or environment holds it. ``warnings``: what else the run's events are to
    say from the start; "" is nothing.
    """
    try:
        shutil.rmtree(folder.control, ignore_errors=True)
        folder.control.mkdir()
        folder.reserve()
        said = list(filter(None, warnings))
        if others:
            text = f"{listed(others)} went on when this run was launched: runs on one machine share its memory and its time."
            said.append(text)
        if said:
            writer = EventWriter(folder.events("launch"), attempt)
            writer.emit_all({"k": "log", "level": "warning", "text": text} for text in said)
            writer.close()
    except OSError as error:
        what = f"the run's folder cannot be written ({error.strerror})."
        raise RunError(what, where=str(folder.root), remedy="Make it writable, or free some space on its disk.") from error
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workbench.training.watch.supervisor", str(folder.root)],
            stdin=subprocess.DEVNULL if token is None else subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder.root,
            env=for_supervisor(),
            start_new_session=True,
        )
    if token is not None and process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it ended at once, which its status says
            pipe.write(f"{token}\n".encode())
    _children[process.pid] = process
    return process


def reap() -> None:
    """Reaps supervisors that have ended, so that they do not stay zombies of this process."""
    for pid, process in list(_children.items()):
        if process.poll() is not None:
            del _children[pid]
