"""``TrainingCell``: set up a run against its forecast, launch it, watch and steer it, and see what came of it.

``workbench.training`` does the work. A run is a folder and two processes of its own, so closing the panel, restarting the
kernel or closing the browser does not end it: a panel that opens while one is going on watches it, with all its history.
Where the kernel has no subshells (Colab), a button pressed while a cell is busy acts when the cell has ended, and
``cell.run.watch()`` keeps the view moving. What a run is set up with is ``setup.py``'s; the other parts are files of their own.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Self

import ipywidgets

from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.copy_code import CopyCode
from widgets.controls.progress import ProgressRow
from widgets.controls.style import Panel, column, row
from widgets.drawing.cockpit import ACTIONS
from widgets.panels.train.export import RunExport
from widgets.panels.train.live import RunView
from widgets.panels.train.result import RunResult
from widgets.panels.train.runs import Listed, RunList
from widgets.panels.train.setup import RunSetup
from widgets.panels.train.try_it import TryIt
from widgets.session import Session
from widgets.state import State, Store
from workbench.errors import ConfigError, RunError
from workbench.sources import Source
from workbench.training.config import TrainConfig
from workbench.training.folder import EARLY, ENDED, GONE, RunStatus
from workbench.training.launching import launch
from workbench.training.mirrored import resume_from
from workbench.training.runs import Run, attach, live_runs
from workbench.training.watch.mirror import is_mirror

FIRST_RUN: Mapping[str, Any] = {
    "max_steps": 60, "learning_rate": 2e-3, "per_device_train_batch_size": 8, "max_length": 128,
}  # fmt: skip
"""What suits the embedded model: in two minutes on two cores the adapter's samples speak differently."""


class TrainingCell(Panel):
    """Controls of a run and its live view.

    Read ``config`` for what the controls say now as a ``TrainConfig``, ``run`` for the run on show (None before the first),
    ``code`` for the lines that do the same without the panel.

    Args:
        model: The model to train, as a name, a folder or a ``Source``; None: a field to fill in.
        config: What the controls say at first; without it what suits the model.
        run: A ``Run`` or a run's folder to attach to; without it the newest run that is going on in the folder of runs, if
            there is one.
        store: The state to share with other views; its model is trained.
        opened: Gives the model that is open already.
        executor: For tests; without it the work has a thread of its own.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        config: TrainConfig | None = None,
        run: Any = None,
        store: Store | None = None,
        opened: Callable[[], Source] | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.run: Run | None = None
        self._shared = store is not None
        self.store = store or Store(State())
        begin = config or self.store.value.training
        if model is not None:
            begin = dataclasses.replace(begin, model=_name_of(model))
        self._put(begin if config is not None else _suggested(begin))
        self._state = self.store.value
        super().__init__("Train")
        self.setup = RunSetup(
            self.store, self.message, put=self._put, launch=self._on_launch, opened=opened, executor=executor,
            hidden=("model",) if self._shared else (), fixed_model=model is not None,
        )  # fmt: skip
        self.form, self.preview, self.forecast = self.setup.form, self.setup.preview, self.setup.forecast
        self.view = RunView(self._changed, self.message.error, executor, offers=ACTIONS)
        self.view.cockpit.on_action(guard(self.message)(self._steer))
        self.earlier = RunList(self.view.overlay, guard(self.message)(self._act), self._found, self.message.error, executor)
        self.export, self.try_it = RunExport(executor), TryIt(executor)
        self.result = RunResult(
            self.export, self.try_it.widget, self.message.error, guard(self.message)(self._train_on),
            guard(self.message)(self._extend), executor,
        )  # fmt: skip
        self._copying = Work(executor, self._copied, self.message.error)
        for part in (self.view, self.setup, self.earlier, self.export, self.try_it, self.result, self._copying):
            self.when_closed(part.close)
        self.when_closed(self.store.observe(self._follow_state))
        self._looked = run is not None
        self._build()
        if run is not None:
            attached = run if isinstance(run, Run) else attach(run)
            self._put(attached.config)
            self._follow(attached)
        self.earlier.renew(self.store.value.runs_folder)

    @classmethod
    def within(cls, session: Session) -> Self:
        """The panel as a part of the app: it trains the model that is open there."""
        return cls(store=session.store, opened=lambda: session.source, executor=session.executor)

    def _build(self) -> None:
        self._launch = self._button("Launch", self._on_launch, "primary")
        self._back = self._button("Back to the run", lambda: self._show(run=True))
        self._asked, self._anyway = ipywidgets.HTML(), self._button("Launch anyway", lambda: self._begin(), "warning")
        self._instead = self._button("Attach to it", self._on_instead)
        cancel = self._button("Cancel", lambda: self._ask(()))
        self._question = row(self._asked, self._anyway, self._instead, cancel)
        self._question.add_class("wb-question")
        self._elsewhere = ipywidgets.Text(description="Folder of a run", placeholder="runs/…", continuous_update=False)
        self._attach = self._button("Attach", self._on_attach)
        self._before = column(
            self.setup.top(self._back, self._launch),
            self._question,
            self.setup.widget,
            self.setup.earlier(self.earlier.widget, self._elsewhere, self._attach),
        )
        self._during = column(ProgressRow(self._copying), self.result.widget, self.export.widget, self.view.widget)
        self.children = (self.children[0], self.message, self._before, self._during)
        self._others: tuple[Run, ...] = ()
        self._ask(())
        self._show(run=False)

    @property
    def config(self) -> TrainConfig:
        """What the controls say; raises ``ConfigError`` with every fault at once."""
        return self.form.config

    @property
    def copy(self) -> CopyCode:
        """The cell that trains the same without the workbench, for the app's header to copy."""
        return self.setup.copy

    @property
    def code(self) -> str:
        """The lines that launch the same run without the panel."""
        return self.setup.code

    def _put(self, config: TrainConfig) -> None:
        """Write the configuration into the state; a shared state keeps its model, which has no revision of another's."""
        if self._shared and config.model != self.store.value.model:
            config = dataclasses.replace(config, model_revision=None)
        changes = self.store.value.changes_to(config)
        self.store.update(**changes if self._shared else changes | {"model": config.model})

    def _follow_state(self, state: State, changed: frozenset[str]) -> None:
        before, self._state = self._state, state
        self.setup.follow(state, before)
        if state.model != before.model:
            same = state.training.model_revision == before.training.model_revision  # which was the other model's
            better = _suggested(dataclasses.replace(state.training, model_revision=None) if same else state.training)
            if better != state.training:
                self._put(better)
        if "runs_folder" in changed:
            self._looked = self._looked and self.run is not None
            self.earlier.renew(state.runs_folder)

    def _show(self, *, run: bool) -> None:
        """Show the run, or what the next one is set up with."""
        self._before.layout.display, self._during.layout.display = ("none", "") if run else ("", "none")
        self._back.layout.display = "" if self.run is not None else "none"

    # --- launching

    def _on_launch(self) -> None:
        """Launch, or where another run is going on ask first: both would share the device."""
        _ = self.config
        self._ask(self._going())
        if not self._others:
            self._begin()

    def _going(self) -> list[Run]:
        """The runs that go on: in the folder of runs, beside a folder that is named, and the one on show; the newest last."""
        folders = [self.store.value.runs_folder]
        if self.setup.run_dir:
            folders.insert(0, str(Path(self.setup.run_dir).parent))
        found = {run.dir: run for folder in folders for run in live_runs(folder)}
        if self.run is not None and self.run.status.state not in ENDED:
            found.setdefault(self.run.dir, self.run)
        return list(found.values())

    def _ask(self, others: Iterable[Run]) -> None:
        self._others = tuple(others)
        self._question.layout.display = "" if self._others else "none"
        if self._others:
            names = ", ".join(other.dir.name for other in self._others)
            self._asked.value = self.setup.question(names, len(self._others))

    def _begin(self) -> None:
        config = self.config
        self._ask(())
        try:
            run = launch(config, self.setup.run_dir, folder=self.store.value.runs_folder)
        except ConfigError as error:
            self.form.show_faults(error.faults)
            raise
        self._follow(run)
        self.setup.seen(config)
        self.earlier.renew(self.store.value.runs_folder)

    def _on_instead(self) -> None:
        other = self._others[-1]
        self._ask(())
        self._follow(other)

    def _on_attach(self) -> None:
        if not self._elsewhere.value.strip():
            raise RunError("no run folder is named.", where="Folder of a run", remedy="Enter the folder of a run.")
        self._follow(attach(self._elsewhere.value.strip()))

    # --- the run on show

    def _found(self, listed: list[Listed]) -> None:
        """Once, when the panel opens: watch the newest run that is going on."""
        going = [one.run for one in listed if one.going]
        if self._looked or self.run is not None:
            return
        self._looked = True
        if going:
            self._follow(going[0])
            self.message.note(f"{going[0].dir.name} is going on: attached to it.")

    def _act(self, action: str, run: Run) -> None:
        """What a button of the list of earlier runs does."""
        if action == "use":
            self._put(run.config)
            self.message.note(f"The settings of {run.dir.name} are taken over.")
        else:
            self._follow(run)

    def _steer(self, action: str) -> None:
        """What a button of the cockpit does."""
        if self.run is None:
            raise RunError("there is no run yet.", where="Train", remedy="Launch one, or attach to an earlier one.")
        if action == "stop":
            self.run.stop()
            self.message.note("Stop was asked for: the run ends after its current step and saves its adapter.")
        elif action == "pause":
            self.run.pause()
            self.message.note("Pause was asked for: the run writes a checkpoint after its current step and ends.")
        elif action == "resume":
            self._resume(self.run)
        elif action == "edit":
            self._put(self.run.config)
            self._show(run=False)
        elif action == "new":
            self._show(run=False)

    def _resume(self, run: Run) -> None:
        """Go on with a run, of a mirror with a copy in the folder of runs."""
        if not is_mirror(run.dir):
            self._follow(run.resume())
            return
        folder = self.store.value.runs_folder
        self._copying.submit(
            "Copying the mirror",
            "bytes",
            lambda progress, cancelled: resume_from(run.dir, folder=folder, progress=progress, cancelled=cancelled),
        )

    def _copied(self, run: Run) -> None:
        self._follow(run)
        self.message.note(f"{run.dir.name} goes on from its mirror, in {run.dir}.")
        self.earlier.renew(self.store.value.runs_folder)

    def _extend(self, steps: int) -> None:
        """Take so many steps more of the run on show, which is finished."""
        if self.run is not None:
            self._follow(self.run.extend(steps))

    def _train_on(self) -> None:
        """Set up another run as the one on show was, which begins from its adapter."""
        if self.run is not None:
            self._put(dataclasses.replace(self.run.config, init_adapter=str(self.run.dir), init_lora_weights=True))
            self._show(run=False)
            self.message.note(f"The next run begins from the adapter of {self.run.dir.name}.")

    def _follow(self, run: Run) -> None:
        for part in (self.export, self.try_it, self.result):
            part.follow(run)
        self.run = run
        self.view.follow(run)
        self._show(run=True)

    def _changed(self, status: RunStatus) -> None:
        """Show what came of the run, and say how it ended where its bar and its result do not."""
        self.try_it.update(status)
        self.result.update(status)
        if status.state not in ENDED:
            return
        if status.state in ("failed", "killed", GONE):
            where = "" if status.state == GONE or self.run is None else str(self.run.dir)
            self.message.error(RunError(status.message, where=where, remedy=status.remedy))
        elif status.remedy or status.kind == EARLY:
            self.message.note(f"{status.message} {status.remedy}".strip())
        else:
            self.message.clear()
        self.earlier.renew(self.store.value.runs_folder)

    def _button(self, label: str, action: Callable[[], None], style: str = "") -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, button_style=style)
        button.on_click(guard(self.message)(lambda _: action()))
        return button


def _name_of(model: Any) -> str:
    if isinstance(model, (str, os.PathLike)):
        return str(model)
    return "builtin" if model.name == "builtin" else str(model.path or model.name)


def _suggested(config: TrainConfig) -> TrainConfig:
    """The configuration with what suits the embedded model, or for others with the usual again; changed fields stay."""
    usual = {name: getattr(TrainConfig(), name) for name in FIRST_RUN}
    now, better = (usual, FIRST_RUN) if config.model == "builtin" else (FIRST_RUN, usual)
    untouched = config.num_train_epochs is None and all(getattr(config, name) == value for name, value in now.items())
    return dataclasses.replace(config, **better) if untouched else config
