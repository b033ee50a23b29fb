"""``TrainingCell``: launch a QLoRA run from a cell, steer it, and watch it.

``workbench.training`` does the work. A run is a folder and two processes of its own, so closing the panel, restarting the
kernel or closing the browser does not end it; ``TrainingCell(run=...)`` picks it up again with all its history. Where the
kernel has no subshells (Colab), a button pressed while a cell is busy acts when the cell has ended.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Callable
from typing import Any

import ipywidgets

from widgets.panels.run_view import RunView
from widgets.style import Panel, fields, note, row
from widgets.tasks import at_once, guard
from workbench.errors import ConfigError, RunError
from workbench.training.config import OPTIMIZERS, QUANT_TYPES, TrainConfig
from workbench.training.folder import ENDED, RunStatus
from workbench.training.runs import Run, attach, launch

_INTRODUCTION = (
    "Freezes the model in 4 bits, trains low-rank adapters on it in a process of its own, and leaves a LoRA adapter on disk. "
    "Nothing leaves this machine."
)
FIRST_RUN = TrainConfig(max_steps=60, learning_rate=2e-3, per_device_train_batch_size=8, max_length=128)
"""What suits the embedded model: in two minutes on two cores the adapter's samples speak differently."""
_COLUMNS = ("text_column", "prompt_column", "completion_column")


class TrainingCell(Panel):
    """Controls of a run and its live view.

    ``model``: the model to train, as a name, a folder or a ``Source`` (None: a field to fill in). ``config``: what the
    controls say at first; without it what suits the model. ``run``: a ``Run`` or a run's folder to attach to. Read
    ``config`` for what the controls say now as a ``TrainConfig``, ``run`` for the run on show (None before the first),
    ``code`` for the lines that do the same without the panel.
    """

    def __init__(self, model: Any = None, *, config: TrainConfig | None = None, run: Any = None) -> None:
        self.run: Run | None = None
        self._base = config or TrainConfig()
        self._suggest = config is None
        self._controls = _controls()
        self._columns = ipywidgets.Text(
            description="Columns", placeholder="text, or prompt, completion", continuous_update=False
        )
        self._run_dir = ipywidgets.Text(description="Run folder", placeholder="runs/ and the time", continuous_update=False)
        self._code = ipywidgets.HTML()
        super().__init__("Train")
        self._view = RunView(self._changed, self.message.error)
        self.when_closed(self._view.close)
        self._launch = self._button("Launch", self._on_launch, "primary")
        self._stop = self._button("Stop", self._on_stop, "danger")
        self._pause = self._button("Pause", self._on_pause)
        self._resume = self._button("Resume", self._on_resume)
        self._attach = self._button("Attach to run folder", self._on_attach)
        at_once(self._stop, self._pause)
        which, dataset, *numbers = self._controls.values()
        self._controls["optim"].add_class("wb-span")
        manners, title = self.children[:2]
        self.children = (
            manners,
            title,
            note(_INTRODUCTION),
            fields(which, dataset, self._columns, self._run_dir, width=185),
            fields(*numbers, width=118),
            row(self._launch, self._stop, self._pause, self._resume, self._attach),
            self.message,
            self._code,
            self._view.widget,
        )
        self._fill(self._base)
        if model is not None:
            self.use_model(model)
        for control in (*self._controls.values(), self._columns, self._run_dir):
            control.observe(self._write_code, "value")
        self._write_code()
        self._changed(None)
        if run is not None:
            self._follow(run if isinstance(run, Run) else attach(run))

    @property
    def config(self) -> TrainConfig:
        """What the controls say; raises ``ConfigError`` with every fault at once."""
        said: dict[str, Any] = {name: control.value for name, control in self._controls.items()}
        said = {name: value.strip() if isinstance(value, str) else value for name, value in said.items()}
        return dataclasses.replace(self._base, **(said | _parse_columns(self._columns.value)))

    @property
    def code(self) -> str:
        """The lines that launch the same run without the panel."""
        config, default = self.config, TrainConfig()
        changed = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        arguments = ", ".join(f"{name}={value!r}" for name, value in changed.items() if value != getattr(default, name))
        folder = f", run_dir={self._run_dir.value.strip()!r}" if self._run_dir.value.strip() else ""
        return f"import workbench as wb\n\nrun = wb.launch(wb.TrainConfig({arguments}){folder})"

    def use_model(self, model: Any) -> None:
        """Train this model: a name, a folder or a ``Source``; the field shows it and is no longer edited by hand."""
        if not isinstance(model, (str, os.PathLike)):
            model = "builtin" if model.name == "builtin" else model.path or model.name
        named = str(model)
        if self._suggest:
            self._fill(FIRST_RUN if named == "builtin" else TrainConfig())
        self._controls["model"].value = named
        self._controls["model"].disabled = True

    def _on_launch(self) -> None:
        self._follow(launch(self.config, self._run_dir.value.strip() or None))

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
        self._follow(attach(self._run_dir.value.strip()))

    def _going(self) -> Run:
        if self.run is None:
            raise RunError("there is no run yet.", where="Train", remedy="Launch one, or attach to an earlier one.")
        return self.run

    def _follow(self, run: Run) -> None:
        self.run = run
        self._fill(run.config)
        self._view.follow(run)

    def _changed(self, status: RunStatus | None) -> None:
        """Enable what can be done now, and say how a run ended."""
        state = status.state if status else ""
        going = status is not None and state not in ENDED
        self._launch.disabled = self._attach.disabled = going
        self._stop.disabled = self._pause.disabled = not going or state == "stopping"
        self._resume.disabled = status is None or going or state == "finished"
        if status is None or going:
            return
        if state in ("failed", "killed"):
            where = str(self.run.dir) if self.run else ""
            self.message.error(RunError(status.message, where=where, remedy=status.remedy))
        else:
            self.message.note(" ".join(filter(None, [status.message, status.remedy])))

    def _fill(self, config: TrainConfig) -> None:
        self._base = config
        for name, control in self._controls.items():
            control.value = getattr(config, name)
        self._columns.value = ", ".join(name for name in (getattr(config, column) for column in _COLUMNS) if name)

    def _write_code(self, _: Any = None) -> None:
        try:
            code = self.code
        except ConfigError as error:
            code = "\n".join(f"# {fault}" for fault in error.faults)
        self._code.value = f'<details><summary>As code</summary><pre class="wb-code">{html.escape(code)}</pre></details>'

    def _button(self, label: str, action: Callable[[], None], style: str = "") -> ipywidgets.Button:
        button = ipywidgets.Button(description=label, button_style=style)
        button.on_click(guard(self.message)(lambda _: action()))
        return button


def _controls() -> dict[str, Any]:
    """A control for each field that is offered, by the field's name; model and dataset come first."""
    whole, real, text = ipywidgets.IntText, ipywidgets.FloatText, ipywidgets.Text
    return {
        "model": text(description="Model (builtin or a folder)", continuous_update=False),
        "dataset": text(description="Dataset (builtin or a file)", continuous_update=False),
        "max_steps": whole(description="Steps"),
        "per_device_train_batch_size": whole(description="Batch (rows)"),
        "max_length": whole(description="Length (tokens)"),
        "learning_rate": real(description="Learning rate"),
        "lora_r": whole(description="Adapter rank"),
        "lora_alpha": whole(description="Alpha"),
        "quant_type": ipywidgets.Dropdown(options=[(name.upper(), name) for name in QUANT_TYPES], description="4-bit format"),
        "optim": ipywidgets.Dropdown(options=list(OPTIMIZERS), description="Optimizer"),
        "page_min_numel": whole(description="Page from (elements)"),
        "save_steps": whole(description="Save every (steps)"),
        "double_quant": ipywidgets.Checkbox(description="Double quantization", indent=False),
    }


def _parse_columns(text: str) -> dict[str, Any]:
    """One name: a text column; two: prompt and completion; none: the dataset's own."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > 2:
        fault = f"columns are {text!r}; there must be one (text) or two (prompt, completion)."
        raise ConfigError([fault], where="Columns", remedy="Separate two names by one comma.")
    whole, prompt, completion = (names[0], None, None) if len(names) == 1 else (None, *(names or (None, None)))
    return dict(zip(_COLUMNS, (whole, prompt, completion), strict=True))
