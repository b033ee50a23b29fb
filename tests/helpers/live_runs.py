"""Waiting for what a live run does, each time with a bound, and reading what it left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import workbench as wb
from workbench.training.events import Event
from workbench.training.folder import RunFolder
from workbench.training.host import create_time


def first(run: wb.Run, wanted: Callable[[Event], bool], seconds: float = 300) -> Event:
    """The first event of the run that is wanted; fails with the run's log if it ends, or the time is up, without one."""
    until = time.monotonic() + seconds
    for event in run.follow(interval=0.02):
        if wanted(event):
            return event
        if time.monotonic() > until:
            break
    raise AssertionError(told(run))


def is_step(n: int, attempt: int = 1) -> Callable[[Event], bool]:
    return lambda e: e["k"] == "step" and e["n"] >= n and e["attempt"] == attempt


def until(run: wb.Run, wanted: Callable[[wb.Run], bool], seconds: float = 300) -> None:
    """Waits for a condition on the run, with a bound."""
    end = time.monotonic() + seconds
    while not wanted(run):
        assert time.monotonic() < end, told(run)
        run.wait(0.02)  # for its end, if that comes sooner


def until_gone(run: wb.Run, pid: int | None, seconds: float = 300) -> None:
    """Waits until there is no such process."""
    assert pid is not None
    until(run, lambda _: create_time(pid) is None, seconds)


def ended(run: wb.Run, state: str, seconds: float = 300) -> wb.RunStatus:
    """The final status; fails with the run's log if it is another one."""
    status = run.wait(seconds)
    assert status.state == state, told(run)
    return status


def told(run: wb.Run) -> str:
    log = run.log.read_text("utf-8") if run.log.exists() else ""
    errors = [event for event in run.events() if event["k"] == "error"]
    return f"{run.status}\n{errors}\n{log}"


def of(run: wb.Run, kind: str) -> list[Event]:
    return [e for e in run.events() if e["k"] == kind]


def adapter_bytes(run: wb.Run) -> bytes:
    assert run.adapter_dir is not None
    return (run.adapter_dir / "adapter_model.safetensors").read_bytes()


def complete(run: wb.Run) -> list[str]:
    """Names of the checkpoints that are whole."""
    return [path.name for path in RunFolder(run.dir).complete_checkpoints()]


def sequence_gaps(run: wb.Run) -> list[str]:
    """Writers and attempts of which an event other than the last is missing: what was flushed, and is lost."""
    gaps = []
    for path in sorted(run.dir.glob("events-*.jsonl")):
        numbers: dict[int, list[int]] = {}
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            numbers.setdefault(event["attempt"], []).append(event["seq"])
        gaps += [f"{path.name}, attempt {a}" for a, seen in numbers.items() if seen != list(range(len(seen)))]
    return gaps


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
