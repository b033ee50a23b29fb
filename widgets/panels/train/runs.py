"""The earlier runs of a folder: what each was, what it came to, and those that are ticked laid over one another.

Covers the list, reading what its runs came to in the background, the losses of those that are ticked in one picture, and what
sets their configurations apart. Opening one, and taking over its settings, is the panel's part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets.background.work import Work
from widgets.controls.action_table import ActionTable, Line
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import run as run_figures
from widgets.figures.memory import METHODS
from widgets.figures.tables import table
from widgets.panels.train.words import duration, rate
from workbench.errors import WorkbenchError
from workbench.given import expanded
from workbench.progress import Cancelled, Progress
from workbench.text import NONE, counted, memory_size
from workbench.training.config import TrainConfig
from workbench.training.folder import ENDED, RunStatus
from workbench.training.recorded import note_of, recorded_run
from workbench.training.results.history import RunHistory
from workbench.training.results.outcome import Outcome, outcome
from workbench.training.runs import Run, runs

OVERLAID = 6
"""Runs that may be laid over one another."""
LISTED = 50
"""Runs that are listed at most, the newest."""
COMES = "comes with the workbench"
_COLUMNS = ("run", "what", "held-out loss", "peak memory", "took")
_ACTIONS = {"watch": "watch", "open": "open", "use": "use settings"}


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A run that was read whole."""

    run: Run
    config: TrainConfig
    history: RunHistory


@dataclasses.dataclass(frozen=True)
class Listed:
    """A run as the list has it; what it came to may still have to be read."""

    run: Run
    config: TrainConfig
    status: RunStatus
    came_to: Outcome | None = None

    @property
    def going(self) -> bool:
        """Whether it still runs."""
        return self.status.state not in ENDED


class RunList:
    """``widget`` holds the list. ``found(runs)`` is called with what each look into the folder finds, the newest first.

    ``act(action, run)`` is called for ``open``, ``watch`` and ``use``. Once runs that are ticked are read
    ``overlay(histories by name)`` is called; it returns whether there is a run on show to lay them over. If there is none, they
    have a picture of their own.
    """

    def __init__(
        self,
        overlay: Callable[[Mapping[str, RunHistory]], bool],
        act: Callable[[str, Run], None],
        found: Callable[[list[Listed]], None],
        failed: Callable[[Exception], None],
        executor: Executor | None = None,
    ) -> None:
        self._overlay, self._act, self._found = overlay, act, found
        self._work = Work(executor, self._read, failed)
        self._look = Work(executor, self._list, failed)
        self._outcomes = Work(executor, lambda _: None, failed)
        self._listed: dict[str, Listed] = {}
        self._known: dict[str, tuple[int, Outcome]] = {}
        self.table = ActionTable("Earlier runs", _COLUMNS, _ACTIONS, numbers=(2, 3, 4), tick="compare")
        self.table.on_action(lambda action, name: self._act(action, self._listed[name].run))
        self.table.observe(lambda _: self._choose(), "ticked")
        self._summary, self._compared = note(), ipywidgets.HTML()
        self.plot = Plot({}, summary="No run is chosen.", height=280)
        self.plot.layout.display = "none"
        self.widget = column(
            self.table, ProgressRow(self._look), ProgressRow(self._work), self._summary, self.plot, self._compared
        )

    @property
    def chosen(self) -> list[Run]:
        """The runs that are ticked, the newest first."""
        return [listed.run for name, listed in self._listed.items() if name in self.table.ticked]

    def renew(self, folder: str) -> None:
        """Look into the folder; what is ticked stays ticked if it is still there."""
        self._look.submit("Looking for runs", "runs", lambda progress, cancelled: (folder, found_in(folder)))

    def close(self) -> None:
        """End the threads."""
        for work in (self._look, self._work, self._outcomes):
            work.close()

    def _list(self, found: tuple[str, list[Listed]]) -> None:
        folder, listed = found
        self._listed = {
            one.run.dir.name: dataclasses.replace(one, came_to=self._known.get(one.run.dir.name, (0, None))[1])
            for one in listed
        }
        self._show()
        none = all(note_of(one.run) for one in listed)
        set_note(self._summary, f"There are no runs in {expanded(folder).absolute()}; this one {COMES}." if none else "")
        self._outcomes.submit("Reading runs", "runs", self._read_outcomes)
        self._found(listed)

    def _read_outcomes(self, progress: Progress, cancelled: Cancelled) -> None:
        """What each listed run came to, the newest first; one that wrote nothing since is not read again."""
        for name, listed in tuple(self._listed.items()):
            if cancelled():
                return
            size = _written(listed.run)
            if self._known.get(name, (None, None))[0] == size:
                continue
            try:
                came_to = outcome(listed.run)
            except WorkbenchError:
                continue  # its folder was just removed
            self._known[name] = (size, came_to)
            self._outcomes.partly(lambda name=name, came_to=came_to: self._put(name, came_to))  # type: ignore[misc]

    def _put(self, name: str, came_to: Outcome) -> None:
        if name in self._listed:
            self._listed[name] = dataclasses.replace(self._listed[name], came_to=came_to)
            self._show()

    def _show(self) -> None:
        self.table.show([line(listed) for listed in self._listed.values()])

    def _choose(self) -> None:
        picked = self.chosen[:OVERLAID]
        if not picked:
            self._work.cancel()
            self._read([])
            return
        self._work.submit("Reading earlier runs", "runs", lambda progress, cancelled: _read(picked, progress, cancelled))

    def _read(self, found: list[Earlier]) -> None:
        more = len(self.chosen) - len(found)
        set_note(
            self._summary, f"{OVERLAID} runs are drawn; {counted(more, 'more run')} would be too many." if more > 0 else ""
        )
        self._compared.value = compared(found)
        histories = {earlier.run.dir.name: earlier.history for earlier in found}
        figure, summary = run_figures.loss_figure(RunHistory(), beside=histories)
        self.plot.show(figure, summary=summary)
        laid_over = self._overlay(histories)
        self.plot.layout.display = "" if found and not laid_over else "none"


def found_in(folder: str) -> list[Listed]:
    """The newest runs of a folder, first the newest; one that is removed meanwhile is left out.

    Where there are none, the one that comes with the workbench, to look at and to replay.
    """
    return _listed(runs(folder)[-LISTED:][::-1]) or _listed([recorded_run()])


def _listed(found: Iterable[Run]) -> list[Listed]:
    listed = []
    for run in found:
        try:
            listed.append(Listed(run, run.config, run.status))
        except (OSError, WorkbenchError):
            continue
    return listed


def line(listed: Listed) -> Line:
    """A run's row."""
    came_to, state = listed.came_to, listed.status.state
    loss = peak = took = NONE
    if came_to is not None:
        loss = NONE if came_to.held_out is None else " → ".join(f"{value:.3f}" for value in came_to.held_out)
        peak = NONE if came_to.peak is None else memory_size(came_to.peak)
        took = duration(came_to.seconds) if came_to.seconds else NONE
    return Line(
        key=listed.run.dir.name,
        cells=(listed.run.dir.name, settings_of_run(listed.config), loss, peak, took),
        actions=("watch" if listed.going else "open", "use"),
        mark=COMES if note_of(listed.run) else "" if state == "finished" else state,
    )


def settings_of_run(config: TrainConfig) -> str:
    """A run in a line: QLoRA r 16 · 4 × 512 · lr 2e-4 · 60 steps."""
    method = METHODS[config.method] + ("" if config.method == "full" else f" r {config.lora_r}")
    length = f"{config.per_device_train_batch_size} × {config.max_length:,}"
    steps = counted(config.max_steps, "step") if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs"
    return f"{method} · {length} · lr {rate(config.learning_rate)} · {steps}"


def _written(run: Run) -> int:
    """Bytes of the run's events."""
    try:
        return sum(path.stat().st_size for path in run.dir.glob("events-*.jsonl"))
    except OSError:
        return 0


def _read(picked: Iterable[Run], progress: Progress, cancelled: Cancelled) -> list[Earlier]:
    found, chosen = [], list(picked)
    for i, run in enumerate(chosen):
        if cancelled():
            raise InterruptedError("These runs are no longer wanted.")
        progress(i, len(chosen))
        history = RunHistory()
        history.feed(run.events())
        found.append(Earlier(run, run.config, history))
    return found


def compared(found: list[Earlier]) -> str:
    """A table of runs: what they came to, and the fields in which their configurations differ."""
    if not found:
        return ""
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    differing = [name for name in names if len({repr(getattr(e.config, name)) for e in found}) > 1]
    rows = [(e.run.dir.name, *_results(e.history), *(_value(getattr(e.config, name)) for name in differing)) for e in found]
    return table(["run", "steps", "last loss", "held-out loss", *differing], rows, "Earlier runs, compared", numbers=(1, 2, 3))


def _results(history: RunHistory) -> tuple[str, str, str]:
    last = history.last_step
    if last is None:
        return NONE, NONE, NONE
    loss = NONE if last["loss"] is None else f"{last['loss']:.3f}"
    evals = [history.evals[n] for n in sorted(history.evals)]
    held_out = f"{evals[0]:.3f} → {evals[-1]:.3f}" if len(evals) > 1 else f"{evals[0]:.3f}" if evals else NONE
    return f"{last['n']:,}", loss, held_out


def _value(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(value) if isinstance(value, tuple) else str(value)
