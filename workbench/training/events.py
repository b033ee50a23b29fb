"""Events of a run: JSON objects, a line each, one file per writer.

Covers writing (whole lines, each with its kind ``k``, ``t`` in monotonic nanoseconds, ``seq`` and ``attempt``) and reading
(incremental, several files merged, a torn last line left for later). Does not say what an event means: the writers do.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class EventWriter:
    """Appends events to one file; every emitted event is in the kernel's hands when ``emit`` returns.

    Safe to call from several threads. NaN and infinities become null (JSON has neither). After a line that a full disk or the
    end of the process cut short, the next one starts on a line of its own.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self.attempt = attempt
        self._lock = threading.Lock()
        self._seq = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def emit(self, k: str, /, *, t: int | None = None, **fields: Any) -> None:
        """Appends one event of kind ``k`` at ``t`` (default: now). Raises OSError where the disk is full."""
        self.emit_all([{"k": k, "t": time.monotonic_ns() if t is None else t, **fields}])

    def emit_all(self, events: Iterable[Event]) -> None:
        """Appends several events in one write; each must have ``k`` and may have ``t``."""
        with self._lock:
            lines = []
            for event in events:
                head = {"k": event["k"], "t": event.get("t", time.monotonic_ns()), "seq": self._seq, "attempt": self.attempt}
                lines.append(json.dumps(_finite({**head, **event}), separators=(",", ":"), allow_nan=False) + "\n")
                self._seq += 1
            data = ("\n" if self._torn else "").encode() + "".join(lines).encode()
            while lines and data and self._file >= 0:
                self._torn = True
                data = data[os.write(self._file, data) :]  # on a full disk first a part, then OSError
                self._torn = bool(data)

    def close(self) -> None:
        """Closes the file; twice is fine, and a later ``emit`` is dropped."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


class EventReader:
    """Reads what is new since the last ``poll`` in a folder's ``events-*.jsonl``. Cheap where nothing is new.

    Of a run on several processes it reads rank 0's and the supervisor's, which cover the whole run; the others too if asked to.
    ``check()`` is called before each look and may raise. Events of the kinds in ``without`` are passed over.
    """

    def __init__(
        self, folder: Path, every_rank: bool = False, check: Callable[[], object] = lambda: None, without: Iterable[str] = ()
    ) -> None:
        self._folder, self._every_rank, self._check = folder, every_rank, check
        self._passed_over = tuple(f'{{"k":"{kind}"'.encode() for kind in without)
        self._offsets: dict[Path, int] = {}

    def poll(self) -> list[Event]:
        """New events in order of time. An unfinished last line is read when it is whole; one that is no JSON is passed over."""
        self._check()
        new: list[Event] = []
        for path in sorted(self._folder.glob("events-*.jsonl")):
            if not self._every_rank and path.name.startswith("events-rank") and path.name != "events-rank0.jsonl":
                continue
            offset = self._offsets.get(path, 0)
            try:
                if path.stat().st_size <= offset:
                    continue
                with path.open("rb") as handle:
                    handle.seek(offset)
                    data = handle.read()
            except OSError:
                continue
            whole = data.rfind(b"\n") + 1
            self._offsets[path] = offset + whole
            for line in data[:whole].splitlines():
                if line.startswith(self._passed_over):
                    continue
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "k" in event and "t" in event:
                    new.append(event)
        new.sort(key=lambda e: (e.get("attempt", 1), e["t"]))
        return new


def read_events(folder: Path) -> list[Event]:
    """All events so far, of worker and supervisor, in order of attempt and time."""
    return EventReader(folder).poll()


def latest_steps(events: Iterable[Event]) -> list[Event]:
    """The step events in order of ``n``; where a resumed run took a step again, the newest attempt's."""
    best: dict[int, Event] = {}
    for event in events:
        if event["k"] == "step":
            known = best.get(event["n"])
            if known is None or event["attempt"] >= known["attempt"]:
                best[event["n"]] = event
    return [best[n] for n in sorted(best)]
