"""``TrainingCell``: set up a run, look at its rows, launch it, steer it, and watch it.

``workbench.training`` does the work. A run is a folder and two processes of its own, so closing the panel, restarting the
kernel or closing the browser does not end it; ``TrainingCell(run=...)`` picks it up again with all its history. Where the
kernel has no subshells (Colab), a button pressed while a cell is busy acts when the cell has ended, and ``cell.run.watch()``
keeps the view moving. The form, the preview, the list of earlier runs, the export and the live view are files of their own.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Self

import ipywidgets

from widgets import code
from widgets.background.tasks import at_once, guard
from widgets.background.work import Work
from widgets.controls.copy_code import CopyCode
from widgets.controls.style import Panel, fold, note, row
from widgets.panels.train.export import RunExport
from widgets.panels.train.form import RunForm
from widgets.panels.train.live import RunView
from widgets.panels.train.preview import RunPreview
from widgets.panels.train.runs import RunList
from widgets.panels.train.try_it import TryIt
from widgets.session import Session
from widgets.state import State, Store
from workbench.errors import ConfigError, RunError
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.folder import ENDED, RunStatus
from workbench.training.recipe import as_code
from workbench.training.runs import Run, attach, launch

_INTRODUCTION = (
    "QLoRA freezes the model in 4 bits and trains low-rank adapters on it, in a process of its own that outlives this page and "
    "its kernel, and leaves an adapter on disk. Nothing leaves this machine."
)
FIRST_RUN: Mapping[str, Any] = {
    "max_steps": 60, "learning_rate": 2e-3, "per_device_train_batch_size": 8, "max_length": 128,
}  # fmt: skip
"""What suits the embedded model: in two minutes on two cores the adapter's samples speak differently."""


class TrainingCell(Panel):
    """Controls of a run and its live view.

    ``model``: the model to train, as a name, a folder or a ``Source`` (None: a field to fill in). ``config``: what the
    controls say at first; without it what suits the model. ``run``: a ``Run`` or a run's folder to attach to. ``store``: the
    state to share with other views; its model is trained. Read ``config`` for what the controls say now as a
    ``TrainConfig``, ``run`` for the run on show (None before the first), ``code`` for the lines that do the same without the
    panel.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        config: TrainConfig | None = None,
        run: Any = None,
        store: Store | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.run: Run | None = None
        self._fetched: set[tuple[str | None, ...]] = set()
        self._shared = store is not None
        self.store = store or Store(State(double_quant=True))
        begin = config or self.store.value.training
        if model is not None:
            begin = dataclasses.replace(begin, model=_name_of(model))
        self._put(begin if config is not None else _suggested(begin))
        self._training = self.store.value.training
        super().__init__("Train")
        self._run_dir = ipywidgets.Text(description="Run folder", placeholder="runs/ and the time", continuous_update=False)
        self._run_dir.add_class("wb-span")
        self.form = RunForm(self._training, self._edited, beside=[self._run_dir])
        self.form.controls["model"].disabled = self._shared or model is not None
        self._lines, self.copy = ipywidgets.HTML(), CopyCode()
        self._recipe = Work(executor, self._copyable, self._no_code, debounce=0.3)
        self.preview = RunPreview(lambda: self.config, self.message.error, self._seen, executor)
        self.view = RunView(self._changed, self.message.error, executor)
        self.earlier = RunList(self.view.overlay, self.message.error, executor)
        self.export, self.try_it = RunExport(executor), TryIt(executor)
        for part in (self.view, self.preview, self.earlier, self.export, self.try_it, self._recipe):
            self.when_closed(part.close)
        self.when_closed(self.store.observe(self._follow_state))
        self._build()
        self._run_dir.observe(self._write_code, "value")
        self._write_code()
        self._changed(None)
        if run is not None:
            self._attach_to(run if isinstance(run, Run) else attach(run))

    @classmethod
    def within(cls, session: Session) -> Self:
        """The panel as a part of the app: it trains what the session's state says."""
        return cls(store=session.store, executor=session.executor)

    def _build(self) -> None:
        self._launch = self._button("Launch", self._on_launch, "primary")
        self._stop = self._button("Stop", self._on_stop, "danger")
        self._pause = self._button("Pause", self._on_pause)
        self._resume = self._button("Resume", self._on_resume)
        self._attach = self._button("Attach to run folder", self._on_attach)
        self._choose = self._button("Attach to the chosen run", self._on_choose)
        self._renew = self._button("Look again", self.earlier.renew)
        self._preview = self._button("Preview rows", self.preview.ask)
        at_once(self._stop, self._pause)
        self.children = (
            self.children[0],
            note(_INTRODUCTION),
            self.form.widget,
            row(self._launch, self._stop, self._pause, self._resume, self._preview, self._attach),
            self.message,
            self.preview.widget,
            fold(
                "Earlier runs",
                self.earlier.widget,
                row(self._choose, self._renew),
                subtitle="listed, compared, laid over this one",
            ),
            fold("The same in a cell", self._lines, subtitle="the lines of the workbench that launch this run"),
            self.copy,
            self.export.widget,
            self.try_it.widget,
            self.view.widget,
        )

    @property
    def config(self) -> TrainConfig:
        """What the controls say; raises ``ConfigError`` with every fault at once."""
        return self.form.config

    @property
    def code(self) -> str:
        """The lines that launch the same run without the panel."""
        folder = f", run_dir={self._run_dir.value.strip()!r}" if self._run_dir.value.strip() else ""
        return f"import workbench as wb\n\nrun = wb.launch({code.config(self.config)}{folder})"

    def _put(self, config: TrainConfig) -> None:
        """Write the configuration into the state; a shared state keeps its model."""
        changes = self.store.value.changes_to(config)
        self.store.update(**changes if self._shared else changes | {"model": config.model})

    def _edited(self, config: TrainConfig | None) -> None:
        if config is not None:
            try:
                self._put(config)
            except ConfigError as error:  # the state refuses what no field is alone to blame for
                self.message.error(error)
        self.preview.clear()
        self._write_code()

    def _follow_state(self, state: State, _: frozenset[str]) -> None:
        before, training = self._training, state.training
        if training == before:
            return
        self._training = training
        self.form.show(training, before)
        if training.model != before.model and (better := _suggested(training)) != training:
            self._put(better)
        self._write_code()

    def _on_launch(self) -> None:
        config = self.config
        try:
            run = launch(config, self._run_dir.value.strip() or None)
        except ConfigError as error:
            self.form.show_faults(error.faults)
            raise
        self._follow(run)
        self._seen(config)
        self.earlier.renew()

    def _on_stop(self) -> None:
        self._going().stop()
        self.message.note("Stop was asked for: the run ends after its current step and saves its adapter.")

    def _on_pause(self) -> None:
        self._going().pause()
        self.message.note("Pause was asked for: the run writes a checkpoint after its current step and ends; Resume continues.")

    def _on_resume(self) -> None:
        self._follow(self._going().resume())

    def _on_attach(self) -> None:
        if not self._run_dir.value.strip():
            raise RunError("no run folder is named.", where="Run folder", remedy="Enter the folder of an earlier run.")
        self._attach_to(attach(self._run_dir.value.strip()))

    def _on_choose(self) -> None:
        if not self.earlier.chosen:
            raise RunError("no run is chosen.", where="Earlier runs", remedy="Choose one in the list.")
        self._attach_to(self.earlier.chosen[0])

    def _going(self) -> Run:
        if self.run is None:
            raise RunError("there is no run yet.", where="Train", remedy="Launch one, or attach to an earlier one.")
        return self.run

    def _attach_to(self, run: Run) -> None:
        self._put(run.config)
        self._follow(run)

    def _follow(self, run: Run) -> None:
        self.run = run
        self.export.follow(run)
        self.try_it.follow(run)
        self.view.follow(run)

    def _changed(self, status: RunStatus | None) -> None:
        """Enable what can be done now, and say how a run ended."""
        state = status.state if status else ""
        going = status is not None and state not in ENDED
        self._launch.disabled = self._attach.disabled = self._choose.disabled = going
        self._stop.disabled = self._pause.disabled = not going or state == "stopping"
        self._resume.disabled = status is None or going or state == "finished"
        if status is None:
            return
        self.export.update(status)
        self.try_it.update(status)
        if going:
            return
        if state in ("failed", "killed"):
            where = str(self.run.dir) if self.run else ""
            self.message.error(RunError(status.message, where=where, remedy=status.remedy))
        else:
            self.message.note(" ".join(filter(None, [status.message, status.remedy])))
        self.earlier.renew()

    def _seen(self, config: TrainConfig) -> None:
        """The dataset's files are on this machine now."""
        self._fetched.add(_files(config))
        self._write_code()

    def _write_code(self, _: Any = None) -> None:
        try:
            lines, config = self.code, self.config
        except ConfigError as error:
            self._lines.value = _shown("\n".join(f"# {fault}" for fault in error.faults))
            self._recipe.cancel()
            self.copy.code = ""
            return
        self._lines.value = _shown(lines)
        if on_hub(config.dataset) and _files(config) not in self._fetched:
            self._recipe.cancel()
            self.copy.code = "# The dataset is on the Hub. Preview its rows first: that fetches the files that this cell names."
            return
        self._recipe.submit("Writing the code", "lines", lambda progress, cancelled: as_code(config))

    def _copyable(self, written: str) -> None:
        self.copy.code = written

    def _no_code(self, error: Exception) -> None:
        self.copy.code = "\n".join(f"# {line}" for line in str(error).splitlines())

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


def _files(config: TrainConfig) -> tuple[str | None, ...]:
    return config.dataset, config.dataset_config, config.dataset_split, config.dataset_revision


def _shown(lines: str) -> str:
    return f'<pre class="wb-code">{html.escape(lines)}</pre>'
