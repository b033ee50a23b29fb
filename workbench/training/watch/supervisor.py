"""The process that watches over a run: ``python -m workbench.training.watch.supervisor RUN_DIR``. Imports no torch.

Covers having the model fetched, starting and reaping the worker, measuring its memory from outside, carrying out Stop and
Pause with a bound on every wait, hashing whole files and keeping the mirror meanwhile, having what was trained pushed, and
writing the final status, so that how a run ended is known even when the notebook that launched it is gone; what that status
says is ``postmortem``'s part. A token comes on standard input alone, for the process that needs it. Does not train.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.atomic import take_lock
from workbench.memory.gpus import devices
from workbench.text import amount
from workbench.training import fingerprints
from workbench.training.environment import SEGMENTS, WEBHOOK, for_worker, grows_segments, one_gpu
from workbench.training.events import EventWriter
from workbench.training.folder import Request, RunFolder, RunStatus
from workbench.training.host import create_time
from workbench.training.watch import postmortem
from workbench.training.watch.alerts import Alerts
from workbench.training.watch.hub_process import HubProcess, Pace
from workbench.training.watch.mirror import Mirror, mirror_of
from workbench.training.watch.outside import Outside
from workbench.training.watch.ranks import Ranks

STOP_PATIENCE = 120.0
"""Seconds the worker is given to stop by itself (it may be in the middle of a step or a save)."""
TERM_PATIENCE = 20.0
"""Seconds between SIGTERM and SIGKILL, at most."""
_TICK = 0.14
"""Seconds between two looks at the worker, each with a sample: seven a second."""
_LEAST_PRIORITY = 19
_HASHED_WITHIN = 5.0
"""Seconds that reading one more piece of a file may take at the end."""
_LAST_TRIES, _LAST_PAUSE = 120, 0.5  # a minute


class Supervisor:
    """One attempt at a run, from the worker's start to the final status."""

    def __init__(self, folder: RunFolder, attempt: int, token: str | None = None) -> None:
        self.folder, self.attempt = folder, attempt
        self._token = token
        self._config: dict[str, Any] = json.loads(folder.config.read_text("utf-8"))
        self._mirror: Mirror | None = None
        self.events = EventWriter(folder.events("supervisor"), attempt)
        self.status = RunStatus(
            "starting", attempt=attempt, pid=os.getpid(), create_time=create_time(os.getpid()), began=time.time()
        )
        self.alerts = Alerts(folder, attempt, self.emit, os.environ.pop(WEBHOOK, ""))  # the worker must not have it
        self._identity = _identity(folder.root)
        self._terminated = False
        self._seen: dict[Request, float] = {}  # when each request was first seen, on the monotonic clock

    def set(self, state: str, **fields: Any) -> None:
        """Changes the status; while the run goes, a full disk may keep the old one."""
        self.status = replace(self.status, state=state, **fields)
        with contextlib.suppress(OSError):
            self.folder.write_status(self.status)

    def emit(self, k: str, /, **fields: Any) -> None:
        """Records an event; a full disk must not end the watch."""
        with contextlib.suppress(OSError):
            self.events.emit(k, **fields)

    def run(self) -> None:
        """Runs the worker to its end."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "_terminated", True))
        self.set("starting")
        if mirror_dir := self._config.get("mirror_dir"):
            target = mirror_of(mirror_dir, self.folder.root)
            self._mirror = Mirror(self.folder, target, lambda level, text: self.emit("log", level=level, text=text))
        if self.folder.to_fetch.exists() and not self._fetched():
            return
        try:
            worker = self.start()
        except OSError as error:
            self.end("failed", kind="error", message=f"The worker could not be started ({error}).")
            return
        self.set("running", message="", worker_pid=worker.pid, worker_create_time=create_time(worker.pid))
        outside = Outside(worker.pid)
        with self._hashing():
            code = self._watch(worker, outside)
        found = postmortem.status_of(self.folder, self.attempt, code, outside)
        if self._mirror is not None and not self.folder.gone:
            self.set(self.status.state, message="Bringing the last to the mirror.")
            if not self._mirror.flush(lambda: not self.folder.asked("stop") or found["state"] == "stopped"):
                self.emit("log", level="warning", text="The mirror does not hold the run's end.")
        if self._config.get("push_to_hub") and found["state"] == "finished":
            found["message"] += self._pushed()
        self.end(**found)

    def close(self) -> None:
        """Brings the last word to the mirror, after the run has ended."""
        if self._mirror is not None:
            self._mirror.flush()
            self._mirror.close()

    def _fetched(self) -> bool:
        """Has the model fetched; False where the run ended meanwhile, which its status then says."""
        self.emit("phase", name="fetch", edge="begin")
        self.set("fetching", message="Fetching the model.")
        pace = Pace()

        def report(process: HubProcess) -> None:
            if (speed := pace.seen(process.done)) is not None:
                self.emit("fetch", done=process.done, total=process.total, speed=speed)
                of = f"{amount(process.done)} of {amount(process.total)}, {amount(speed)}/s"
                self.set("fetching", message=f"Fetching the model: {of}.")

        answer, done, total = self._on_hub("fetch", report)
        self.emit("fetch", done=done, total=total, speed=pace.mean(done))
        if asked := next((what for what in ("stop", "pause") if self.folder.asked(what)), None):
            state = {"stop": "stopped", "pause": "paused"}[asked]
            kept = f" {amount(done)} of {amount(total)} are kept." if total else ""
            message = f"{state.capitalize()} while the model was fetched.{kept}"
            self.end(state, message=message, remedy="Resume fetches the rest.")
        elif "folder" in answer:
            self.emit("phase", name="fetch", edge="end")
            return True
        else:
            failed = {"kind": "model", "message": "The process that fetches the model was killed.", "remedy": "Resume goes on."}
            failed |= answer
            self.emit("error", **failed, text=failed["message"])
            self.end("failed", **failed)
        return False

    def _pushed(self) -> str:
        """Has what was trained pushed; a sentence on what came of it."""
        self.emit("phase", name="push", edge="begin")
        self.set("running", message="Pushing to the Hub.")
        answer, _, _ = self._on_hub("push", lambda process: None)
        if "address" in answer:
            self.emit("phase", name="push", edge="end")
            return f" Pushed to {answer['address']}."
        why = answer.get("message") or ("Stop was asked for." if self.folder.asked("stop") else "The process was killed.")
        said = f"It was not pushed to the Hub: {why} {answer.get('remedy', '')}".strip()
        self.emit("log", level="warning", text=said)
        return f" {said} wb.push(run) tries again."

    def _on_hub(self, task: str, report: Callable[[HubProcess], None]) -> tuple[dict[str, Any], int, int]:
        """Has a task done in its process until it ends or the run is asked to: its answer, and the bytes done and in all."""
        try:
            process = HubProcess(self.folder, task, self._token)
        except OSError as error:
            return {"kind": "error", "message": f"The process for the Hub could not be started ({error})."}, 0, 0
        while process.poll() is None:
            asked = self._terminated or self.folder.asked("stop") or (task == "fetch" and self.folder.asked("pause"))
            if asked or self.folder.gone:
                process.end()
                if self._terminated and not self.folder.gone:
                    with contextlib.suppress(OSError):
                        self.folder.ask("stop", TERM_PATIENCE)
            report(process)
            time.sleep(_TICK)
        return process.answer, process.done, process.total

    @contextlib.contextmanager
    def _hashing(self) -> Iterator[None]:
        """While open, a thread that gives way to all others hashes whole what the run was begun with."""
        over = threading.Event()

        def work() -> None:
            if sys.platform == "linux":  # where a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
            fingerprints.hash_whole(self.folder.root, over.is_set)

        thread = threading.Thread(target=work, name="fingerprints", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_HASHED_WITHIN)

    def start(self) -> Ranks:
        """Starts the worker, one for each rank, as children of this process. Raises OSError where it cannot."""
        processes = self._config.get("nproc_per_node", 1)
        gpus = devices()
        if (seen := one_gpu(os.environ, processes, gpus)) is not None:
            text = f"The run sees GPU {seen} alone: one process takes one GPU. nproc_per_node={gpus} trains on all of them."
            self.emit("log", level="info", text=text)
        if gpus and grows_segments(os.environ):
            text = f"torch's allocator grows its segments ({SEGMENTS}), so that less of them lies unused."
            self.emit("log", level="info", text=text)
        arguments = map(str, (self.folder.root, self.attempt, os.getpid()))
        return Ranks(
            [sys.executable, "-P", "-m", "workbench.training.worker.worker", *arguments],
            processes,
            for_worker(os.environ, processes, gpus),
            stdin=subprocess.DEVNULL,
            cwd=self.folder.root,
        )

    def _watch(self, worker: Ranks, outside: Outside) -> int:
        """Samples and obeys until the worker has ended; returns its exit code."""
        forces = [signal.SIGTERM, signal.SIGKILL]
        while (code := worker.poll()) is None:
            if counters := outside.sample():
                self.emit("sample", source="supervisor", **counters)
            with contextlib.suppress(OSError):
                self.alerts.look()
            if self.folder.gone:  # it could not be stopped any more
                worker.send_signal(signal.SIGKILL)
            elif self._terminated and not self.folder.asked("stop"):
                with contextlib.suppress(OSError):
                    self.folder.ask("stop", TERM_PATIENCE)
            if deadline := self._deadline():
                at, patience = deadline
                if self.status.state != "stopping":
                    what = "Stop" if self.folder.asked("stop") else "Pause"
                    self.set("stopping", message=f"{what} was asked for; the worker ends after its current step.")
                used = 2 - len(forces)
                if forces and time.monotonic() >= at + used * min(TERM_PATIENCE, patience):
                    force = forces.pop(0)
                    worker.send_signal(force)
                    self.emit("log", level="warning", text=f"The worker did not end in time and was sent {force.name}.")
            time.sleep(_TICK)
        return code

    def _moved_to(self) -> Path | None:
        """Where the run's folder is since it was renamed: this process works in it. None where it was removed."""
        with contextlib.suppress(OSError):
            if self._identity == _identity(here := Path.cwd()) and not RunFolder(here).gone:
                return here
        return None

    def _deadline(self) -> tuple[float, float] | None:
        """When a worker that was asked to end is made to (monotonic seconds), and the patience that was granted."""
        found = []
        for request in self.folder.requests():
            patience = STOP_PATIENCE if request.patience is None else request.patience
            found.append((self._seen.setdefault(request, time.monotonic()) + patience, patience))
        return min(found, default=None)

    def end(self, state: str, **fields: Any) -> None:
        """Writes the last word, on a full disk into the space that was kept for it, and tries again while others take that.

        What the worker left unfinished is removed, as no process writes any more. Nothing is written if the folder is gone; one
        that was renamed is told that this ended the run.
        """
        if self.folder.gone:
            if (moved := self._moved_to()) is None:
                return
            self.folder = RunFolder(moved)
            state, fields = (
                "killed",
                {
                    "kind": "moved",
                    "message": "The run's folder was renamed or moved while it was going on, which ended it.",
                    "remedy": "Resume continues from the last checkpoint, in the folder where it is now.",
                },
            )
        with contextlib.suppress(OSError):
            self.folder.release()
            self.folder.remove_unfinished()
        self.alerts.ended(state, fields.get("kind", ""))
        self.emit("exit", code=fields.get("exit_code"), state=state)
        self.events.close()
        self.status = replace(self.status, state=state, ended=time.time(), **fields)
        for _ in range(_LAST_TRIES):
            try:
                self.folder.write_status(self.status)
                return
            except OSError:
                time.sleep(_LAST_PAUSE)


def _identity(folder: Path) -> tuple[int, int]:
    """What stays of a folder when it is renamed."""
    state = folder.stat()
    return state.st_dev, state.st_ino


def main(root: str, token: str | None = None) -> None:
    """Supervises one attempt, unless another supervisor holds the run."""
    folder = RunFolder(Path(root))
    with (folder.root / ".lock").open("w") as lock:
        try:
            take_lock(lock)
        except BlockingIOError:
            sys.exit("Another supervisor is running this run.")
        before = folder.read_status()
        supervisor = Supervisor(folder, before.attempt + 1 if before else 1, token)
        supervisor.run()
    supervisor.close()  # the run is free to be resumed by now


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.readline().strip() or None)
