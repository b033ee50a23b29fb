"""What a run is set up with: the line that says what will be trained, the form beside its forecast, the rows to look at.

Covers keeping form, forecast, code and state together. What is looked at in other tabs is not what is trained: the line says
which base it is, and one press takes over what is on show. Launching and watching are ``view.py``'s part.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.binding import bind
from widgets.controls.copy_code import CopyCode
from widgets.controls.message import Message
from widgets.controls.style import close_tree, column, fields, fold, heading, note, row, set_heading, set_note
from widgets.panels.train.fields import in_labels
from widgets.panels.train.forecast import RunForecast
from widgets.panels.train.form import RunForm
from widgets.panels.train.preview import RunPreview
from widgets.state import State, Store
from workbench.errors import ConfigError, DataError
from workbench.memory.gpus import names
from workbench.quant.spec import QuantSpec
from workbench.sources import Source
from workbench.training.advice import SOURCE
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.recipe import as_code
from workbench.training.runtime import runtime_advice

_WHY = (
    "QLoRA freezes the model in 4 bits and trains low-rank adapters on it, in a process of its own that outlives this page and "
    "its kernel, and leaves an adapter on disk. Nothing leaves this machine unless it is mirrored or pushed. What other tabs "
    "show changes nothing here."
)


class RunSetup:
    """``widget`` holds the form beside its forecast. ``put(config)`` writes one into the state, ``launch()`` trains it."""

    def __init__(
        self,
        store: Store,
        message: Message,
        *,
        put: Callable[[TrainConfig], None],
        launch: Callable[[], None],
        opened: Callable[[], Source] | None,
        executor: Executor | None,
        hidden: Iterable[str] = (),
        fixed_model: bool = False,
    ) -> None:
        self._store, self._message, self._put, self._launch = store, message, put, launch
        self._fetched: set[tuple[Any, ...]] = set()
        self._gpus = names()
        state = store.value
        self.run_folder = ipywidgets.Text(description="Run folder", placeholder="runs/ and the time", continuous_update=False)
        self._folder = ipywidgets.Text(description="Folder of runs", continuous_update=False)
        self._lines = ipywidgets.HTML()
        self.form = RunForm(state.training, self._edited, message, hidden=hidden, beside=self._beside)
        if "model" in self.form.controls:
            self.form.controls["model"].disabled = fixed_model
        message.words, message.on_error = in_labels, self._data_fault
        self.copy = CopyCode()
        self._recipe = Work(executor, self._copyable, self._no_code, debounce=0.3)
        self.preview = RunPreview(lambda: self.form.config, message.error, self.seen, executor)
        self.forecast = RunForecast(
            state.gpu, opened=opened, done=lambda _: self._say_base(), applied=guard(message)(self._apply),
            chosen=guard(message)(lambda gpu: store.update(gpu=gpu)), executor=executor,
        )  # fmt: skip
        self.base = heading("New run")
        self.take = ipywidgets.Button()
        self.take.add_class("wb-quiet-button")
        self.take.on_click(guard(message)(lambda _: self._take_over()))
        self.rows = ipywidgets.Button(description="Preview rows")
        self.rows.on_click(guard(message)(lambda _: self.preview.ask()))
        beside = ipywidgets.Box([self.form.usual, self.forecast.widget])
        beside.add_class("wb-setup")
        self.runtime, self.advice, self.disk, self.warning = note(), note(), note(), note()
        self.both = ipywidgets.Button()
        self.both.on_click(guard(message)(lambda _: self._on_all()))
        self._here = row(self.runtime, self.both)
        self.widget = column(self._here, beside, self.form.more, self.warning, self.disk, self.advice, self.preview.widget)
        bind(self._folder, store, "runs_folder", message)
        self.run_folder.observe(lambda _: self._elsewhere(), "value")
        self._say_base()
        self._forecast()
        self._write_code()

    def top(self, back: Any, launch: Any) -> Any:
        """The line above the form; ``back`` and ``launch`` are the panel's buttons."""
        line = row(self.base, self.take, back, self.copy, self.rows, launch)
        line.add_class("wb-run-top")
        return line

    def earlier(self, runs: Any, folder: Any, attach: Any) -> Any:
        """The earlier runs below the form, and where else to look."""
        self._list_title = heading("Earlier runs")
        self._say_folder()
        return column(
            self._list_title, runs, fold("Attach to a folder…", column(fields(folder, self._folder, width=300), row(attach)))
        )

    @property
    def run_dir(self) -> str | None:
        """The folder that the reader named for the run; None: a new one by the time."""
        return self.run_folder.value.strip() or None

    @property
    def code(self) -> str:
        """The lines that launch the run without the panel."""
        folder, given = self._store.value.runs_folder, ""
        if self.run_dir:
            given = f", run_dir={self.run_dir!r}"
        elif folder != State.runs_folder:
            given = f", folder={folder!r}"
        return f"import workbench as wb\n\nrun = wb.launch({code.config(self.form.config)}{given})"

    def follow(self, state: State, before: State) -> None:
        """The state has changed."""
        if state.training != before.training:
            self.form.show(state.training, before.training)
            self.preview.clear()
            self._write_code()
        self._say_base()
        self._say_folder()
        self._forecast()

    def _data_fault(self, error: BaseException) -> None:
        """Open the form at the field that is wrong."""
        if isinstance(error, DataError) and error.field:
            self.form.show_fault(error.field, in_labels(error.what))

    def seen(self, config: TrainConfig) -> None:
        """The dataset's files are on this machine now."""
        self._fetched.add(_files(config))
        self._write_code()
        self._say_advice()

    def question(self, names: str, count: int) -> str:
        """What is asked before a run is launched while others are going on."""
        others = "A run is" if count == 1 else f"{count} runs are"
        said = f"{others} going on here: {names}. Two runs share the device's memory and its time."
        return f'<div role="alert">{html.escape(said)}</div>'

    def close(self) -> None:
        """End the threads, and free what is behind a fold that was never opened."""
        for part in (self.preview, self.forecast, self._recipe):
            part.close()
        if not self.form.more.filled:
            close_tree(self.run_folder)
            close_tree(self._lines)

    def _beside(self) -> list[Any]:
        return [column(heading("Where it goes"), fields(self.run_folder)), column(heading("The same in a cell"), self._lines)]

    def _edited(self, config: TrainConfig | None) -> None:
        if config is not None:
            try:
                self._put(config)
            except ConfigError as error:  # the state refuses what no field is alone to blame for
                self._message.error(error)
        self.preview.clear()
        self._write_code()

    def _apply(self, changes: Mapping[str, Any]) -> None:
        """Take one of the forecast's changes."""
        self._edited(self.form.with_fields(changes))

    def _on_all(self) -> None:
        """Train on every GPU."""
        self._apply({"nproc_per_node": len(self._gpus)})
        self._launch()

    def _elsewhere(self) -> None:
        """The run is to go to another folder."""
        self._write_code()
        self._forecast()

    # --- what will be trained, and what is on show

    def _forecast(self) -> None:
        state = self._store.value
        self.forecast.ask(state.training, state.gpu, self.run_dir or state.runs_folder)

    def _say_base(self) -> None:
        config, shown = self._store.value.training, on_show(self._store.value)
        forecast = self.forecast.shown
        if forecast is not None and forecast.config.model != config.model:
            forecast = None
        set_note(self.warning, in_labels(forecast.warning) if forecast is not None else "")
        set_note(self.disk, forecast.disk.summary if forecast is not None else "")
        self._say_runtime(config)
        packed = forecast.packed if forecast is not None else None
        self._say_advice()
        set_heading(self.base, "New run", _WHY, base_title(config, packed))
        other = config.method == "qlora" and packed is None and shown != base_of(config)
        self.take.layout.display = "" if other else "none"
        can = shown.definition.trainable
        self.take.description = "Train what is on show" if can else f"On show: {shown.definition.title}"
        self.take.tooltip = f"Quantize the base as the other tabs show it: {shown.title}"

    def _say_runtime(self, config: TrainConfig) -> None:
        """What runs here, and the button that takes every GPU where there are several."""
        gpus, said = len(self._gpus), runtime_advice(config.nproc_per_node, gpus=self._gpus)
        set_note(self.runtime, said)
        self._here.layout.display = "" if said else "none"
        self.both.description = "Train on both GPUs" if gpus == 2 else f"Train on all {gpus} GPUs"
        self.both.tooltip = f"Launch with nproc_per_node={gpus}: a process a GPU, each with a batch of its own (DDP)"
        self.both.layout.display = "" if gpus > 1 and config.nproc_per_node < gpus else "none"

    def _say_advice(self) -> None:
        """The rules of thumb, with the rows where they were looked at."""
        shown, config = self.forecast.shown, self._store.value.training
        if shown is None or shown.config != config:
            set_note(self.advice, "")
            return
        rows = self.preview.of(config)
        found = shown.advice if rows is None else shown.advice.with_rows(config, rows)
        said = f"Rules of thumb, not measured. {found.capacity} {found.learning_rate} ({SOURCE}.)"
        set_note(self.advice, f"{found.padding} {said}".strip())

    def _take_over(self) -> None:
        """Quantize the base as the other tabs show it, where bitsandbytes can hold that."""
        shown = on_show(self._store.value)
        if not shown.definition.trainable:
            what = f"bitsandbytes holds no {shown.definition.title}: the base is trained in NF4 or FP4."
            raise ConfigError([what], where="Train", remedy="Choose one of them to train on what is on show.")
        config = self.form.with_fields(
            {"quant_type": shown.format, "block_size": shown.block_size, "double_quant": shown.double_quant}
        )
        self._edited(config)

    def _say_folder(self) -> None:
        set_heading(self._list_title, "Earlier runs", aside=f"in {self._store.value.runs_folder.rstrip('/')}/")

    # --- the code

    def _write_code(self) -> None:
        try:
            lines, config = self.code, self.form.config
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


def on_show(state: State) -> QuantSpec:
    """What the other tabs show, as bitsandbytes could hold it: its second-level scales are one for 256."""
    return dataclasses.replace(state.specs[0], nested_block_size=QuantSpec.nested_block_size)


def base_of(config: TrainConfig) -> QuantSpec:
    """How the run holds its base in 4 bits."""
    return QuantSpec(config.quant_type, config.block_size, double_quant=config.double_quant)


def base_title(config: TrainConfig, packed: QuantSpec | None) -> str:
    """What will be trained, in a line."""
    if config.method == "full":
        return "every weight, nothing quantized"
    if packed is not None:
        return f"base: {packed.title}, as the checkpoint holds it"
    return f"base: {base_of(config).title}" if config.method == "qlora" else "base: in 16 bits, frozen"


def _files(config: TrainConfig) -> tuple[Any, ...]:
    return config.dataset, config.dataset_config, config.dataset_split, config.dataset_revision, config.max_train_rows


def _shown(lines: str) -> str:
    return f'<pre class="wb-code">{html.escape(lines)}</pre>'
