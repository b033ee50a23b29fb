"""What rings while the reader is elsewhere: a run that stalls, and every end of one. Supervisor only; imports no torch.

Covers noticing a stall by the run's own steps, the events that report it, and a webhook where one is asked for: a POST of a
few words of JSON to the address in the variable WORKBENCH_WEBHOOK. Whoever has that address can write there, so it is a secret:
it stands in a variable, and not in a field of ``TrainConfig``, which is written to disk, shown and copied. It is in no event,
log or card, and the process that trains never has it. What the page does is ``widgets``' part.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from typing import Any

from workbench.text import counted
from workbench.training.events import EventReader
from workbench.training.folder import EARLY, RunFolder

LEAST, TIMES, PACE = 60.0, 10.0, 20
"""A stall: no step for so many seconds, and so many times as long as the longest of the last ``PACE`` steps took."""
ELSEWHERE = 10
"""So many times longer where the run is between steps: while it measures, samples or saves."""
EVERY = 5.0
"""Seconds between two looks at the run's events."""
TIMEOUT = 5.0
"""Seconds that a webhook may take; a run's last word waits as long."""
_DIVERGED = ("nan_loss", "overflow")
_MOVES = ("step", "eval", "checkpoint", "generated")
_STEPPING = (("train", "begin"), ("first_forward", "end"), ("evaluate", "end"), ("save", "end"))
"""Edges of phases after which steps are to come."""
_HEADERS = {"User-Agent": "qlora-workbench", "Content-Type": "application/json"}


class Alerts:
    """One attempt's. ``emit`` records an event; ``webhook`` is an address, or empty."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: int,
        emit: Callable[..., None],
        webhook: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._attempt, self._emit, self._webhook, self._now = folder.root.name, attempt, emit, webhook, now
        self._reader = EventReader(folder.root, without=("sample", "page", "prefetch_req"))
        self._gaps: deque[float] = deque(maxlen=PACE)
        self._moved: float | None = None
        self._stepped: float | None = None
        self._stepping = self._stalled = False
        self._looked = -EVERY

    def look(self) -> None:
        """Reads what the run did, once in a while; a stall rings once, and its end is reported."""
        now = self._now()
        if now < self._looked + EVERY:
            return
        self._looked = now
        for event in self._reader.poll():
            if event.get("attempt") == self._attempt:
                self._take(event)
        patience = self._patience()
        if patience is None or self._moved is None or now - self._moved < patience:
            return
        if not self._stalled:
            self._stalled = True
            self._emit("alert", event="stalled")
            waited = counted(round(now - self._moved), "second")
            text = f"No step for {waited}: the longest of the last ones took {max(self._gaps):.1f} s."
            self._emit("log", level="warning", text=text)
            self.ring("stalled")

    def _take(self, event: dict[str, Any]) -> None:
        at = event["t"] / 1e9
        if event["k"] == "phase":
            self._stepping = (event["name"], event["edge"]) in _STEPPING
        elif event["k"] not in _MOVES:
            return
        if event["k"] == "step":
            if self._stepped is not None:
                self._gaps.append(at - self._stepped)
            self._stepped = at
        self._moved = at
        if self._stalled:
            self._stalled = False
            self._emit("alert", event="")

    def _patience(self) -> float | None:
        """Seconds without a sign after which the run stalls; None before its pace is known."""
        if len(self._gaps) < 2:
            return None
        return max(LEAST, TIMES * max(self._gaps)) * (1 if self._stepping else ELSEWHERE)

    def ended(self, state: str, kind: str) -> None:
        """The run ended: rings, and waits for the webhook within bounds."""
        event = "diverged" if kind in _DIVERGED else "finished early" if kind == EARLY else state
        if (thread := self.ring(event)) is not None:
            thread.join(TIMEOUT + 1)

    def ring(self, event: str) -> threading.Thread | None:
        """Asks the webhook on a thread of its own; one that fails is a warning, which does not name it."""
        if not self._webhook:
            return None

        def post() -> None:
            if why := _post(self._webhook, {"run": self._name, "event": event, "text": f"{self._name}: {event}"}):
                self._emit("log", level="warning", text=f"The webhook was not told that the run {event}: {why}.")

        thread = threading.Thread(target=post, name="webhook", daemon=True)
        thread.start()
        return thread


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nowhere: nothing is sent to an address that was not given."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(url: str, words: dict[str, str]) -> str:
    """Why it failed, without the address; empty where it did not."""
    try:
        request = urllib.request.Request(url, json.dumps(words).encode(), _HEADERS, method="POST")
        with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, ValueError) as error:  # their words may hold the address
        return type(error).__name__


def webhook_fault(url: str) -> str:
    """What is wrong with an address, without it; empty where nothing is."""
    good = url.startswith(("https://", "http://")) and url.isprintable() and " " not in url
    return "" if good else "it must be an address that begins with https:// or http://."
