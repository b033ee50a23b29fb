"""Training runs, picked up from any kernel at any time.

Covers ``attach``, ``runs`` and the handle they give, ``Run``; ``launching`` begins one. The run's folder is the only channel: a
handle can be dropped and made again without the run noticing. Does not train, and imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from workbench.errors import RunError, WorkbenchError
from workbench.show import Line, Shown, ShownList, View
from workbench.sources import open_model
from workbench.text import amount
from workbench.training import data, extending, model_files, origins
from workbench.training.config import TrainConfig
from workbench.training.events import Event, EventReader
from workbench.training.folder import ENDED, GONE, RunFolder, RunStatus, steps_of, write_json
from workbench.training.host import alive
from workbench.training.paths import path_of
from workbench.training.spawning import reap, spawn, token_for
from workbench.training.watch.mirror import is_mirror
from workbench.training.watch.supervisor import STOP_PATIENCE

_BEGIN_WITHIN = 30.0
"""Seconds after which a run without any status is taken to have never begun."""


class Run(Shown):
    """A training run: what it is doing, what it has recorded, and how to steer it.

    Made by ``launch``, ``attach`` and ``runs``. Several handles on one run, in several processes, are fine.
    """

    def __init__(self, folder: RunFolder, process: subprocess.Popen[bytes] | None = None) -> None:
        self._folder, self._process = folder, process
        self.views: list[Callable[[], None]] = []
        """Functions that ``watch`` calls over and over: each updates something that shows this run."""

    def _line_(self) -> Line:
        line = {"run": self.dir.name}
        try:
            config = self.config
            return line | {
                "state": self.status.state,
                "method": config.method,
                "model": config.model,
                "steps": f"{config.max_steps:,}",
            }
        except (OSError, ValueError, WorkbenchError):  # removed, renamed, or not a run's any more
            return line | {"state": "its folder cannot be read"}

    def _show_(self) -> View:
        line = dict(self._line_())
        title = f"Run {line.pop('run')}: {line.pop('state')}"
        facts = {"folder": str(self.dir), **line}
        if line:
            status, adapter = self.status, self.adapter_dir or self.model_dir
            facts |= {"why": status.message, "what to do": status.remedy, "trained": "" if adapter is None else str(adapter)}
            facts |= {"best": "" if (best := self.best_dir) is None else str(best)}
        return View(title, facts)

    @property
    def dir(self) -> Path:
        """The run's folder."""
        return self._folder.root

    @property
    def config(self) -> TrainConfig:
        """What was asked for."""
        self._check_there()
        return TrainConfig.from_dict(json.loads(self._folder.config.read_text("utf-8")))

    @property
    def status(self) -> RunStatus:
        """What the run is doing now, corrected where its supervisor is no longer there to write it.

        ``gone`` once the run's folder is: its processes then end by themselves.
        """
        reap()
        present = self._present()
        if self._folder.gone:
            missing = self._folder.missing()
            return RunStatus(GONE, kind=GONE, message=f"{missing.where}: {missing.what}", remedy=missing.remedy)
        return present

    def _check_there(self) -> None:
        if self._folder.gone:
            raise self._folder.missing()

    def _present(self) -> RunStatus:
        status = self._folder.read_status()
        if status is None or (self._process and status.pid != self._process.pid and self._process.poll() is None):
            return self._not_begun(status)
        if status.state in ENDED or alive(status.pid, status.create_time):
            return status
        going = alive(status.worker_pid, status.worker_create_time)
        again = self._folder.read_status() or status  # it may have written its last word since
        if again.state in ENDED or again.pid != status.pid:
            return again
        what = "The supervisor was killed, possibly out of memory"
        if going:
            return replace(again, state="stopping", message=f"{what}; the worker ends by itself after its current step.")
        return replace(
            again,
            state="killed",
            kind="killed",
            message=f"{what}; the worker has ended, too.",
            remedy="Resume continues from the last checkpoint.",
        )

    def _not_begun(self, before: RunStatus | None) -> RunStatus:
        attempt = before.attempt + 1 if before else 1
        process = self._process
        try:
            age = time.time() - self._folder.config.stat().st_mtime
        except OSError:
            age = 0.0
        if (process and process.poll() is not None) or (process is None and age > _BEGIN_WITHIN):
            message = "The supervisor ended before it began to work."
            return RunStatus("failed", kind="error", message=message, remedy="See log.txt.", attempt=attempt)
        return RunStatus("starting", attempt=attempt, pid=process.pid if process else None)

    @property
    def pid(self) -> int | None:
        """The supervisor's process id; ``status.worker_pid`` is the process that trains."""
        return self.status.pid

    @property
    def adapter_dir(self) -> Path | None:
        """The adapter's folder, for ``peft.PeftModel.from_pretrained``; the last checkpoint's where that is newer; or None."""
        return self._trained(self._folder.adapter, "adapter_config.json")

    @property
    def model_dir(self) -> Path | None:
        """With method ``full`` the trained model's folder, for ``from_pretrained``, likewise; None with adapters."""
        return self._trained(self._folder.model, "config.json")

    @property
    def best_dir(self) -> Path | None:
        """The checkpoint of the lowest held-out loss so far, which is kept where ``eval_steps`` are given; or None."""
        return self._folder.best

    def _trained(self, folder: Path, mark: str) -> Path | None:
        """Of the folders that hold the mark of what was trained, this one and checkpoints, that with the most steps.

        Instead of the last checkpoint the best one, of a run that is to end with it.
        """
        places = [folder, *reversed(self._folder.complete_checkpoints())]
        found = max((place for place in places if (place / mark).exists()), key=steps_of, default=None)
        if found in (None, folder) or not self.config.load_best_model_at_end:
            return found
        return self._folder.best or found

    @property
    def log(self) -> Path:
        """The file with both processes' output. RunError where the run's folder is no longer there."""
        self._check_there()
        return self._folder.log

    def events(self) -> list[Event]:
        """All events so far, in order of attempt and time.

        Raises:
            RunError: Where the run's folder is no longer there.
        """
        return self.reader().poll()

    def reader(self) -> EventReader:
        """A reader whose ``poll()`` returns only what is new since its last call.

        Raises:
            RunError: Once the run's folder is gone.
        """
        return EventReader(self.dir, check=self._check_there)

    def follow(self, interval: float = 0.1) -> Iterator[Event]:
        """All events, those to come as they come, until the run has ended."""
        reader = self.reader()
        while True:
            ended = self.status.state in ENDED
            yield from reader.poll()
            if ended:
                return
            time.sleep(interval)

    def watch(self, interval: float = 0.25) -> RunStatus:
        """Follows the run to its end from within a cell, and returns its status.

        Views of this handle move meanwhile even where the kernel shows nothing while a cell is busy (Colab's); where there is
        none, each step is printed, and each tenth of a model that is fetched. An interrupt ends the watching and not the run.
        """
        reader, tenths = self.reader(), 0
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                status = self.status
                for view in tuple(self.views):
                    view()
                for event in reader.poll() if not self.views and status.state != GONE else ():
                    if event["k"] == "step":
                        print(f"step {event['n']}: loss {event['loss']}", flush=True)
                    elif event["k"] == "fetch" and (reached := 10 * event["done"] // max(event["total"], 1)) > tenths:
                        tenths = reached
                        print(f"model: {amount(event['done'])} of {amount(event['total'])}", flush=True)
                if status.state in ENDED:
                    break
                time.sleep(interval)
        return self.status

    def stop(self, patience: float = STOP_PATIENCE) -> None:
        """Asks the run to save its adapter and end after its step, and returns; after ``patience`` seconds it is made to."""
        self._ask("stop", patience)

    def pause(self, patience: float = STOP_PATIENCE) -> None:
        """Asks the run to write a checkpoint after the current step and end, and returns; ``resume`` continues from there."""
        self._ask("pause", patience)

    def _ask(self, what: str, patience: float) -> None:
        if (status := self.status).state == GONE:
            raise self._folder.missing()
        if status.state in ENDED:
            raise RunError(f"the run has already ended ({status.state}).", where=str(self.dir), remedy=status.remedy)
        if not isinstance(patience, int | float) or not 0 <= patience < math.inf:
            remedy = "Give the seconds that the worker may take, 0 or more."
            raise RunError(f"patience is {patience!r}.", where=str(self.dir), remedy=remedy)
        try:
            self._folder.ask(what, patience)
        except OSError as error:
            raise RunError(
                f"the run cannot be asked ({error.strerror}).",
                where=str(self._folder.control),
                remedy=f"Make that folder writable, or end the supervisor: kill -TERM {status.pid}.",
            ) from error

    def resume(self, *, changed_ok: bool = False) -> Run:
        """Continues from the last complete checkpoint (from the beginning if there is none). Returns this run.

        What of a model on the Hub is not on this machine is fetched first, at the commit that the run was begun with.
        ``changed_ok`` goes on with base, tokenizer, chat template and rows as they are now, and the run's card says so.

        Raises:
            RunError: As ``Changed`` if they are no longer what the run was begun with, as far as sizes, headers and sampled
                bytes show. Large files that were touched are then compared whole by the run, which fails by the kind
                ``changed``.
        """
        status = self._ended()
        if status.state == "finished":
            raise RunError("the run is finished.", where=str(self.dir), remedy="run.extend(steps) takes more steps.")
        return self._go_on(status, self.config, changed_ok)

    def extend(self, steps: int, *, changed_ok: bool = False) -> Run:
        """Takes more steps of a run that is finished, from its last checkpoint on.

        Weights, optimizer, rows and dropout go on as in a run that was longer from the start. A constant schedule then gives
        the same bits. One that ends (linear, cosine) is laid out anew: the rate goes on at what it is there in a run of all
        these steps. Warm-up stays as many steps as it was, and patience is counted anew.

        Args:
            steps: Steps more.
            changed_ok: As in ``resume``.

        Returns:
            This run.

        Raises:
            RunError: As ``resume`` does, and where the last step has no checkpoint.
        """
        status = self._ended()
        if status.state != "finished":
            raise RunError(f"the run is not finished ({status.state}).", where=str(self.dir), remedy="Resume it first.")
        longer = extending.extended(self._folder, self.config, steps)
        return self._go_on(status, longer, changed_ok, lambda: extending.write(self._folder, longer))

    def _ended(self) -> RunStatus:
        """The status of a run that no process works on any more; RunError of one that is going on, or gone."""
        status = self.status
        if status.state == GONE:
            raise self._folder.missing()
        if status.state not in ENDED or alive(status.worker_pid, status.worker_create_time):
            raise RunError("the run is still going.", where=str(self.dir), remedy="Stop or pause it, or wait for its end.")
        if is_mirror(self.dir):
            remedy = "wb.resume_from(folder) goes on from it, in a folder of this machine."
            raise RunError("this is the mirror of a run.", where=str(self.dir), remedy=remedy)
        return status

    def _go_on(
        self, status: RunStatus, config: TrainConfig, changed_ok: bool, prepare: Callable[[], None] = lambda: None
    ) -> Run:
        """Starts the next attempt, once base and rows are found to be as they were; ``prepare`` is called just before."""
        files = data.check(config)
        source = open_model(config.model, origins.pinned(self.dir, config))
        model_files.check(source)
        fetches = not model_files.is_whole(source) or self._folder.to_fetch.exists()
        if fetches:
            write_json(self._folder.to_fetch, model_files.to_fetch(source))
        origins.check_before_resume(self.dir, config, source, files, changed_ok, status.attempt + 1)
        others = [other.dir.name for other in live_runs(self.dir.parent)]
        prepare()
        self._process = spawn(self._folder, status.attempt + 1, others, token_for(config, fetches))
        return self

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Waits for the run's end, at most ``timeout`` seconds; returns the status, whatever it is by then."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.status).state not in ENDED:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            time.sleep(0.05 if left is None else min(0.05, left))
        return status


def live_runs(folder: str | os.PathLike[str] = "runs") -> list[Run]:
    """The runs in a folder that are going on, the newest last: they share this machine's devices.

    Returns:
        The runs whose process is at work; [] where there are none.

    Raises:
        RunError: Where ``folder`` is no path.

    >>> len(wb.live_runs("a folder without runs"))
    0
    """
    going = [(status, run) for run in runs(folder) if (status := run.status).state not in ENDED]
    newest_last = (run for _, run in sorted(going, key=lambda one: one[0].began or math.inf))
    return ShownList(newest_last, f"Runs that are going on in {path_of(folder, 'folder')}")


def attach(run_dir: Run | str | os.PathLike[str]) -> Run:
    """The run in ``run_dir``, going or ended, with all its history; a run is returned as it is.

    Returns:
        The run: its status, events, files and what steers it. No process is started.

    Raises:
        RunError: If there is none.

    >>> wb.attach(wb.recorded_run().dir).status.state
    'finished'
    """
    if isinstance(run_dir, Run):
        return run_dir
    folder = RunFolder(path_of(run_dir, "run_dir"))
    if not os.path.isfile(folder.config):
        remedy = "wb.runs(folder) lists the runs in a folder."
        raise RunError("there is no run in this folder.", where=str(folder.root), remedy=remedy)
    run = Run(folder)
    try:
        _ = run.config
    except (OSError, ValueError, WorkbenchError) as error:
        what = f"the run's config.json cannot be read ({error})."
        raise RunError(what, where=str(folder.root), remedy="Launch a new run.") from error
    return run


def runs(folder: str | os.PathLike[str] = "runs") -> list[Run]:
    """The runs in a folder, oldest first by name; [] where there are none.

    Returns:
        The runs. Folders without a ``config.json`` that can be read are left out.

    Raises:
        RunError: Where ``folder`` is no path.

    >>> len(wb.runs("a folder without runs"))
    0
    """
    root = path_of(folder, "folder")
    found: list[Run] = ShownList(title=f"Runs in {root}")
    for path in sorted(root.glob("*/config.json")) if os.path.isdir(root) else ():
        try:
            found.append(attach(path.parent))
        except RunError:
            continue
    return found
