"""The earlier runs of a folder: listed with how they ended, and those that are chosen laid over the run on show.

Covers the list, reading the chosen runs in the background, their losses in one picture, and what sets their configurations
apart. Attaching to one is the panel's part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets.background.work import Work
from widgets.controls.binding import Quiet
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, fields, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import run as run_figures
from widgets.figures.tables import table
from workbench.given import expanded
from workbench.progress import Cancelled, Progress
from workbench.text import NONE, counted
from workbench.training.config import TrainConfig
from workbench.training.results.history import RunHistory
from workbench.training.runs import Run, runs

OVERLAID = 6
"""Runs that may be laid over one another."""
_LISTED = 200


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A run that was read whole."""

    run: Run
    config: TrainConfig
    history: RunHistory


class RunList:
    """``widget`` holds the list, ``chosen`` the runs picked in it.

    Once they are read ``overlay(histories by name)`` is called; it returns whether there is a run on show to lay them over. If
    there is none, they have a picture of their own.
    """

    def __init__(
        self,
        overlay: Callable[[Mapping[str, RunHistory]], bool],
        failed: Callable[[Exception], None],
        executor: Executor | None = None,
    ) -> None:
        self._overlay = overlay
        self._work = Work(executor, self._read, failed)
        self._look = Work(executor, self._list, failed)
        self._runs: dict[str, Run] = {}
        self._quiet = Quiet()
        self.folder = ipywidgets.Text("runs", description="Folder of runs", continuous_update=False)
        self.list = ipywidgets.SelectMultiple(description="Earlier runs (with Ctrl several)", rows=6, options=[])
        self._summary, self._table = note(), ipywidgets.HTML()
        self.plot = Plot({}, summary="No run is chosen.", height=280)
        self.plot.layout.display = "none"
        self.widget = column(
            fields(self.folder, width=300),
            fields(self.list, width=600),
            ProgressRow(self._look),
            ProgressRow(self._work),
            self._summary,
            self.plot,
            self._table,
        )
        self.folder.observe(lambda _: self.renew(), "value")
        self._quiet.on_change(self.list, lambda _: self._choose())
        self.renew()

    @property
    def chosen(self) -> list[Run]:
        """The runs that are picked, in the list's order."""
        return [self._runs[name] for name in self.list.value]

    def renew(self) -> None:
        """Look into the folder again; what is picked stays picked if it is still there."""
        folder = self.folder.value.strip() or "."
        self._look.submit("Looking for runs", "runs", lambda progress, cancelled: _found(folder))

    def close(self) -> None:
        """End the threads."""
        self._look.close()
        self._work.close()

    def _list(self, found: list[tuple[str, Run]]) -> None:
        self._runs = {run.dir.name: run for _, run in found}
        picked = tuple(name for name in self.list.value if name in self._runs)
        with self._quiet:
            self.list.options = [(line, run.dir.name) for line, run in found]
            self.list.value = picked
        where = expanded(self.folder.value.strip() or ".").absolute()
        set_note(self._summary, "" if found else f"There are no runs in {where}.")

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
        self._table.value = compared(found)
        histories = {earlier.run.dir.name: earlier.history for earlier in found}
        figure, summary = run_figures.loss_figure(RunHistory(), beside=histories)
        self.plot.show(figure, summary=summary)
        laid_over = self._overlay(histories)
        self.plot.layout.display = "" if found and not laid_over else "none"


def _found(folder: str) -> list[tuple[str, Run]]:
    """The newest runs first, each with its line in the list."""
    return [(_line(run), run) for run in runs(folder)[-_LISTED:][::-1]]


def _line(run: Run) -> str:
    status = run.status
    return f"{run.dir.name} · {status.state}" + (f" · {status.message}" if status.message else "")


def _read(picked: list[Run], progress: Progress, cancelled: Cancelled) -> list[Earlier]:
    found = []
    for i, run in enumerate(picked):
        if cancelled():
            raise InterruptedError("These runs are no longer wanted.")
        progress(i, len(picked))
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
